"""Hide-and-Seek against its paper: whole patches, each hidden on its own, filled with the mean color."""

import pytest
import torch

from i2c_fast.methods.has import hidden_pixels

from .small import batch, method


def test_pixels_of_a_patch_share_its_draw() -> None:
    dropped = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    hidden = hidden_pixels(torch.tensor([4, 8]), dropped, (14, 16))  # the last row of patches is cut off
    for image, side in enumerate((4, 8)):
        for y in range(14):
            for x in range(16):
                assert hidden[image, y, x] == dropped[image, y // side, x // side]


def test_a_side_of_zero_hides_nothing() -> None:
    assert not hidden_pixels(torch.tensor([0]), torch.ones(1, 2, 2, dtype=torch.bool), (8, 8)).any()


def test_hidden_pixels_are_zero_after_normalization_and_others_unchanged() -> None:
    trained, given = method("has", sides=[8], drop_rate=0.5).eval(), batch()
    seen: list[torch.Tensor] = []
    trained.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    trained(given)
    whole = trained.model.normalize(given.images)
    hidden = (seen[0] == 0).all(1)
    torch.testing.assert_close(seen[0], torch.where(hidden[:, None], 0.0, whole))
    # Patches of 8 × 8 are hidden as a whole.
    fractions = hidden.unflatten(2, (4, 8)).unflatten(1, (4, 8)).float().mean((2, 4))
    assert set(fractions.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_patches_are_hidden_with_the_drop_rate(rate: float) -> None:
    trained = method("has", sides=[2], drop_rate=rate).eval()
    seen: list[torch.Tensor] = []
    trained.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for _ in range(4):
        trained(batch())
    fraction = torch.stack([(images == 0).all(1).float().mean() for images in seen]).mean().item()
    assert fraction == pytest.approx(rate, abs=0.03)  # 6,144 patches: three standard errors are .018


def test_sides_are_drawn_for_each_image() -> None:
    trained = method("has", sides=[0, 16], drop_rate=1.0).eval()
    seen: list[torch.Tensor] = []
    trained.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for _ in range(8):
        trained(batch())
    hidden = torch.cat([(images == 0).all(1).flatten(1).all(1) for images in seen])
    assert hidden.any() and not hidden.all()
