"""PxAP, against histograms of all pixels and by hand."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from i2c_fast.data import MaskPaths
from i2c_fast.evaluation import PixelAveragePrecision, WsolEvaluationProtocol, combine_masks, read_mask

from .maps import cam
from .opencv_loops import MaskEvaluator, normalized


def random_mask(seed: int) -> np.ndarray:
    """Objects where another smooth map is high, ignored where a third one is."""
    mask = (normalized(cam(seed + 100, 14, 14)) > 0.6).astype(np.uint8)
    mask[(normalized(cam(seed + 200, 14, 14)) > 0.7) & (mask == 0)] = 255
    return mask


def batch(count: int, start: int = 0) -> tuple[torch.Tensor, list[np.ndarray]]:
    maps = np.stack([cam(start + i, 14, 28) for i in range(count)])
    return torch.from_numpy(maps), [random_mask(start + i) for i in range(count)]


def pxap(maps: torch.Tensor, masks: list[np.ndarray], interval: float = 0.001) -> float:
    found = PixelAveragePrecision(WsolEvaluationProtocol(interval))
    found.update(maps, masks)
    return found.compute()


@pytest.mark.parametrize("interval", [0.001, 0.01, 0.3])
def test_equals_the_evaluators_histograms(interval: float) -> None:
    maps, masks = batch(12)
    theirs = MaskEvaluator(interval)
    for raw, mask in zip(maps.numpy(), masks, strict=True):
        theirs.add(raw, mask)
    assert pxap(maps, masks, interval) == pytest.approx(theirs.pxap(), rel=1e-12)
    assert 5 < theirs.pxap() < 95


def test_equals_average_precision_of_single_pixels_where_bins_part_all_values() -> None:
    # Whole thousandths, moved into the middle of their bins.
    values = (np.random.default_rng(0).integers(0, 999, (224, 224)) + 0.5) / 1000
    values[0, 0], values[0, 1] = 0, 1
    mask = (np.random.default_rng(1).random((224, 224)) < values).astype(np.uint8)
    scores, order = values.ravel(), np.argsort(-values.ravel(), kind="stable")
    right, last = mask.ravel()[order].cumsum(), np.append(np.diff(scores[order]) != 0, True)
    precision, recall = (right / np.arange(1, right.size + 1))[last], (right / right[-1])[last]
    expected = 100 * (np.diff(recall, prepend=0) * precision).sum()
    assert pxap(torch.from_numpy(values)[None], [mask]) == pytest.approx(expected, rel=1e-12)


def test_by_hand() -> None:
    # Rows of 1, of .5 and of 0: the object has all of the first and half of the second.
    values, mask = np.zeros((224, 224)), np.zeros((224, 224), np.uint8)
    values[:10], values[10:30] = 1, 0.5
    mask[:20] = 1
    assert pxap(torch.from_numpy(values)[None], [mask]) == pytest.approx(100 * (0.5 * 1 + 0.5 * 20 / 30))


def test_perfect_map_has_all_and_its_opposite_the_share_of_the_object() -> None:
    mask = np.zeros((224, 224), np.uint8)
    mask[50:106] = 1
    perfect = torch.from_numpy(mask.astype(np.float32))[None]
    assert pxap(perfect, [mask]) == 100
    assert pxap(1 - perfect, [mask]) == pytest.approx(25)
    assert pxap(torch.zeros(1, 28, 28), [mask]) == pytest.approx(25)  # a constant map tells nothing


def test_ignored_pixels_do_not_count() -> None:
    maps, (mask,) = batch(1)
    at_full_size = torch.from_numpy(normalized(maps[0].numpy()))[None]
    spoiled = at_full_size.clone()
    assert (mask == 255).any()
    spoiled[0][torch.from_numpy(mask == 255)] = 1
    assert pxap(spoiled, [mask]) == pxap(at_full_size, [mask])
    assert pxap(spoiled, [np.where(mask == 255, 0, mask)]) < pxap(spoiled, [mask])


def test_pixels_of_all_images_are_ranked_together() -> None:
    mask = np.zeros((224, 224), np.uint8)
    mask[:56] = 1
    perfect = torch.from_numpy(mask.astype(np.float32))
    # 100 and 25 alone; together the brightest pixels are the object's in one case of four, and so are the others.
    assert pxap(torch.stack([perfect, 1 - perfect]), [mask, mask]) == pytest.approx(25)


def test_shards_merge_exactly_in_any_order() -> None:
    whole = pxap(*batch(9))
    for order in ([0, 3, 6], [6, 0, 3]):
        first, *others = (PixelAveragePrecision() for _ in order)
        for shard, start in zip([first, *others], order, strict=True):
            shard.update(*batch(3, start))
        for shard in others:
            first.merge_state(shard)
        assert first.compute() == whole


def test_reset_forgets() -> None:
    found = PixelAveragePrecision()
    found.update(*batch(2, 5))
    found.reset()
    found.update(*batch(2))
    assert found.compute() == pxap(*batch(2))


def test_other_bins_do_not_mix() -> None:
    with pytest.raises(ValueError, match="other thresholds"):
        PixelAveragePrecision().merge_state(PixelAveragePrecision(WsolEvaluationProtocol(0.01)))


def test_no_object_is_an_error() -> None:
    with pytest.raises(ValueError, match="pixel of an object"):
        pxap(torch.rand(1, 9, 9), [np.zeros((224, 224), np.uint8)])


def test_masks_of_0_and_255_are_told_from_ignored_pixels() -> None:
    mask = np.zeros((224, 224), np.uint8)
    mask[:5] = 255
    with pytest.raises(
        ValueError, match=r"no mask has a pixel of an object \(1\), 1120 of 255 \(ignored\); .*combine_"
    ):
        pxap(torch.rand(1, 9, 9), [mask])
    assert pxap(torch.rand(1, 9, 9), [combine_masks([mask])]) > 0


@pytest.mark.parametrize(
    "masks",
    [[], [np.zeros((200, 224), np.uint8)], [np.full((224, 224), 7, np.uint8)], [np.zeros((224, 224), np.uint8)] * 2],
)
def test_masks_that_do_not_fit_are_refused(masks: list[np.ndarray]) -> None:
    found = PixelAveragePrecision()
    with pytest.raises(ValueError, match=r"masks"):
        found.update(torch.rand(1, 9, 9), masks)


def test_masks_combine_as_the_evaluator_does() -> None:
    rng = np.random.default_rng(0)
    masks = [(cv2.resize(rng.random((5, 6)), (90, 60)) > 0.6).astype(np.uint8) * 255 for _ in range(3)]
    ignore = (cv2.resize(rng.random((5, 6)), (90, 60)) > 0.5).astype(np.uint8) * 255

    def resized(mask: np.ndarray) -> np.ndarray:
        return cv2.resize(mask.astype(np.float32), (224, 224), interpolation=cv2.INTER_NEAREST) > 0.5

    objects = resized(masks[0]) | resized(masks[1]) | resized(masks[2])
    expected = np.where(objects, 1, np.where(resized(ignore), 255, 0))
    np.testing.assert_array_equal(combine_masks(masks, ignore), expected)
    np.testing.assert_array_equal(combine_masks(masks), objects)
    assert combine_masks(masks, side=28).shape == (28, 28)


@pytest.mark.parametrize(
    ("masks", "message"), [([], "at least one mask"), ([np.zeros((4, 4, 3), np.uint8)], r"\[H, W\]")]
)
def test_masks_that_do_not_combine_are_refused(masks: list[np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        combine_masks(masks)


@pytest.mark.parametrize("name", ["mask.png", "mask.jpg"])
def test_mask_files_decode_to_gray_as_the_evaluators_do(tmp_path: Path, name: str) -> None:
    # Every color near black, in blocks of 8 x 8 that JPEG keeps apart: gray rounds some to 0 and some to 1.
    colors = np.stack(np.meshgrid(*[np.arange(6)] * 3), -1).reshape(-1, 3).astype(np.uint8)
    image = np.kron(colors.reshape(12, 18, 3), np.ones((8, 8, 1), np.uint8))
    cv2.imwrite(str(tmp_path / name), image)
    theirs = cv2.imread(str(tmp_path / name), cv2.IMREAD_GRAYSCALE)
    assert theirs is not None
    mask = read_mask(tmp_path, MaskPaths((name,), None))
    expected = cv2.resize(np.float32(theirs), (224, 224), interpolation=cv2.INTER_NEAREST) > 0.5
    np.testing.assert_array_equal(mask, expected)
    assert 0 < expected.mean() < 1
