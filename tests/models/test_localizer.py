import pytest
import torch
from torch import Tensor, nn

from i2c_fast.errors import UserError
from i2c_fast.kernels import gather_pixels
from i2c_fast.models import (
    BACKBONES,
    Localizer,
    build_localizer,
    load_imagenet_weights,
    register_backbone,
)

LABELS = torch.tensor([4, 1])


@pytest.fixture(scope="module")
def localizer() -> Localizer:
    torch.manual_seed(0)
    return build_localizer("resnet18", num_classes=5).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64)


def test_forward_gives_scores_label_maps_and_the_bodys_features(localizer: Localizer, images: Tensor) -> None:
    output = localizer(images, LABELS)
    assert (output.logits.shape, output.maps.shape) == ((2, 5), (2, 8, 8))
    torch.testing.assert_close(output.features, localizer.body(images))


def test_losses_on_features_reach_the_body_alone(images: Tensor) -> None:
    localizer = build_localizer("resnet18", num_classes=5)
    localizer(images, LABELS).features.sum().backward()
    assert all(parameter.grad is not None for parameter in localizer.body.parameters())
    assert all(parameter.grad is None for parameter in localizer.head.parameters())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_slots_bring_seeds_the_gradient_that_plain_indexing_gives(images: Tensor, layout: torch.memory_format) -> None:
    localizer = build_localizer("resnet18", num_classes=5).double().to(memory_format=layout)  # type: ignore[call-overload]
    localizer.head.dropout.p = 0.0
    seeds = torch.tensor([[3, 60, 3], [0, 9, 63]])

    def gradients(tapped: bool) -> list[Tensor]:
        localizer.zero_grad()
        logits, _, features, slots = localizer(images.double(), LABELS, 3 if tapped else 0)
        assert (slots is not None) == tapped
        (logits.square().sum() + gather_pixels(features, seeds, slots).pow(3).sum()).backward()
        return [parameter.grad.clone() for parameter in localizer.parameters() if parameter.grad is not None]

    torch.testing.assert_close(gradients(True), gradients(False))


def test_first_dropout_still_drops_with_slots_but_not_from_the_features(images: Tensor) -> None:
    localizer = build_localizer("resnet18", num_classes=5)
    seen: list[Tensor] = []
    localizer.head.fc6.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    features = localizer(images, LABELS, 3).features
    kept = seen[0] != 0
    torch.testing.assert_close(seen[0][kept], 2 * features[kept])
    assert 0.4 < kept[features != 0].float().mean() < 0.6


def test_slots_that_nothing_reads_change_no_gradient(images: Tensor) -> None:
    localizer = build_localizer("resnet18", num_classes=5).double()
    localizer.head.dropout.p = 0.0
    found = []
    for seeds in (0, 3):
        localizer.zero_grad()
        localizer(images.double(), LABELS, seeds).logits.square().sum().backward()
        found.append([parameter.grad.clone() for parameter in localizer.parameters() if parameter.grad is not None])
    torch.testing.assert_close(*found)


@torch.no_grad()
def test_scores_are_the_same_with_and_without_labels_and_maps(localizer: Localizer, images: Tensor) -> None:
    expected = localizer(images, LABELS).logits
    torch.testing.assert_close(localizer(images), expected)
    torch.testing.assert_close(localizer.class_maps(images, LABELS).logits, expected)


@torch.no_grad()
def test_class_maps_are_those_of_the_classes_asked_for(localizer: Localizer, images: Tensor) -> None:
    maps = localizer.class_maps(images).maps
    assert maps.shape == (2, 5, 8, 8)
    torch.testing.assert_close(maps[torch.arange(2), LABELS], localizer(images, LABELS).maps)
    torch.testing.assert_close(localizer.class_maps(images, LABELS).maps, localizer(images, LABELS).maps)
    pairs = torch.tensor([[0, 4], [3, 3]])
    torch.testing.assert_close(localizer.class_maps(images, pairs).maps[1, 0], maps[1, 3])


@torch.no_grad()
def test_all_maps_are_fp32_under_autocast_as_those_of_single_classes_are(localizer: Localizer, images: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        every, one = localizer.class_maps(images).maps, localizer.class_maps(images, LABELS).maps
    assert every.dtype == one.dtype == torch.float32
    torch.testing.assert_close(every[torch.arange(2), LABELS], one)


# Normalization


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_uint8_images_are_normalized_by_the_statistics_of_imagenet(
    localizer: Localizer, memory_format: torch.memory_format
) -> None:
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).expand(2, 3, 5, 3).contiguous(memory_format=memory_format)
    found = localizer.normalize(images)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=memory_format)
    for channel, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        row = torch.tensor([(0.0 - mean) / std, (1.0 - mean) / std, (0.2 - mean) / std])
        torch.testing.assert_close(found[:, channel], row.expand(2, 5, 3))


def test_floating_point_images_are_taken_as_normalized(localizer: Localizer, images: Tensor) -> None:
    assert localizer.normalize(images) is images


def test_normalization_is_not_part_of_the_weights(localizer: Localizer) -> None:
    assert all(name.startswith(("body.", "head.")) for name in localizer.state_dict())


# Backbones of other packages


class OtherBody(nn.Module):
    """A network of another package, that our code knows only by its two numbers."""

    out_channels, stride = 6, 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 4, stride=4)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layer(images)
        return features


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("i2c_fast.models.backbones.BACKBONES", dict(BACKBONES))
    register_backbone("other", OtherBody, head_width=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return "other"


def test_a_registered_backbone_is_built_like_ours(other: str) -> None:
    localizer = build_localizer(other, num_classes=3).eval()
    assert (localizer.feature_dim, localizer.stride, localizer.num_classes) == (6, 4, 3)
    assert localizer.head.fc7.out_channels == 8
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 2)
    assert localizer.normalize(black_and_white).unique().tolist() == [-1, 1]
    assert localizer.class_maps(torch.zeros(2, 3, 16, 16)).maps.shape == (2, 3, 4, 4)


def test_a_registered_backbone_has_no_imagenet_file(other: str) -> None:
    with pytest.raises(UserError, match=r"model\.weights=imagenet: none are known for other; give model\.weights=none"):
        load_imagenet_weights(OtherBody(), other)


def test_a_name_is_registered_once(other: str) -> None:
    with pytest.raises(ValueError, match="there is a backbone 'other' already"):
        register_backbone(other, OtherBody)


@pytest.mark.parametrize(("width", "expected"), [(0, 256), (48, 48)])
def test_head_width_is_the_backbones_or_the_one_asked_for(width: int, expected: int) -> None:
    assert build_localizer("resnet18", 5, head_width=width).head.fc6.out_channels == expected


def test_mixed_precision_keeps_maps_in_fp32(localizer: Localizer, images: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        output = localizer(images, LABELS)
    assert (output.features.dtype, output.maps.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(("backbone", "width"), [("vgg16", 1024), ("resnet18", 256)])
def test_head_has_the_backbones_width(backbone: str, width: int) -> None:
    with torch.device("meta"):
        assert build_localizer(backbone, 5).head.fc7.out_channels == width


@pytest.mark.parametrize(
    ("backbone", "uniform"), [("vgg16", True), ("inception_v3", True), ("resnet50", False), ("resnet18", True)]
)
def test_head_is_drawn_as_the_backbone_asks(backbone: str, uniform: bool) -> None:
    weight = build_localizer(backbone, 5).head.fc7.weight
    # A uniform draw ends at sqrt(3) deviations, a normal one of this size goes beyond four.
    assert (weight.abs().max() < 1.8 * weight.std()) == uniform


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnet5O", "resnet50"), ("VGG16", "vgg16"), ("inceptionv3", "inception_v3"), ("RESNET", "resnet"), ("?", "")],
)
def test_unknown_backbone_is_answered_with_the_nearest_name(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"did you mean {nearest}") as error:
        build_localizer(name, 5)
    assert all(backbone in str(error.value) for backbone in BACKBONES)


# Frozen layers


@pytest.mark.parametrize(
    ("backbone", "last", "first_trained"),
    [
        ("inception_v3", "Mixed_6d", "Mixed_6e.branch1x1.conv.weight"),
        ("resnet18", "layer2", "layer3.0.downsample.0.weight"),
        ("resnet18", "layer2.0", "layer2.1.conv1.weight"),
        ("vgg16", "features.26", "features.28.weight"),
    ],
)
def test_layers_up_to_the_named_one_are_frozen_and_no_others(backbone: str, last: str, first_trained: str) -> None:
    model = build_localizer(backbone, 3, head_width=4)
    model.freeze(last)
    named = list(model.body.named_parameters())
    trained = [name for name, parameter in named if parameter.requires_grad]
    assert trained[0] == first_trained
    assert trained == [name for name, _ in named][-len(trained) :]


def test_frozen_layers_keep_their_statistics_and_record_no_graph() -> None:
    model = build_localizer("resnet18", 3)
    model.freeze("layer2")
    model.train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    seen = {}
    for name in ("layer2", "layer3"):
        model.body.get_submodule(name).register_forward_hook(lambda _, __, out, key=name: seen.update({key: out}))
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    assert (seen["layer2"].requires_grad, seen["layer3"].requires_grad) == (False, True)
    changed = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert changed
    assert all(name.startswith("body.layer3.") for name in changed)


def test_an_unknown_layer_is_a_line_that_lists_the_body_s() -> None:
    expected = (
        "model.freeze=layer9: the body has no such layer; there are conv1, bn1, relu, maxpool, layer1, layer2, layer3"
    )
    with pytest.raises(UserError, match=f"^{expected}$"):
        build_localizer("resnet18", 3).freeze("layer9")
