"""A set with masks in wsolevaluation's form, as OpenImages has them, from lists to report."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from i2c_fast.cli import main

from ..conftest import TINY
from ..evaluation.opencv_loops import MaskEvaluator
from ..evaluation.saved_set import write_lines


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def mask_of(i: int, part: int) -> np.ndarray:
    mask = np.zeros((28, 36), np.uint8)
    mask[3 * part : 3 * part + 12, 2 + i : 18 + i] = 255
    return mask


def write_masks(root: Path, folder: Path) -> tuple[str, ...]:
    """Lists of the tiny set's images and their masks: one or two of 0/255, 0/1 or color, some with an ignore mask."""
    images = {split: sorted((root / "Data/CLS-LOC" / split).rglob("*.JPEG")) for split in ("train", "val")}
    classes = sorted({image.parent.name for image in images["train"]})
    index = {split: [path.relative_to(root).as_posix() for path in paths] for split, paths in images.items()}
    val_labels = [i % len(classes) for i in range(len(images["val"]))]
    labels = {"train": [classes.index(image.parent.name) for image in images["train"]], "val": val_labels}
    objects = []
    for i, path in enumerate(index["val"]):
        for part in range(1 + i % 2):
            mask = mask_of(i, part)
            mask = np.dstack([mask * 0, mask * 0, mask]) if i % 4 == 3 else mask // 255 if i % 4 == 2 else mask
            name = f"masks/{i}_{part}.png"
            (folder / "masks").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / name), mask)
            cv2.imwrite(str(folder / f"masks/{i}_ignore.png"), mask_of(i, 4))
            objects.append(f"{path},{name},{f'masks/{i}_ignore.png' if i % 3 == 0 and part == 0 else ''}")
    for split, name in (("train", "train"), ("val", "test")):
        lists = folder / "lists" / name
        write_lines(lists / "image_ids.txt", *index[split])
        write_lines(lists / "class_labels.txt", *map("{},{}".format, index[split], labels[split]))
    write_lines(folder / "lists/test/localization.txt", *objects)
    return tuple(index["val"])


def test_masks_from_training_to_report(tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_masks(tiny_set, tmp_path)
    data = (f"data.root={tiny_set}", f"data.metadata={tmp_path / 'lists'}", f"data.masks={tmp_path}")
    write_lines(tmp_path / "empty.toml", "")
    run = tmp_path / "run"
    trained = call("train", tmp_path / "empty.toml", *data, *TINY, "stage1.epochs=0", "--output", run)
    assert trained.exit_code == 0, trained.output
    summary = json.loads((run / "evaluation.json").read_text())

    maps = tmp_path / "maps"
    evaluated = call("evaluate", run, "--maps", maps, "--output", tmp_path / "errors.json")
    assert evaluated.exit_code == 0, evaluated.output
    assert json.loads((tmp_path / "errors.json").read_text())["errors"][str(run)] == summary
    theirs = MaskEvaluator()
    for i, image in enumerate(images):
        shown, ignored = (
            cv2.resize(mask, (224, 224), interpolation=cv2.INTER_NEAREST) > 0
            for mask in (mask_of(i, 0) | mask_of(i, i % 2), mask_of(i, 4) * (i % 3 == 0))
        )
        theirs.add(np.load(maps / f"{image}.npy"), np.where(shown, 1, np.where(ignored, 255, 0)))
    assert summary["pxap"] == pytest.approx(theirs.pxap(), rel=1e-12)
    assert summary["images_with_boxes"] == 0 and "gt_known" not in summary
    pxap = f"PxAP {summary['pxap']:.2f}"
    assert pxap in trained.output and pxap in evaluated.output and "no boxes" in evaluated.output

    reported = call("report", run, "--output", tmp_path / "report.html")
    assert reported.exit_code == 0, reported.output
    page = (tmp_path / "report.html").read_text()
    assert "judged by the pixels of masks alone (PxAP)" in page and f"{summary['pxap']:.2f}" in page

    mistake = call("evaluate", run, "--threshold-from", "train")
    assert mistake.exit_code == 2 and mistake.stderr.count("\n") == 1, mistake.output


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("none", "0 broken"),
        ("broken", "1 with a wrong mask"),
        ("empty", "shows no object"),
        ("elsewhere", "data.masks must be the folder where their paths start"),
    ],
)
def test_validation_reads_every_mask(tiny_set: Path, tmp_path: Path, damage: str, words: str) -> None:
    write_masks(tiny_set, tmp_path)
    first = tmp_path / "masks/0_0.png"
    if damage == "broken":
        first.write_bytes(first.read_bytes()[:40])
    if damage == "empty":
        cv2.imwrite(str(first), np.zeros((9, 9), np.uint8))
    root = tiny_set if damage == "elsewhere" else tmp_path
    arguments = [f"data.root={tiny_set}", f"data.metadata={tmp_path / 'lists'}", f"data.masks={root}", "data.workers=1"]
    result = call("validate-data", *arguments)
    assert words in result.output + result.stderr
    assert result.exit_code == {"none": 0, "elsewhere": 2}.get(damage, 1), result.output
    assert "no box" not in result.output
