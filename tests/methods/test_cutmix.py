"""CutMix against the equations of its paper, pixel by pixel."""

import pytest
import torch

from i2c_fast.methods.cutmix import cut_box, paste

from .small import batch, method


@pytest.mark.parametrize(
    ("lam", "center", "expected"),
    [
        # √(1 − .75) = ½: a box of 10 × 6 pixels around the center of 20 × 12.
        (0.75, (0.5, 0.5), [5, 3, 15, 9]),
        (1.0, (0.3, 0.9), [6, 10, 6, 10]),  # nothing is cut
        (0.0, (0.5, 0.5), [0, 0, 20, 12]),  # everything is
        (0.75, (0.0, 0.95), [0, 8, 5, 12]),  # cut off at the border
    ],
)
def test_boxes_are_those_of_equation_2(lam: float, center: tuple[float, float], expected: list[int]) -> None:
    assert cut_box(torch.tensor(lam), torch.tensor(center), (20, 12)).tolist() == expected


def test_pixels_inside_the_box_are_the_other_image_s_and_lambda_is_the_fraction_that_stays() -> None:
    images, others = torch.zeros(2, 3, 6, 8, dtype=torch.uint8), torch.full((2, 3, 6, 8), 9, dtype=torch.uint8)
    mixed, kept = paste(images, others, torch.tensor([1.0, 2.0, 4.0, 8.0]))
    expected = images.clone()
    expected[:, :, 1:4, 2:8] = 9
    assert torch.equal(mixed, expected)
    assert kept.item() == pytest.approx(1 - 18 / 48)


def test_mixing_keeps_channels_last() -> None:
    given = batch()
    mixed, _ = paste(given.images, given.images[torch.tensor([1, 0, 3, 2, 5, 4])], torch.tensor([0.0, 0.0, 9.0, 9.0]))
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_the_loss_mixes_as_the_pixels_do() -> None:
    trained, given = method("cutmix").eval(), batch()
    seen: list[torch.Tensor] = []
    trained.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    terms = trained(given)
    # Which image each one was mixed with follows from its pixels.
    changed = (seen[0] != given.images).any(1)
    others = []
    for i in range(6):
        same = [j for j in range(6) if torch.equal(seen[0][i, :, changed.any(0)], given.images[j, :, changed.any(0)])]
        others.append(same[0])
    logits = trained.model(seen[0]).double().log_softmax(1)
    kept = terms["kept"].item()
    rows = torch.arange(6)
    own, other = (-logits[rows, labels].mean().item() for labels in (given.labels, given.labels[torch.tensor(others)]))
    assert 0 < kept < 1
    assert terms["loss"].item() == pytest.approx(kept * own + (1 - kept) * other, rel=1e-5)
    assert terms["ce"].item() == pytest.approx(own, rel=1e-5)


def test_lambda_is_uniform_for_alpha_one_and_a_batch_is_left_out_with_the_given_probability() -> None:
    trained, given = method("cutmix", probability=0.25).eval(), batch(side=16)
    kept = torch.stack([trained(given)["kept"] for _ in range(200)])
    assert 0.65 < (kept == 1).float().mean() < 0.85
    assert method("cutmix", probability=0.0)(given)["kept"] == 1
