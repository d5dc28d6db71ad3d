"""Saved maps scored by lists alone: as the standard evaluator would, whatever the files look like."""

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from i2c_fast.errors import UserError
from i2c_fast.evaluation import PaperProtocol, WsolEvaluationProtocol, score_maps, score_masks
from i2c_fast.evaluation.score_maps import in_order

from .opencv_loops import BoxEvaluator, MaskEvaluator, normalized
from .saved_set import COUNT, Saved, boxes_of, image_id, label_of, raw_map, size_of, write_lines, write_saved


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    return write_saved(tmp_path)


def score(saved: Saved, **options: Any) -> Any:
    return score_maps(saved.maps, saved.metadata, **{"resize": True, "threads": 2, **options})


def mistake(saved: Saved, pattern: str, **options: Any) -> None:
    with pytest.raises(UserError, match=pattern) as caught:
        score(saved, **options)
    assert "\n" not in str(caught.value)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# What comes out


def test_accuracies_equal_the_evaluators_loop(saved: Saved) -> None:
    theirs = BoxEvaluator(0.01)
    for i in range(COUNT):
        theirs.add(raw_map("test", i), size_of(i), boxes_of("test", i))
    summary = score(saved, protocol=WsolEvaluationProtocol(0.01)).summary()
    assert summary["max_box_acc"] == theirs.max_box_acc()
    assert summary["max_box_acc_v2"]["accuracy"] == theirs.max_box_acc_v2()
    assert theirs.max_box_acc() > 0 and summary["images_with_boxes"] == COUNT


@pytest.mark.parametrize("protocol", [PaperProtocol(), WsolEvaluationProtocol()])
def test_scores_are_the_protocols_verdicts(saved: Saved, protocol: Any) -> None:
    found = score(saved, protocol=protocol)
    for i in range(COUNT):
        gt_boxes = np.array(boxes_of("test", i), np.float32)
        verdict = protocol.verdict(raw_map("test", i), *size_of(i), gt_boxes)
        np.testing.assert_array_equal(found.hits[i], verdict.box)
        if verdict.contours is not None:
            np.testing.assert_array_equal(found.contour_hits[i], verdict.contours)
    assert found.hits.any() and not found.hits.all()


@pytest.mark.parametrize("threads", [1, 3])
def test_normalized_maps_of_full_size_need_no_resizing(tmp_path: Path, threads: int) -> None:
    raw = write_saved(tmp_path / "raw")
    full = write_saved(tmp_path / "full", lambda split, i: normalized(raw_map(split, i)))
    expected, found = score(raw), score(full, resize=False, threads=threads)
    np.testing.assert_array_equal(found.hits, expected.hits)
    np.testing.assert_array_equal(found.contour_hits, expected.contour_hits)


def test_paper_protocol_takes_maps_of_the_images_size(tmp_path: Path) -> None:
    def enlarged(split: str, i: int) -> np.ndarray:
        return cv2.resize(raw_map(split, i), size_of(i), interpolation=cv2.INTER_LINEAR)

    full = write_saved(tmp_path, enlarged)
    assert score(full, protocol=PaperProtocol(), resize=False).hits.any()
    mistake(full, r"0\.JPEG\.npy is 40 × 60, expected 224 × 224; --resize", resize=False)


def test_form_of_the_files_does_not_matter(saved: Saved, tmp_path: Path) -> None:
    expected = score(saved)
    arrays = {image_id("test", i): raw_map("test", i) for i in range(COUNT)}
    np.savez(tmp_path / "all.npz", **arrays)
    for i in range(COUNT):
        saved.file(i).unlink()
        np.savez_compressed(saved.file(i).with_suffix(".npz"), raw_map("test", i).astype(">f4", order="F"))
    np.testing.assert_array_equal(score(saved).hits, expected.hits)
    archive = saved._replace(maps=tmp_path / "all.npz")
    np.testing.assert_array_equal(score(archive).hits, expected.hits)


def test_maps_of_half_precision_and_whole_numbers_are_scored_as_their_values(tmp_path: Path) -> None:
    def coarse(split: str, i: int) -> np.ndarray:
        return (raw_map(split, i) * 200).astype(np.uint8)

    expected = score(write_saved(tmp_path / "u1", coarse))
    half = score(write_saved(tmp_path / "f2", lambda split, i: coarse(split, i).astype(np.float16)))
    np.testing.assert_array_equal(half.hits, expected.hits)


def test_progress_counts_every_image(saved: Saved) -> None:
    seen: list[int] = []
    score(saved, progress=seen.append)
    assert seen == [1] * COUNT


# Splits and thresholds


def test_split_is_test_unless_there_is_none(saved: Saved) -> None:
    assert score(saved).hits.tolist() == score(saved, split="test").hits.tolist()
    assert score(saved).hits.tolist() != score(saved, split="val").hits.tolist()
    shutil.rmtree(saved.lists("test"))
    assert score(saved).hits.tolist() == score(saved, split="val").hits.tolist()


def test_metadata_may_lie_a_folder_deeper(saved: Saved, tmp_path: Path) -> None:
    saved.metadata.rename(tmp_path / "CUB")
    (tmp_path / "metadata").mkdir()
    (tmp_path / "CUB").rename(tmp_path / "metadata/CUB")
    assert len(score(saved).hits) == COUNT
    mistake(saved, "--metadata: .* has no folder train with image_ids.txt", split="train")
    mistake(saved._replace(metadata=tmp_path / "gone"), "--metadata: .*gone is not a folder")


def test_thresholds_of_another_split_are_the_ones_that_serve_it_best(saved: Saved) -> None:
    test, val = score(saved), score(saved, split="val")
    summary = test.summary(val, "val")
    best = val.best_index("gt_known")
    assert summary["thresholds_chosen_on"] == "val"
    assert summary["gt_known"]["threshold"] == val.thresholds[best]
    assert summary["gt_known"]["error"] == pytest.approx(100 * (1 - test.hits[:, best].mean()))


# Predictions


def predictions(path: Path, ranks: list[int], header: str = "image_id,classes") -> Path:
    """Lists in which the label of image i has the rank ranks[i]."""
    lines = [header] if header else []
    for i, rank in enumerate(ranks):
        others = [c for c in range(7) if c != label_of(i)]
        classes = [*others[:rank], label_of(i), *others[rank:]][:5]
        lines.append(",".join([image_id("test", i), *map(str, classes)]))
    write_lines(path, *lines)
    return path


@pytest.mark.parametrize("header", ["image_id,classes", ""])
def test_predictions_give_ranks(saved: Saved, tmp_path: Path, header: str) -> None:
    found = score(saved, predictions=predictions(tmp_path / "p.csv", [0, 1, 4, 0, 6, 5], header))
    assert found.classification_error(1) == pytest.approx(100 * 4 / 6)
    assert found.classification_error(5) == pytest.approx(100 * 2 / 6)
    assert found.ranks[:4].tolist() == [0, 1, 4, 0]


def test_without_predictions_no_figure_needs_them(saved: Saved) -> None:
    summary = score(saved).summary()
    assert {"gt_known", "max_box_acc", "max_box_acc_v2"} <= set(summary)
    assert not {"cls_top1", "cls_top5", "loc_top1", "loc_top5"} & set(summary)


@pytest.mark.parametrize(
    ("old", "new", "pattern"),
    [
        (
            "test/class 1/1.JPEG",
            "test/class 1/9.JPEG",
            r"p\.csv has no line for 1 of 6 images, the first test/class 1/1",
        ),
        ("test/class 1/1.JPEG", "test/class 0/0.JPEG", r"p\.csv:3: test/class 0/0\.JPEG is listed twice"),
        ("1.JPEG,0,3,1", "1.JPEG,3,3,1", "test/class 1/1.JPEG needs at least 5 different classes"),
        ("1.JPEG,0,3,1,2,4", "1.JPEG,3,1,2,4", "needs at least 5 different classes"),
        ("1.JPEG,0,3,1,2,4", "1.JPEG,cat", r"p\.csv:3: expected image_id,class,class,… with the best class first"),
        ("1.JPEG,0,3,1,2,4", "1.JPEG," + "9" * 5000, r"p\.csv:3: expected image_id"),
    ],
)
def test_predictions_that_do_not_fit(saved: Saved, tmp_path: Path, old: str, new: str, pattern: str) -> None:
    path = predictions(tmp_path / "p.csv", [1] * COUNT)
    edit(path, old, new)
    mistake(saved, pattern, predictions=path)


def test_id_with_commas_keeps_them(tmp_path: Path) -> None:
    saved = write_saved(tmp_path)
    for name in ("image_ids.txt", "class_labels.txt", "image_sizes.txt", "localization.txt"):
        path = saved.lists() / name
        path.write_text(path.read_text().replace("0.JPEG", "a,b 1.JPEG"))
    saved.file(0).rename(saved.file(0).with_name("a,b 1.JPEG.npy"))
    path = predictions(tmp_path / "p.csv", [0] * COUNT)
    edit(path, "0.JPEG", "a,b 1.JPEG")
    assert score(saved, predictions=path).classification_error(1) == 0


# Lists and maps that do not fit


@pytest.mark.parametrize(
    ("name", "old", "new", "pattern"),
    [
        ("image_ids", "1/1.JPEG", "0/0.JPEG", r"image_ids\.txt: image test/class 0/0\.JPEG is listed twice"),
        ("image_ids", "test/class 1/1.JPEG", "../../etc/passwd", r"image path '\.\./\.\./etc/passwd' leaves its root"),
        ("image_ids", "test/class 1/1.JPEG", "/etc/passwd", "image path '/etc/passwd' leaves its root"),
        ("image_ids", "test/class 1/1.JPEG", "a\0b", r"image path 'a\\x00b' leaves its root or is not plain"),
        ("image_ids", "1/1.JPEG", "1/new.JPEG", r"localization\.txt has no line for test/class 1/new\.JPEG"),
        ("image_sizes", "1/1.JPEG", "1/new.JPEG", r"image_sizes\.txt has no line for test/class 1/1\.JPEG"),
        ("image_sizes", "0.JPEG,40,60", "0.JPEG,-4,60", r"image_sizes\.txt:1: expected path,width,height"),
        (
            "image_sizes",
            "0.JPEG,40,60",
            "0.JPEG,40,20",
            r"localization\.txt:1: box .* does not lie in its image of 40 ×",
        ),
        (
            "localization",
            "test/class 0/0.JPEG,",
            "test/class 0/0.JPEG,9",
            "does not lie in its image of 40 × 60 pixels",
        ),
        ("localization", "test/class 0/0.JPEG,", "test/class 0/0.JPEG,-", r"localization\.txt:1: box -"),
        ("localization", "test/class 0/0.JPEG,", "test/class 0/0.JPEG,nan,", "has no line|expected path|does not lie"),
        ("localization", "test/class 0/0.JPEG,", "mask.png,", r"expected path,x0,y0,x1,y1|has no line"),
    ],
)
def test_lists_that_do_not_fit(saved: Saved, name: str, old: str, new: str, pattern: str) -> None:
    edit(saved.lists() / f"{name}.txt", old, new)
    mistake(saved, pattern)


@pytest.mark.parametrize("name", ["image_ids", "image_sizes", "localization"])
def test_missing_and_empty_lists(saved: Saved, name: str) -> None:
    (saved.lists() / f"{name}.txt").write_text("")
    mistake(saved, rf"{name}\.txt is empty|{name}\.txt has no line for test/class 0/0\.JPEG")
    (saved.lists() / f"{name}.txt").unlink()
    mistake(saved, rf"cannot read .*{name}\.txt: No such file|{name}\.txt has no line")


def test_masks_ask_for_their_option(saved: Saved) -> None:
    write_lines(saved.lists() / "localization.txt", f"{image_id('test', 0)},a.png,b.png")
    mistake(saved, r"expected path,x0,y0,x1,y1 \(masks need --masks\)")


def test_image_too_large_to_bring_maps_to(saved: Saved) -> None:
    edit(saved.lists() / "image_sizes.txt", "0.JPEG,40,60", "0.JPEG,4000000,6000000")
    mistake(saved, r"0\.JPEG has 4000000 × 6000000 pixels; the most is", protocol=PaperProtocol())


def test_map_with_nan_names_its_file(saved: Saved) -> None:
    raw = raw_map("test", 3)
    raw[2, 5] = np.nan
    np.save(saved.file(3), raw)
    mistake(saved, r"class 1/3\.JPEG\.npy holds 1 values that are NaN or infinite, first at row, column \[2, 5\]")


def test_missing_maps_are_known_before_any_is_read(saved: Saved) -> None:
    saved.file(0).write_bytes(b"no array")
    for i in range(1, COUNT):
        saved.file(i).unlink()
    mistake(saved, "has no map for 5 of 6 images: test/class 1/1.JPEG, test/class 0/2.JPEG, test/class 1/3.JPEG, …")


def test_maps_nobody_asked_for_are_passed_over(saved: Saved) -> None:
    (saved.maps / "test/stranger.JPEG.npy").write_bytes(b"no array")
    assert len(score(saved).hits) == COUNT


# Masks


def mask_of(i: int, part: int) -> np.ndarray:
    image = np.zeros((60, 50), np.uint8)
    image[10 * part : 10 * part + 20, 5 + i : 25 + i] = 255
    return image


@pytest.fixture
def masked(saved: Saved, tmp_path: Path) -> Saved:
    """Images with one or two masks, and an ignore mask with every other."""
    lines = []
    for i in range(COUNT):
        for part in range(1 + i % 2):
            cv2.imwrite(str(tmp_path / f"mask{i}{part}.png"), mask_of(i, part))
            ignore = f"mask{i}9.png" if part == 0 and i % 3 == 0 else ""
            lines.append(f"{image_id('test', i)},mask{i}{part}.png,{ignore}")
        cv2.imwrite(str(tmp_path / f"mask{i}9.png"), mask_of(i, 3))
    write_lines(saved.lists() / "localization.txt", *lines)
    return saved


def pxap(saved: Saved, **options: Any) -> dict[str, Any]:
    options = {"resize": True, "threads": 2, **options}
    return score_masks(saved.maps, saved.metadata, saved.maps.parent, **options)


def mask_mistake(saved: Saved, pattern: str, **options: Any) -> None:
    with pytest.raises(UserError, match=pattern) as caught:
        pxap(saved, **options)
    assert "\n" not in str(caught.value)


def test_pxap_equals_the_evaluators_histograms(masked: Saved) -> None:
    def resized(i: int, part: int) -> np.ndarray:
        return cv2.resize(mask_of(i, part), (224, 224), interpolation=cv2.INTER_NEAREST) > 0

    theirs = MaskEvaluator()
    for i in range(COUNT):
        objects = np.any([resized(i, part) for part in range(1 + i % 2)], axis=0)
        ignored = resized(i, 3) & ~objects if i % 3 == 0 else np.zeros_like(objects)
        theirs.add(raw_map("test", i), np.where(objects, 1, np.where(ignored, 255, 0)))
    found = pxap(masked)
    assert found == {"protocol": "wsolevaluation", "images": COUNT, "pxap": pytest.approx(theirs.pxap(), rel=1e-12)}
    assert found == pxap(masked, threads=1)


def test_masks_that_do_not_fit(masked: Saved, tmp_path: Path) -> None:
    mask_mistake(masked, r"0\.JPEG\.npy is 12 × 12, expected 224 × 224; --resize", resize=False)
    lists = masked.lists() / "localization.txt"
    original = lists.read_text()
    for old, new, pattern in (
        ("mask00.png,mask09.png", "mask00.png", r"localization\.txt:1: expected path,mask,ignore"),
        ("mask00.png,", ",", r"localization\.txt:1: expected path,mask,ignore"),
        ("mask11.png,", "mask11.png,mask19.png", "has an ignore mask on its first line already"),
        ("mask00.png", "../mask00.png", r"image path '\.\./mask00\.png' leaves its root"),
        ("mask00.png", "gone.png", r"gone\.png: No such file"),
        ("mask00.png", "metadata/test/image_ids.txt", r"image_ids\.txt: is no JPEG, PNG"),
    ):
        edit(lists, old, new)
        mask_mistake(masked, pattern)
        lists.write_text(original)
    (tmp_path / "mask00.png").unlink()
    (tmp_path / "mask00.png").symlink_to("/etc/hostname")
    mask_mistake(masked, r"mask00\.png leads out of")


def test_masks_without_any_object(masked: Saved, tmp_path: Path) -> None:
    for path in tmp_path.glob("mask*.png"):
        cv2.imwrite(str(path), np.zeros((9, 9), np.uint8))
    mask_mistake(masked, r"localization\.txt: no mask has a pixel of an object")


# Order and bounds


def test_results_come_in_order_however_long_each_takes() -> None:
    def slow(i: int) -> int:
        time.sleep(0.002 * (i % 5 == 0))
        return i * i

    assert list(in_order(slow, range(50), threads=4)) == [i * i for i in range(50)]


def test_work_runs_only_a_little_ahead() -> None:
    started: list[int] = []
    results = in_order(lambda i: started.append(i) or i, range(10_000), threads=2)  # type: ignore[func-returns-value]
    assert next(results) == 0
    time.sleep(0.05)
    assert len(started) <= 10
    results.close()  # type: ignore[attr-defined]
    assert len(started) <= 10 and threading.active_count() < 20


def test_failure_ends_the_work() -> None:
    def fails(i: int) -> int:
        if i == 5:
            raise ArithmeticError("no more")
        return i

    with pytest.raises(ArithmeticError, match="no more"):
        list(in_order(fails, range(10_000), threads=2))
