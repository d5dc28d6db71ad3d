"""Sizes, names and cost of the networks (Table "Backbones" of the method), and a fixed forward pass of each body."""

import hashlib

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from i2c_fast.models import BACKBONES, Localizer, build_localizer

from ..tiny import BUILT_IN
from .patterns import fill, images

BACKBONE_NAMES = pytest.mark.parametrize("backbone", BUILT_IN)

# SHA-256 of the sorted lines "name [shape]" of torchvision 0.29.2's networks, less the layers that the bodies leave out
# (classifier; fc; AuxLogits, Mixed_7* and fc; layer4 and fc). test_torchvision.py makes the comparison itself.
TORCHVISION_DIGESTS = {
    "vgg16": "cf70e16bc5eff25b516b0fe9225a38abec1c5e30fd09609bc97155d7727283ba",
    "resnet50": "569b8747885996c670bdc8beff44c0b72350a137c27520435d25397acd0dd3dd",
    "inception_v3": "7ace87e9005206b93acb8795da0e61cafb6e1d4847a8680c08f0248314213c02",
    "resnet18": "667ab8ddf5199de4a2e31ef678e79761833ae88c7285d9557bc407d105b6e71a",
}

# Mean and deviation of the features that torchvision's layers, with our strides and pools, compute from patterns.py.
TORCHVISION_FEATURES = {
    "vgg16": (2.35806, 2.15524),
    "resnet50": (3957.69, 5141.71),
    "inception_v3": (1.60629, 2.4717),
    "resnet18": (18.206, 24.3608),
}


def on_meta(backbone: str) -> Localizer:
    with torch.device("meta"):
        return build_localizer(backbone, 1000)


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("backbone", "body", "head"),
    [
        ("vgg16", 14_714_688, 15_182_824),
        ("resnet50", 23_508_032, 29_338_600),
        ("inception_v3", 8_965_856, 17_542_120),
        ("resnet18", 2_782_784, 1_437_160),
    ],
)
def test_parameter_counts(backbone: str, body: int, head: int) -> None:
    localizer = on_meta(backbone)
    assert (parameter_count(localizer.body), parameter_count(localizer.head)) == (body, head)


@pytest.mark.parametrize(("backbone", "expected"), [("vgg16", "31.4"), ("resnet50", "42.1"), ("inception_v3", "21.39")])
def test_multiply_adds_at_224_with_dense_class_maps(backbone: str, expected: str) -> None:
    localizer = on_meta(backbone)
    with FlopCounterMode(display=False) as counter:
        localizer.head.fc8(localizer.head(localizer.body(torch.empty(1, 3, 224, 224, device="meta"))))
    decimals = len(expected.split(".")[1])
    assert f"{counter.get_total_flops() / 2 / 1e9:.{decimals}f}" == expected


@BACKBONE_NAMES
@pytest.mark.parametrize("side", [224, 320])
def test_features_have_an_eighth_of_the_images_side(backbone: str, side: int) -> None:
    spec = BACKBONES[backbone]
    features = on_meta(backbone).body(torch.empty(2, 3, side, side, device="meta"))
    assert features.shape == (2, spec.feature_dim, side // 8, side // 8)


@BACKBONE_NAMES
def test_names_and_shapes_are_torchvisions(backbone: str) -> None:
    state = on_meta(backbone).body.state_dict()
    lines = sorted(f"{name} {list(value.shape)}" for name, value in state.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == TORCHVISION_DIGESTS[backbone]


@BACKBONE_NAMES
def test_features_are_what_torchvisions_layers_gave(backbone: str) -> None:
    body = on_meta(backbone).body.to_empty(device="cpu").double().eval()
    fill(body, list(body.state_dict()))
    with torch.no_grad():
        features = body(images())
    assert (features.mean().item(), features.std().item()) == pytest.approx(TORCHVISION_FEATURES[backbone], rel=1e-5)


@BACKBONE_NAMES
def test_scratch_weights_keep_the_gradients_size_through_relus(backbone: str) -> None:
    for layer in BACKBONES[backbone].build().modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 30_000:
            expected = (2 / (layer.out_channels * layer.weight[0, 0].numel())) ** 0.5
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)
            assert layer.bias is None or not layer.bias.any()


@BACKBONE_NAMES
def test_body_trains_on_channels_last_images(backbone: str) -> None:
    body = BACKBONES[backbone].build().to(memory_format=torch.channels_last)
    batch = images(16).float().contiguous(memory_format=torch.channels_last)
    features = body(batch)
    assert features.is_contiguous(memory_format=torch.channels_last)
    features.square().mean().backward()
    assert all(parameter.grad is not None for parameter in body.parameters())
