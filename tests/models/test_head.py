import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from i2c_fast.models import LocalizationHead

CLASSES = 7
LABELS = torch.tensor([3, 0, 6])


@pytest.fixture
def head() -> LocalizationHead:
    torch.manual_seed(0)
    head = LocalizationHead(in_channels=6, num_classes=CLASSES, width=16)
    nn.init.normal_(head.fc8.bias)  # at its initial 0 a forgotten bias would go unseen
    return head.eval()


@pytest.fixture
def x(head: LocalizationHead) -> Tensor:
    return head(torch.randn(3, 6, 5, 4)).detach()


def test_x_keeps_the_features_resolution(x: Tensor) -> None:
    assert x.shape == (3, 16, 5, 4)


def test_label_map_is_the_labels_channel_of_the_dense_maps(head: LocalizationHead, x: Tensor) -> None:
    _, maps = head.pooled(x, LABELS)
    torch.testing.assert_close(maps, head.fc8(x)[torch.arange(3), LABELS])


def test_training_logits_are_the_mean_of_the_dense_maps(head: LocalizationHead, x: Tensor) -> None:
    logits, _ = head.pooled(x, LABELS)
    torch.testing.assert_close(logits, head.fc8(x).mean(dim=(2, 3)))


def test_logits_are_those_of_training(head: LocalizationHead, x: Tensor) -> None:
    torch.testing.assert_close(head.logits(x), head.pooled(x, LABELS)[0])


def test_class_map_of_one_class_an_image(head: LocalizationHead, x: Tensor) -> None:
    torch.testing.assert_close(head.class_maps(x, LABELS), head.fc8(x)[torch.arange(3), LABELS])


def test_class_maps_of_several_classes_an_image(head: LocalizationHead, x: Tensor) -> None:
    classes = torch.tensor([[0, 1], [5, 5], [6, 2]])
    expected = torch.stack([head.fc8(x)[i, row] for i, row in enumerate(classes)])
    torch.testing.assert_close(head.class_maps(x, classes), expected)


def test_maps_are_fp32_when_x_is_bfloat16(head: LocalizationHead, x: Tensor) -> None:
    half = x.bfloat16()
    assert head.class_maps(half, LABELS).dtype == head.pooled(half, LABELS)[1].dtype == torch.float32


def test_logits_of_bfloat16_x_are_averaged_in_the_weights_precision(head: LocalizationHead, x: Tensor) -> None:
    half = x.bfloat16()
    torch.testing.assert_close(head.logits(half), head.logits(half.float()))


def test_maps_are_constants_and_logits_are_not(head: LocalizationHead, x: Tensor) -> None:
    logits, maps = head.pooled(x.requires_grad_(), LABELS)
    assert logits.requires_grad and not maps.requires_grad


def test_cross_entropy_reaches_every_parameter(head: LocalizationHead) -> None:
    logits, _ = head.pooled(head(torch.randn(3, 6, 5, 4)), LABELS)
    nn.functional.cross_entropy(logits, LABELS).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


def test_evaluation_drops_nothing(head: LocalizationHead) -> None:
    features = torch.randn(3, 6, 5, 4)
    expected = head.fc7(head.fc6(features).relu()).relu()
    torch.testing.assert_close(head(features), expected)


def test_training_drops_single_elements_before_each_convolution(head: LocalizationHead) -> None:
    inputs: list[Tensor] = []
    for convolution in (head.fc6, head.fc7, head.fc8):
        convolution.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        nn.init.constant_(convolution.weight, 1.0)
    head.train()
    head.fc8(head(torch.ones(4, 6, 16, 16)))
    for dropped in (tensor == 0 for tensor in inputs):
        assert dropped.float().mean().item() == pytest.approx(0.5, abs=0.05)
        assert not dropped.flatten(2).all(dim=2).any()  # no channel is dropped whole
    assert len(inputs) == 3


def test_features_are_not_written_to(head: LocalizationHead) -> None:
    features = torch.randn(3, 6, 5, 4)
    before = features.clone()
    head.train()(features)
    assert torch.equal(features, before)


def test_dense_class_maps_are_never_made() -> None:
    classes, side = 300, 16
    head = LocalizationHead(in_channels=2, num_classes=classes, width=4)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                largest = max(largest, tensor.numel() if isinstance(tensor, Tensor) else 0)
            return result

    with Watch():
        x = head(torch.randn(3, 2, side, side))
        head.pooled(x, LABELS)[0].sum().backward()
        head.logits(x)
        head.class_maps(x, torch.tensor([[0, 1]] * 3))
    assert largest < classes * side * side


def test_xavier_draw_fills_its_interval_and_biases_start_at_zero() -> None:
    fc6 = LocalizationHead(in_channels=64, num_classes=10, width=128, init="xavier").fc6
    bound = (6 / (9 * 64 + 9 * 128)) ** 0.5
    assert 0.99 * bound < fc6.weight.abs().max() <= bound and not fc6.bias.any()


def test_normal_draw_has_the_variance_of_its_outputs_fan() -> None:
    fc6 = LocalizationHead(in_channels=64, num_classes=10, width=128, init="normal").fc6
    assert fc6.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.03) and not fc6.bias.any()


def test_unknown_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="xavier"):
        LocalizationHead(in_channels=2, num_classes=2, init="uniform")  # type: ignore[arg-type]
