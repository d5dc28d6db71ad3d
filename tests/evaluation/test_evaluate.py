"""Evaluation of a split: a model whose maps and scores are known gives known verdicts, however it is loaded."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch import Tensor, nn

from i2c_fast.data import ImageIndex, read_image, read_split
from i2c_fast.errors import UserError
from i2c_fast.evaluation import PaperProtocol, Scores, evaluate
from i2c_fast.evaluation.boxes import Boxes, Gray
from i2c_fast.evaluation.evaluate import ten_crop_scores
from i2c_fast.models import build_localizer
from i2c_fast.runtime import Runtime

SIDE = 32  # of the stored images and of the maps, so that maps are not resized
CORE, HALO = (6, 8, 17, 15), (2, 4, 21, 25)  # class 0's boxes at high and low thresholds
SHIFT = 4  # every further class has its map this much further right
CPU = Runtime(torch.device("cpu"))


def known_maps() -> Tensor:
    """[3, S, S]: zero, .5 in the halo, 1 in the core; in gray levels 0, 127 and 255."""
    maps = torch.zeros(3, SIDE, SIDE)
    for label in range(3):
        for (x0, y0, x1, y1), value in ((HALO, 0.5), (CORE, 1.0)):
            maps[label, y0 : y1 + 1, x0 + SHIFT * label : x1 + 1 + SHIFT * label] = value
    return maps


class KnownModel(nn.Module):
    """Gives every image the same scores and, by class, the same maps."""

    def __init__(self, logits: list[float] | Callable[[Tensor], Tensor], maps: Tensor | None = None) -> None:
        super().__init__()
        self.maps = known_maps() if maps is None else maps
        self.logits = logits
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        self.seen.append(images)
        return self.logits(images) if callable(self.logits) else torch.tensor(self.logits).expand(len(images), -1)

    def class_maps(self, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        assert len(images) == len(classes)
        return self(images), self.maps[classes]


def moved(box: tuple[int, ...], label: int) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0 + SHIFT * label, y0, x1 + SHIFT * label, y1]


@pytest.fixture
def index(tiny_set: Path) -> ImageIndex:
    """Labels 0 1 2 0 1 2 …; boxes are the core of the label's map, then the halo, then none, then two."""
    split = read_split(tiny_set, "val")
    assert split.labels.tolist() == [0, 1, 2] * 4
    boxes: list[list[list[float]]] = []
    for i, label in enumerate(split.labels.tolist()):
        far = [0.0, 28.0, 1.0, 31.0]
        boxes.append([[moved(CORE, label)], [moved(HALO, label)], [], [far, moved(CORE, label)]][i // 3])
    return replace(split, boxes=tuple(np.array(b, np.float32).reshape(-1, 4) for b in boxes))


def run(model: nn.Module, index: ImageIndex, batch_size: int = 5, workers: int = 0, **options: Any) -> Scores:
    options = {"image_size": SIDE, **options}
    return evaluate(model, index, CPU, PaperProtocol(), batch_size=batch_size, workers=workers, **options)


def test_known_maps_give_known_verdicts_at_every_threshold(index: ImageIndex) -> None:
    scores = run(KnownModel([2, 3, 1]), index)
    core, halo = [False] * 127 + [True] * 128, [True] * 127 + [False] * 128
    assert scores.hits.tolist() == [core] * 3 + [halo] * 3 + [[False] * 255] * 3 + [core] * 3
    assert scores.boxed.tolist() == [True] * 6 + [False] * 3 + [True] * 3
    assert (scores.protocol, scores.thresholds.tolist()) == ("paper", list(range(255)))


def test_known_scores_give_known_ranks_and_errors(index: ImageIndex) -> None:
    scores = run(KnownModel([2, 3, 1]), index)
    assert scores.ranks.tolist() == [1, 0, 2] * 4
    summary = scores.summary()
    assert summary["cls_top1"] == pytest.approx(100 * 2 / 3)
    assert summary["cls_top5"] == 0
    # Core boxes serve six of the nine boxed images, of which two are of the class that is predicted.
    assert summary["gt_known"]["error"] == pytest.approx(100 * 3 / 9)
    assert summary["loc_top1"]["error"] == pytest.approx(100 * 7 / 9)
    assert summary["gt_known"]["threshold"] == 190  # the middle of 127 … 254


def test_the_labels_own_map_is_judged(index: ImageIndex) -> None:
    # A core four pixels off shares 8 of 16 columns with the true one: exactly one half, which is not enough.
    of_other_classes = known_maps().roll(1, dims=0)
    assert not run(KnownModel([2, 3, 1], of_other_classes), index).hits[:3].any()


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (4, 1), (12, 0), (5, 2), (100, 2)])
def test_batch_size_and_workers_do_not_change_the_result(index: ImageIndex, batch_size: int, workers: int) -> None:
    def means(images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3))  # differs from image to image

    expected, found = run(KnownModel(means), index), run(KnownModel(means), index, batch_size, workers)
    np.testing.assert_array_equal(found.hits, expected.hits)
    np.testing.assert_array_equal(found.ranks, expected.ranks)
    assert len(set(expected.ranks.tolist())) > 1


@pytest.mark.parametrize("training", [False, True])
def test_training_mode_is_restored(index: ImageIndex, training: bool) -> None:
    model = KnownModel([1, 2, 3]).train(training)
    run(model, index)
    assert model.training == training


def test_training_mode_is_restored_after_a_failure(index: ImageIndex) -> None:
    model = KnownModel([1, 2, 3]).train()
    with pytest.raises(UserError):
        run(model, replace(index, root=index.root / "nowhere"))
    assert model.training


def test_failure_while_boxing_is_not_swallowed(index: ImageIndex) -> None:
    class Failing(PaperProtocol):
        def boxes(self, gray: Gray) -> Boxes:
            raise ValueError("no boxes today")

    with pytest.raises(ValueError, match="no boxes today"):
        evaluate(KnownModel([1, 2, 3]), index, CPU, Failing(), image_size=SIDE, batch_size=5, workers=2)


def test_observer_sees_every_image_once_with_its_map_and_scores(index: ImageIndex) -> None:
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    run(KnownModel([1, 2, 3]), index, batch_size=5, observe=lambda *batch: seen.append(batch))
    images, maps, scores = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert [len(batch[0]) for batch in seen] == [5, 5, 2] and images.tolist() == list(range(12))
    assert torch.equal(maps, known_maps()[torch.from_numpy(index.labels)])
    assert torch.equal(scores, torch.tensor([1.0, 2, 3]).expand(12, 3))


def test_split_without_boxes_still_gives_class_errors(index: ImageIndex) -> None:
    bare = replace(index, boxes=tuple(boxes[:0] for boxes in index.boxes))
    summary = run(KnownModel([2, 3, 1]), bare).summary()
    assert summary["images_with_boxes"] == 0
    assert summary["cls_top1"] == pytest.approx(100 * 2 / 3)


@pytest.mark.parametrize("score", [0.0, float("nan"), float("inf"), -float("inf")])
def test_model_that_gives_all_classes_one_score_recognizes_nothing(index: ImageIndex, score: float) -> None:
    assert run(KnownModel([score] * 3), index).classification_error(1) == 100


def test_map_of_nan_has_no_right_box(index: ImageIndex) -> None:
    assert not run(KnownModel([1, 2, 3], torch.full((3, SIDE, SIDE), float("nan"))), index).hits.any()


def test_images_arrive_as_stored_and_square(index: ImageIndex) -> None:
    model = KnownModel([1, 2, 3])
    run(model, index)
    assert [images.shape for images in model.seen] == [(5, 3, 32, 32), (5, 3, 32, 32), (2, 3, 32, 32)]
    np.testing.assert_array_equal(model.seen[1][1].permute(1, 2, 0), read_image(index.file(6)))


def test_small_maps_are_scored_in_the_frame_of_the_stored_image(tmp_path: Path) -> None:
    for name in ("train/cat/a.png", "val/cat/a.png", "val/cat/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    Pillow.new("RGB", (60, 20)).save(tmp_path / "val/cat/a.png")
    Pillow.new("RGB", (20, 60)).save(tmp_path / "val/cat/b.png")
    Pillow.new("RGB", (9, 9)).save(tmp_path / "train/cat/a.png")
    (tmp_path / "boxes.csv").write_text("val/cat/a.png,0,0,29,19\nval/cat/b.png,0,0,9,59\n")
    scores = run(KnownModel([0.0], torch.tensor([[[1.0, 0.0]]])), read_split(tmp_path, "val"))
    assert scores.hits[:, 127].tolist() == [True, True]


# Ten crops


def test_ten_crops_are_corners_and_center_and_their_mirror_images() -> None:
    images = torch.arange(2 * 3 * 7 * 7).reshape(2, 3, 7, 7).float()
    model = KnownModel([0.0, 0.0]).eval()
    with torch.no_grad():
        ten_crop_scores(model, images, 4)
    expected = [images[..., y : y + 4, x : x + 4] for y, x in ((0, 0), (0, 3), (3, 0), (3, 3), (1, 1))]
    expected += [crop.flip(3) for crop in expected]
    assert len(model.seen) == 10
    for crop in expected:
        assert sum(torch.equal(crop, view) for view in model.seen) == 1


@torch.no_grad()
def test_ten_crop_scores_are_mean_probabilities() -> None:
    # The logit of class 0 is the top left pixel of each view; 3 x 3 pixels hold crops of 2.
    images = torch.tensor([[0.0, 1, 2], [3, 4, 5], [6, 7, 8]]).mul(0.1).expand(1, 3, 3, 3)
    model = KnownModel(lambda views: torch.stack([views[:, 0, 0, 0], torch.zeros(len(views))], 1)).eval()
    corners = torch.tensor([0.0, 1, 3, 4, 0]) * 0.1  # the center's crop starts at (0, 0) too
    mirrored = torch.tensor([1.0, 2, 4, 5, 1]) * 0.1
    first = torch.cat([corners, mirrored]).sigmoid().mean()
    torch.testing.assert_close(ten_crop_scores(model, images, 2), torch.stack([first, 1 - first])[None])


def test_ten_views_are_cut_from_an_enlarged_image_and_maps_are_of_the_whole(index: ImageIndex) -> None:
    maps = torch.nn.functional.interpolate(known_maps()[None], (56, 56))[0]
    model = KnownModel([2, 3, 1], maps)
    scores = run(model, index, batch_size=12, image_size=56, ten_crop=True)
    assert [tuple(view.shape) for view in model.seen] == [(12, 3, 56, 56)] * 11
    whole, views = model.seen[0], model.seen[1:]
    assert not any(torch.equal(whole, view) for view in views)
    assert len({view.numpy().tobytes() for view in views}) == 10
    # Opposite corners of 56 in 64 pixels share 48 x 48 pixels.
    torch.testing.assert_close(views[0][..., 8:, 8:], views[6][..., :48, :48])
    assert scores.ranks.tolist() == [1, 0, 2] * 4


def test_ten_crop_changes_scores_and_not_the_known_maps_verdicts(index: ImageIndex) -> None:
    def top_left_color(images: Tensor) -> Tensor:
        return images[:, :, 0, 0] / 255  # another one in each view

    plain, ten = (run(KnownModel(top_left_color), index, ten_crop=ten_crop) for ten_crop in (False, True))
    np.testing.assert_array_equal(plain.hits, ten.hits)
    assert (plain.ranks != ten.ranks).any()


def test_modules_frozen_in_evaluation_mode_stay_frozen(tiny_set: Path) -> None:
    model = build_localizer("resnet18", 3)
    model.train()
    model.body.eval()
    index = read_split(tiny_set, "val")
    evaluate(model, index, Runtime(torch.device("cpu")), PaperProtocol(64), image_size=32, batch_size=6, workers=0)
    assert model.training
    assert model.head.training
    assert not any(module.training for module in model.body.modules())


def test_ten_crop_changes_class_scores_alone(tiny_set: Path) -> None:
    torch.manual_seed(1)
    model, index = build_localizer("resnet18", 3), read_split(tiny_set, "val")
    runtime, sizes = Runtime(torch.device("cpu")), {"image_size": 32, "batch_size": 5, "workers": 0}
    one = evaluate(model, index, runtime, PaperProtocol(16), **sizes)
    ten = evaluate(model, index, runtime, PaperProtocol(16), ten_crop=True, **sizes)
    assert (one.hits == ten.hits).all()
