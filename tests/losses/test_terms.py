"""SC and GC: their values, gradients and what they refuse."""

import math
from typing import Any

import pytest
import torch

from i2c_fast import InterImageLoss, InterImageTerms
from i2c_fast.kernels import label_cam, tap

from .batches import CHANNELS, CLASSES, LABELS, Oracle, batch, make, same, state


def test_worked_example_of_two_steps() -> None:
    # One class, two images of one pixel each (K 1, D 1): the seeds are 2 and 6, SC = (2 − 6)² = 16, the mean is 4.
    loss = InterImageLoss(1, 1, k=1, alpha=math.log(2))
    features, maps, labels = torch.tensor([2.0, 6.0]).view(2, 1, 1, 1), torch.zeros(2, 1, 1), torch.tensor([0, 0])
    loss.centers.fill_(1.0)
    terms = loss(features, maps, labels)
    assert (terms.sc.item(), terms.gc.item()) == (16.0, 9.0)  # (4 − 1)²
    # t was 0, so the center became 4. Seeds 8 and 8: SC 0, mean 8, GC (8 − 4)² = 16.
    terms = loss(torch.full_like(features, 8.0), maps, labels)
    assert (terms.sc.item(), terms.gc.item()) == (0.0, 16.0)
    # t was 1 and η = exp(−ln 2) = ½: the center goes halfway, to 6.
    loss.commit()
    assert loss.centers.item() == pytest.approx(6.0)
    assert loss.steps.tolist() == [2]
    assert loss.draws.tolist() == [0, 2]


@pytest.mark.parametrize("distance", ["squared_l2", "l2"])
@pytest.mark.parametrize("seed_choice", ["random", "first"])
@pytest.mark.parametrize("groups", [None, [0, 0, 1, 1, 0, 2]])
def test_losses_gradients_and_bank_equal_the_loop_over_training(
    distance: Any, seed_choice: Any, groups: list[int] | None
) -> None:
    loss = make(distance=distance, seed_choice=seed_choice)
    oracle = Oracle(loss, groups)
    grouped = None if groups is None else torch.tensor(groups)
    for step in range(5):
        labels = LABELS.roll(step) if step != 3 else torch.tensor([2, 2, 2, 2, 2, -100])
        features, maps, labels = batch(step, labels)
        features.requires_grad_()
        terms = loss(features, maps, labels, groups=grouped)
        sc, gc, counts = oracle.terms(features, maps, labels)
        torch.testing.assert_close(terms.sc.double(), sc, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(terms.gc.double(), gc, rtol=1e-5, atol=1e-6)
        assert terms.counts.tolist() == counts
        (given,) = torch.autograd.grad(0.3 * terms.sc + 0.7 * terms.gc, features)
        (expected,) = torch.autograd.grad(0.3 * sc + 0.7 * gc, features)
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-6)
        loss.commit()
        oracle.commit()
        torch.testing.assert_close(loss.centers.double(), oracle.centers, rtol=1e-5, atol=1e-6)
        assert loss.steps.tolist() == oracle.steps


def test_terms_name_what_they_are() -> None:
    terms = make()(*batch())
    assert isinstance(terms, InterImageTerms)
    assert terms.sc.shape == terms.gc.shape == ()
    assert terms.counts.shape == (6,)
    assert terms.counts.dtype == torch.int32


def test_terms_do_not_depend_on_the_order_of_the_batch() -> None:
    features, maps, labels = batch()
    order = torch.tensor([5, 0, 1, 3, 2, 4])  # keeps the order inside each class
    straight = make()(features, maps, labels)
    shuffled = make()(features[order], maps[order], labels[order], image_ids=order)
    torch.testing.assert_close(shuffled.sc, straight.sc)
    torch.testing.assert_close(shuffled.gc, straight.gc)
    assert torch.equal(shuffled.counts, straight.counts[order])


def test_first_choice_takes_the_first_confident_pixels() -> None:
    # Of the row 0 9 9 9 (δ .7) the first two seeds are pixels 1 and 2 whatever the seed: values 1 and 2, 11 and 12.
    features = torch.tensor([[0.0, 1.0, 2.0, 3.0], [10.0, 11.0, 12.0, 13.0]]).view(2, 1, 1, 4)
    maps = torch.tensor([[[0.0, 9.0, 9.0, 9.0]]]).expand(2, 1, 4)
    for seed in range(3):
        loss = InterImageLoss(1, 1, k=2, seed_choice="first", seed=seed)
        loss(features, maps, torch.tensor([0, 0]))
        loss.commit()
        assert loss.centers.item() == 6.5  # (1 + 2 + 11 + 12)/4


def test_only_the_features_receive_a_gradient() -> None:
    features, _, labels = batch()
    features.requires_grad_()
    weight = torch.randn(CLASSES, CHANNELS, requires_grad=True)
    maps = label_cam(features, weight, None, labels)  # not detached: the module must do that
    loss = make()
    terms = loss(features, maps, labels)
    (terms.sc + terms.gc).backward()
    assert features.grad is not None
    assert weight.grad is None
    assert loss.centers.grad is None
    # Nothing reaches the features through the maps either: K seeds an image at most.
    touched = features.grad.ne(0).any(1).flatten(1).sum(1)
    assert touched.max() <= 2


def test_slots_give_the_same_terms_and_gradient() -> None:
    features, maps, labels = batch()
    features.requires_grad_()
    dense = make()(features, maps, labels)
    tapped, slots = tap(features, 2)
    through = make()(tapped, maps, labels, slots=slots)
    assert slots.used
    assert torch.equal(through.sc, dense.sc)
    assert torch.equal(through.gc, dense.gc)
    (expected,) = torch.autograd.grad(dense.sc + dense.gc + features.sum(), features)
    (given,) = torch.autograd.grad(through.sc + through.gc + tapped.sum(), features)
    torch.testing.assert_close(given, expected)


def test_image_ids_make_parts_of_a_batch_draw_as_the_whole() -> None:
    features, maps, labels = batch(labels=torch.tensor([0, 0, 1, 1]))
    whole = make()(features, maps, labels)
    parts = [
        make()(features[part], maps[part], labels[part], image_ids=torch.arange(4)[part])
        for part in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close((parts[0].sc + parts[1].sc) / 2, whole.sc)
    torch.testing.assert_close((parts[0].gc + parts[1].gc) / 2, whole.gc)


def test_token_features() -> None:
    features, maps, labels = batch()
    tokens = features.flatten(2).transpose(1, 2).contiguous().requires_grad_()  # [N, T, D]
    terms = make()(tokens.transpose(1, 2).unsqueeze(-1), maps, labels)
    expected = make()(features, maps, labels)
    terms.sc.backward()
    assert torch.equal(terms.sc, expected.sc)
    assert torch.equal(terms.gc, expected.gc)
    assert tokens.grad is not None


def test_channels_last_features() -> None:
    features, maps, labels = batch()
    terms = make()(features.contiguous(memory_format=torch.channels_last), maps, labels)
    assert torch.equal(terms.sc, make()(features, maps, labels).sc)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_precision_features_give_fp32_terms(dtype: torch.dtype, rounding: float) -> None:
    features, maps, labels = batch(dtype=dtype)
    features.requires_grad_()
    loss = make(threshold=0.0)
    oracle = Oracle(loss)
    terms = loss(features, maps, labels)
    sc, gc, _ = oracle.terms(features, maps, labels)
    assert terms.sc.dtype == terms.gc.dtype == torch.float32
    torch.testing.assert_close(terms.sc.double(), sc, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms.gc.double(), gc, rtol=1e-5, atol=1e-6)
    (given,) = torch.autograd.grad(terms.sc + terms.gc, features)
    exact = features.detach().double().requires_grad_()
    sc, gc, _ = oracle.terms(exact, maps, labels)
    (expected,) = torch.autograd.grad(sc + gc, exact)
    assert given.dtype == dtype
    # SC's and GC's parts may cancel, and each is rounded at its own size.
    torch.testing.assert_close(given.double(), expected, rtol=0, atol=3 * rounding * float(expected.abs().max()))
    loss.commit()
    assert loss.centers.dtype == torch.float32


def test_autocast_changes_nothing() -> None:
    expected = make()(*batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = make()(*batch())
    assert torch.equal(terms.sc, expected.sc)
    assert torch.equal(terms.gc, expected.gc)


@pytest.mark.parametrize("distance", ["squared_l2", "l2"])
def test_a_batch_without_pairs_has_sc_zero_with_a_zero_gradient(distance: Any) -> None:
    features, maps, labels = batch(labels=torch.tensor([0, 1, 2, -100]))
    features.requires_grad_()
    terms = make(distance=distance)(features, maps, labels)
    terms.sc.backward()
    assert features.grad is not None
    assert terms.sc.item() == 0
    assert terms.gc.item() > 0
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_a_batch_of_ignored_images_changes_nothing_but_the_draw() -> None:
    features, maps, labels = batch(labels=torch.tensor([-100, -100]))
    features.requires_grad_()
    loss = make()
    before = state(loss)
    terms = loss(features, maps, labels)
    (terms.sc + terms.gc).backward()
    loss.commit()
    assert features.grad is not None
    assert (terms.sc.item(), terms.gc.item()) == (0.0, 0.0)
    assert torch.equal(features.grad, torch.zeros_like(features))
    assert torch.equal(loss.centers, before["centers"])
    assert loss.draws.tolist() == [7, 1]


def test_an_empty_batch_has_zero_terms() -> None:
    loss = make()
    before = state(loss)
    terms = loss(*batch(labels=torch.zeros(0, dtype=torch.int64)))
    loss.commit()
    assert (terms.sc.item(), terms.gc.item(), len(terms.counts)) == (0.0, 0.0, 0)
    assert torch.equal(loss.centers, before["centers"])


def test_an_image_of_nan_features_spoils_no_other_class() -> None:
    features, maps, labels = batch()
    clean = make()
    clean(features, maps, labels)
    clean.commit()
    features[0] = math.nan  # class 1
    features.requires_grad_()
    loss = make()
    before = state(loss)
    terms = loss(features, maps, labels)
    (terms.sc + terms.gc).backward()
    loss.commit()
    assert features.grad is not None
    assert features.grad[[1, 3, 4, 5]].isfinite().all()
    assert torch.equal(loss.centers[1], before["centers"][1])
    assert torch.equal(loss.centers[[0, 2, 3, 4]], clean.centers[[0, 2, 3, 4]])
    assert loss.steps.tolist() == [1, 0, 0, 1, 0]


def test_a_nan_map_takes_pixel_zero_and_stays_finite() -> None:
    features, maps, labels = batch()
    maps[0] = math.nan
    terms = make()(features, maps, labels)
    assert terms.sc.isfinite() and terms.gc.isfinite()
    assert terms.counts[0] == 0


def test_constant_maps_take_their_first_pixel() -> None:
    features, _, labels = batch()
    loss = make()
    loss(features, torch.ones(6, 3, 5), labels)
    loss.commit()
    torch.testing.assert_close(loss.centers[0], features[5, :, 0, 0])


def test_label_out_of_range_makes_gc_nan_and_moves_no_center_of_its_own() -> None:
    features, maps, _ = batch(labels=torch.tensor([0, CLASSES]))
    loss = make()
    before = state(loss)
    terms = loss(features, maps, torch.tensor([0, CLASSES]))
    loss.commit()
    assert terms.gc.isnan()
    assert loss.steps.tolist() == [1, 0, 0, 0, 0]
    assert torch.equal(loss.centers[1:], before["centers"][1:])


@pytest.mark.parametrize("size", [(1, 1), (1, 2)])
def test_tiny_maps(size: tuple[int, int]) -> None:
    features, maps = torch.randn(2, CHANNELS, *size), torch.rand(2, *size)
    loss = make(k=3)
    terms = loss(features, maps, torch.tensor([0, 0]))
    sc, gc, counts = Oracle(loss).terms(features, maps, torch.tensor([0, 0]))
    torch.testing.assert_close(terms.sc.double(), sc, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms.gc.double(), gc, rtol=1e-5, atol=1e-6)
    assert terms.counts.tolist() == counts


def test_gradient_is_the_derivative() -> None:
    loss = make().eval()
    features, maps, labels = batch(dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: loss(f, maps, labels)[:2], features.requires_grad_())


def test_repr_names_the_settings() -> None:
    text = repr(make(distance="l2"))
    for part in ("num_classes=5", "feature_dim=4", "k=2", "threshold=0.4", "alpha=0.5", "distance=l2"):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, r"num_classes=0"),
        ({"feature_dim": 0}, r"feature_dim=0"),
        ({"k": 0}, r"k=0"),
        ({"threshold": 1.0}, r"threshold=1\.0"),
        ({"threshold": -0.1}, r"threshold=-0\.1"),
        ({"threshold": math.nan}, r"threshold=nan"),
        ({"alpha": -1.0}, r"alpha=-1\.0"),
        ({"alpha": math.nan}, r"alpha=nan"),
        ({"alpha": math.inf}, r"alpha=inf"),
        ({"distance": "l1"}, r"distance must be one of squared_l2, l2, got 'l1'"),
        ({"seed_choice": "last"}, r"seed_choice must be one of random, first .* got 'last'"),
        ({"center_update": "sgd"}, r"center_update one of momentum, backprop, got .* 'sgd'"),
    ],
)
def test_constructor_refuses_what_makes_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InterImageLoss(**({"num_classes": CLASSES, "feature_dim": CHANNELS} | arguments))


def test_forward_refuses_what_does_not_fit() -> None:
    features, maps, labels = batch()
    loss = make()
    before = state(loss)
    with pytest.raises(ValueError, match=r"maps are \[3, 4\] \[H, W\] but features are \[3, 5\]"):
        loss(features, maps[:, :, :4], labels)
    with pytest.raises(ValueError, match=r"maps are \[5, 3\] \[H, W\] but features are \[3, 5\]"):
        loss(features, maps.mT, labels)  # as many pixels
    with pytest.raises(ValueError, match=r"features must be floating-point with 4 dimensions, got shape \[4, 3, 5\]"):
        loss(features[0], maps, labels)
    with pytest.raises(ValueError, match=r"maps must be floating-point with 3 dimensions"):
        loss(features, maps[:, None], labels)
    with pytest.raises(ValueError, match=r"len\(maps\) is 5 but len\(features\) is 6"):
        loss(features, maps[:5], labels)
    with pytest.raises(ValueError, match=r"len\(labels\) is 5 but len\(features\) is 6"):
        loss(features, maps, labels[:5])
    with pytest.raises(ValueError, match=r"features\.shape\[1\] is 3 but feature_dim is 4"):
        loss(features[:, :3], maps, labels)
    with pytest.raises(ValueError, match=r"labels must be int32 or int64 .* torch\.float32"):
        loss(features, maps, labels.float())
    with pytest.raises(ValueError, match=r"labels on meta"):
        loss(features, maps, labels.to("meta"))
    with pytest.raises(ValueError, match=r"maps on meta, labels on cpu, InterImageLoss on cpu"):
        loss(features, maps.to("meta"), labels)
    loss.commit()
    assert same(state(loss), before)  # a refused batch leaves nothing pending
