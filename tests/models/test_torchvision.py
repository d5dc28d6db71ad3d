"""The bodies against torchvision's own networks, where torchvision can be imported."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from i2c_fast.models import BACKBONES

from ..tiny import BUILT_IN
from .patterns import fill, images

try:
    from torchvision import models as torchvision_models
except Exception as error:  # a build for another torch fails with RuntimeError, not with ImportError
    pytest.skip(f"torchvision cannot be imported: {error}", allow_module_level=True)

LEFT_OUT = {
    "vgg16": ("classifier.",),
    "resnet50": ("fc.",),
    "inception_v3": ("AuxLogits.", "Mixed_7", "fc."),
    "resnet18": ("layer4.", "fc."),
}
BACKBONE_NAMES = pytest.mark.parametrize("backbone", BUILT_IN)


def torchvision_network(backbone: str) -> Any:
    arguments = {"init_weights": False} if backbone == "inception_v3" else {}
    return getattr(torchvision_models, backbone)(**arguments)


def vgg16_features(network: Any, x: Tensor) -> Tensor:
    strides = iter((2, 2, 2, 1, 1))
    for layer in network.features:
        if isinstance(layer, nn.MaxPool2d):
            layer = nn.MaxPool2d(3, next(strides), padding=1)
        x = layer(x)
    return nn.functional.avg_pool2d(x, 3, 1, padding=1)


def resnet_features(network: Any, x: Tensor, stages: tuple[nn.Sequential, ...]) -> Tensor:
    for stage in stages[2:]:
        for layer in stage.modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    return nn.Sequential(*stages)(x)


def inception_v3_features(network: Any, x: Tensor) -> Tensor:
    network.Conv2d_1a_3x3.conv.padding = (1, 1)
    for convolution in (network.Mixed_6a.branch3x3.conv, network.Mixed_6a.branch3x3dbl_3.conv):
        convolution.stride, convolution.padding = (1, 1), (1, 1)
    pool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
    x = pool(network.Conv2d_2b_3x3(network.Conv2d_2a_3x3(network.Conv2d_1a_3x3(x))))
    x = pool(network.Conv2d_4a_3x3(network.Conv2d_3b_1x1(x)))
    x = network.Mixed_5d(network.Mixed_5c(network.Mixed_5b(x)))
    block = network.Mixed_6a
    double = block.branch3x3dbl_3(block.branch3x3dbl_2(block.branch3x3dbl_1(x)))
    x = torch.cat([block.branch3x3(x), double, nn.functional.max_pool2d(x, 3, 1, padding=1)], dim=1)
    return network.Mixed_6e(network.Mixed_6d(network.Mixed_6c(network.Mixed_6b(x))))


def torchvision_features(backbone: str, network: Any, x: Tensor) -> Tensor:
    """Torchvision's layers with the strides and pools of the localization network."""
    if backbone == "vgg16":
        return vgg16_features(network, x)
    if backbone == "inception_v3":
        return inception_v3_features(network, x)
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    return resnet_features(network, x, stages if backbone == "resnet50" else stages[:3])


@BACKBONE_NAMES
def test_body_has_every_tensor_of_torchvisions_network_up_to_the_cut(backbone: str) -> None:
    with torch.device("meta"):
        theirs = torchvision_network(backbone).state_dict()
        ours = BACKBONES[backbone].build().state_dict()
    expected = {name: value.shape for name, value in theirs.items() if not name.startswith(LEFT_OUT[backbone])}
    assert {name: value.shape for name, value in ours.items()} == expected


@BACKBONE_NAMES
def test_body_computes_what_torchvisions_layers_compute(backbone: str) -> None:
    body = BACKBONES[backbone].build().double().eval()
    network = torchvision_network(backbone).double().eval()
    names = list(body.state_dict())
    fill(body, names)
    fill(network, names)
    with torch.no_grad():
        torch.testing.assert_close(body(images()), torchvision_features(backbone, network, images()))


@BACKBONE_NAMES
def test_weights_are_torchvisions_first_version(backbone: str) -> None:
    names = {"vgg16": "VGG16", "resnet50": "ResNet50", "inception_v3": "Inception_V3", "resnet18": "ResNet18"}
    weights = getattr(torchvision_models, f"{names[backbone]}_Weights").IMAGENET1K_V1
    assert weights.url == BACKBONES[backbone].weights_url
