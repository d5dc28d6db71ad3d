import pytest
import torch
from torch import Tensor

from i2c_fast.errors import UserError
from i2c_fast.kernels import gather_pixels
from i2c_fast.models import BACKBONES, Localizer, build_localizer

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
def test_predicted_scores_are_those_of_the_training_forward(localizer: Localizer, images: Tensor) -> None:
    torch.testing.assert_close(localizer.predict(images)[0], localizer(images, LABELS).logits)


@torch.no_grad()
def test_predicted_x_gives_the_map_of_any_class(localizer: Localizer, images: Tensor) -> None:
    _, x = localizer.predict(images)
    torch.testing.assert_close(localizer.head.class_maps(x, LABELS), localizer(images, LABELS).maps)


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
