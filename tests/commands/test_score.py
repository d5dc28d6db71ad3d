"""``i2c-fast score`` and ``evaluate --maps``: saved maps from the shell, right, wrong and hostile."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from i2c_fast.cli import console, main
from i2c_fast.config import Config
from i2c_fast.data import ImageIndex
from i2c_fast.evaluation import WsolEvaluationProtocol, named_protocol, score_maps, score_masks
from i2c_fast.training import score_checkpoint, start_run

from ..evaluation.opencv_loops import normalized
from ..evaluation.saved_set import COUNT, Saved, image_id, label_of, raw_map, write_lines, write_saved
from ..evaluation.test_saved_maps import Trap


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def score(saved: Saved, *arguments: str | Path) -> Result:
    return call("score", saved.maps, "--metadata", saved.metadata, "--resize", "--threads", "2", *arguments)


def mistake(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("i2c-fast: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Saved:
    monkeypatch.setattr(console, "_width", 200)
    return write_saved(tmp_path)


def rename(saved: Saved, i: int, name: str) -> None:
    """Give an image another id, in all lists and as a file."""
    old = image_id("test", i)
    for path in saved.lists().iterdir():
        path.write_text(path.read_text().replace(old, name))
    new = saved.maps / f"{name}.npy"
    new.parent.mkdir(parents=True, exist_ok=True)
    saved.file(i).rename(new)


def test_errors_are_printed_and_written(saved: Saved, tmp_path: Path) -> None:
    result = score(saved, "--output", tmp_path / "errors.json")
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "errors.json").read_text())
    summary = written["errors"][str(saved.maps)]
    expected = score_maps(saved.maps, saved.metadata, resize=True).summary()
    assert summary == {"split": "test", "interval": 0.001, **expected}
    assert f"MaxBoxAcc {expected['max_box_acc']:.2f}" in result.output
    assert f"MaxBoxAccV2 {expected['max_box_acc_v2']['accuracy']:.2f}" in result.output
    assert result.output.count("unknown") == 5  # four cells, and the line that says how to know
    assert "give class predictions with --predictions" in result.output
    assert written["environment"]["numpy"] == np.__version__


@pytest.mark.parametrize(
    ("scale", "shift", "side", "protocol", "noted"),
    [
        (0.5, 0.25, 224, "wsolevaluation", True),
        (1, 0, 224, "wsolevaluation", False),  # normalized already
        (0, 0, 224, "wsolevaluation", False),  # zeros stay zeros
        (0.5, 0.25, 12, "wsolevaluation", False),  # is resized first, by both
        (0.5, 0.25, 224, "paper", False),
    ],
)
def test_maps_that_are_normalized_again_are_noted(
    tmp_path: Path, scale: float, shift: float, side: int, protocol: str, noted: bool
) -> None:
    def scaled(split: str, i: int) -> np.ndarray:
        return scale * (normalized(raw_map(split, i)) if side == 224 else raw_map(split, i)) + shift

    result = score(write_saved(tmp_path, scaled), "--protocol", protocol)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert ("test: 6 of 6 maps do not reach 0 and 1 and were normalized; wsolevaluation's own code" in text) == noted


def test_maps_of_other_images_are_counted(saved: Saved) -> None:
    assert "6 maps are of other images and not scored (one is val/class 0/0.JPEG)" in score(saved).output
    assert "other images" not in score(saved, "--threshold-from", "val").output


def test_thresholds_from_another_split(saved: Saved, tmp_path: Path) -> None:
    result = score(saved, "--threshold-from", "val", "-o", tmp_path / "honest.json")
    assert result.exit_code == 0, result.output
    assert "thresholds chosen on val" in result.output
    summary = json.loads((tmp_path / "honest.json").read_text())["errors"][str(saved.maps)]
    test, val = (score_maps(saved.maps, saved.metadata, split, resize=True) for split in ("test", "val"))
    assert summary == {"split": "test", "interval": 0.001, **test.summary(val, "val")}
    mistake(score(saved, "--threshold-from", "test"), "--threshold-from test is the split that is scored")
    mistake(score(saved, "--threshold-from", "train"), "--metadata", "train")
    saved.file(2, "val").unlink()
    mistake(score(saved, "--threshold-from", "val"), "no map for 1 of 6 images: val/class 0/2.JPEG")


def test_predictions_fill_the_table(saved: Saved, tmp_path: Path) -> None:
    lines = [f"{image_id('test', i)},{','.join(str((label_of(i) + c) % 7) for c in range(5))}" for i in range(COUNT)]
    write_lines(tmp_path / "p.csv", *lines)
    result = score(saved, "--predictions", tmp_path / "p.csv", "--protocol", "paper")
    assert result.exit_code == 0, result.output
    assert "unknown" not in result.output and "MaxBoxAcc" not in result.output
    mistake(score(saved, "--predictions", tmp_path / "gone.csv"), "gone.csv", "No such file")


def test_metadata_of_one_split_suggest_the_parent(saved: Saved) -> None:
    lists = saved.lists()
    mistake(call("score", saved.maps, "--metadata", lists), f"give its parent, --metadata={lists.parent}")


def test_interval_is_that_of_the_thresholds(saved: Saved, tmp_path: Path) -> None:
    result = score(saved, "--interval", ".25", "--output", tmp_path / "errors.json")
    summary = json.loads((tmp_path / "errors.json").read_text())["errors"][str(saved.maps)]
    coarse = score_maps(saved.maps, saved.metadata, protocol=WsolEvaluationProtocol(0.25), resize=True).summary()
    assert (result.exit_code, summary) == (0, {"split": "test", "interval": 0.25, **coarse})
    for wrong in ("0", "-.01", "1.5", "nan", "1e-9"):
        mistake(score(saved, "--interval", wrong), "--interval: the interval between thresholds must be 1e-6…1")
    mistake(score(saved, "--interval", ".01", "--protocol", "paper"), "--interval is for --protocol wsolevaluation")


def test_masks_give_pxap_alone(saved: Saved, tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "m.png"), np.eye(20, dtype=np.uint8) * 255)
    write_lines(saved.lists() / "localization.txt", *(f"{image_id('test', i)},m.png," for i in range(COUNT)))
    result = score(saved, "--masks", tmp_path, "--output", tmp_path / "pxap.json")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "pxap.json").read_text())["errors"][str(saved.maps)]
    assert f"accuracy %: PxAP {summary['pxap']:.2f}" in result.output and "gt-known" not in result.output
    assert (summary["split"], summary["images"]) == ("test", COUNT)
    score(saved, "--masks", tmp_path, "--interval", ".3", "--output", tmp_path / "coarse.json")
    coarse = json.loads((tmp_path / "coarse.json").read_text())["errors"][str(saved.maps)]
    protocol = WsolEvaluationProtocol(0.3)
    assert coarse["pxap"] == score_masks(saved.maps, saved.metadata, tmp_path, protocol=protocol, resize=True)["pxap"]
    assert coarse["pxap"] != summary["pxap"]
    mistake(score(saved, "--masks", tmp_path, "--threshold-from", "val"), "--masks gives PxAP alone")
    mistake(score(saved, "--masks", tmp_path, "--protocol", "paper"), "--masks gives PxAP alone")
    mistake(score(saved), "masks need --masks")


# Hostile and wrong


@pytest.mark.parametrize(
    "name", ["<script>alert(1)<", "[red]x[", "[bold", ":smile:", "a{b}%s$HOME`id`", "наука 画像", "-o", "x" * 200]
)
def test_odd_names_are_text(saved: Saved, tmp_path: Path, name: str) -> None:
    rename(saved, 1, f"{name}/1.JPEG")
    moved = Saved(tmp_path / name, saved.metadata)
    saved.maps.rename(moved.maps)
    for path in moved.maps.glob("val/*/*"):
        path.unlink()
    stranger = moved.maps / f"{name}.npy"
    stranger.write_bytes(b"")
    arguments = ("--metadata", moved.metadata, "--resize", "--output", tmp_path / "out.json")
    result = call("score", *arguments, "--", moved.maps)
    assert result.exit_code == 0, result.output
    assert f"1 maps are of other images and not scored (one is {name})" in result.output
    assert str(moved.maps) in json.loads((tmp_path / "out.json").read_text())["errors"]
    (moved.maps / f"{name}/1.JPEG.npy").unlink()
    mistake(call("score", *arguments, "--", moved.maps), f"no map for 1 of 6 images: {name}/1.JPEG")


def test_table_shows_brackets_as_they_are(saved: Saved, tmp_path: Path) -> None:
    saved.maps.rename(tmp_path / "[red]x")
    shown = call("score", tmp_path / "[red]x", "--metadata", saved.metadata, "--resize").output
    assert "[red]x" in shown.replace("\n", "")


def test_control_characters_do_not_reach_the_terminal(saved: Saved) -> None:
    rename(saved, 1, "a\x1b[2J\rb.JPEG")
    (saved.maps / "a\x1b[2J\rb.JPEG.npy").unlink()
    result = score(saved)
    mistake(result, r"no map for 1 of 6 images: a\x1b[2J\rb.JPEG")
    assert "\x1b" not in result.output
    (saved.maps / "c\x1b]0;title\x07.npy").write_bytes(b"")
    write_saved(saved.maps.parent)
    assert "\x1b" not in score(saved).output


@pytest.mark.parametrize("path", ["../../../../etc/passwd", "/etc/passwd", "val/../../x", "a\0b", "a\\..\\b"])
def test_ids_that_climb_out_are_refused(saved: Saved, path: str) -> None:
    lists = saved.lists() / "image_ids.txt"
    for name in ("image_ids", "image_sizes", "localization"):
        lists = saved.lists() / f"{name}.txt"
        lists.write_text(lists.read_text().replace(image_id("test", 0), path))
    mistake(score(saved), repr(path))


def test_pickle_is_not_executed_and_nothing_is_written(saved: Saved, tmp_path: Path) -> None:
    objects = np.empty((2, 2), object)
    objects[:] = Trap(tmp_path / "executed")
    np.save(saved.file(4), objects, allow_pickle=True)
    mistake(score(saved, "--output", tmp_path / "out.json"), "4.JPEG.npy holds Python objects (a pickle)")
    assert not (tmp_path / "executed").exists() and not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["score", "MAPS"], ["--metadata"]),
        (["score", "MAPS", "--metadata", "gone"], ["--metadata: gone is not a folder"]),
        (["score", "gone", "--metadata", "META"], ["gone is neither a folder of maps"]),
        (["score", "MAPS", "--metadata", "META"], ["0.JPEG.npy is 12 × 12, expected 224 × 224; --resize"]),
        (["score", "MAPS", "--metadata", "META", "--split", "train"], ["has no folder train"]),
        (["score", "MAPS", "--metadata", "META", "--masks", "MAPS"], ["expected path,mask,ignore"]),
        (["score", "MAPS", "--metadata", "META", "--protocol", "maxboxacc"], ["maxboxacc"]),
        (["score", "MAPS", "--metadata", "META", "--resize", "-o", "MAPS"], ["cannot write"]),
    ],
)
def test_wrong_arguments(saved: Saved, arguments: list[str], words: list[str]) -> None:
    paths = {"MAPS": str(saved.maps), "META": str(saved.metadata)}
    result = call(*(paths.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2 and "Traceback" not in result.output
    for word in words:
        assert word in result.stderr


# Maps saved by evaluate


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("score") / "run"


@pytest.fixture
def run(shared_run: Path, tiny_config: Callable[..., Config]) -> Path:
    if not shared_run.exists():
        start_run(tiny_config("stage1.epochs=0", "eval.threshold_step=1"), shared_run, Console(quiet=True))
    return shared_run


def write_lists(folder: Path, index: ImageIndex) -> None:
    assert index.sizes is not None
    rows = list(zip(index.paths, index.labels, index.sizes.tolist(), index.boxes, strict=True))
    write_lines(folder / "image_ids.txt", *index.paths)
    write_lines(folder / "class_labels.txt", *(f"{path},{label}" for path, label, *_ in rows))
    write_lines(folder / "image_sizes.txt", *(f"{path},{w},{h}" for path, _, (w, h), _ in rows))
    write_lines(
        folder / "localization.txt",
        *(f"{path},{','.join(f'{v:g}' for v in box)}" for path, *_, boxes in rows for box in boxes.tolist()),
    )


@pytest.mark.parametrize("protocol", ["paper", "wsolevaluation"])
def test_maps_saved_by_evaluate_score_the_same(run: Path, tmp_path: Path, protocol: str) -> None:
    override, maps = f"eval.protocol={protocol}", tmp_path / "maps"
    expected, index = score_checkpoint(run, [override], Console(quiet=True), maps=maps)
    write_lists(tmp_path / "lists/test", index)
    assert len(list(maps.rglob("*"))) == len(list(maps.rglob("*.npy"))) + 3  # and the folders Data, CLS-LOC, val
    found = score_maps(maps, tmp_path / "lists", protocol=named_protocol(protocol), resize=True)
    np.testing.assert_array_equal(found.hits, expected.hits)
    if protocol == "wsolevaluation":
        np.testing.assert_array_equal(found.contour_hits, expected.contour_hits)
    assert found.summary()["gt_known"] == expected.summary()["gt_known"]


def test_evaluate_saves_maps_once_and_into_an_empty_folder_alone(run: Path, tmp_path: Path) -> None:
    assert call("evaluate", run, "--maps", tmp_path / "maps").exit_code == 0
    saved = sorted((tmp_path / "maps").rglob("*.npy"))
    first = np.load(saved[0], allow_pickle=False)
    assert len(saved) == 12 and first.dtype == np.float32 and first.ndim == 2
    mistake(call("evaluate", run, "--maps", tmp_path / "maps"), "--maps: ", "is not empty; give another folder")
    mistake(call("evaluate", run, "--maps", saved[0]), "--maps: ", "is a file")


def wsolevaluation_set(run: Path, folder: Path) -> list[str]:
    """Overrides that read the run's data by lists: half of the scored images as `val`, the others as `test`."""
    _, index = score_checkpoint(run, [], Console(quiet=True))
    train = [path.relative_to(index.root).as_posix() for path in sorted(index.root.rglob("train/*/*"))]
    write_lines(folder / "train/image_ids.txt", *train)
    labels = [f"{path},{index.classes.index(Path(path).parent.name)}" for path in train]
    write_lines(folder / "train/class_labels.txt", *labels)
    write_lists(folder / "all", index)
    for split, half in (("val", slice(0, None, 2)), ("test", slice(1, None, 2))):
        for name in ("image_ids", "class_labels", "image_sizes", "localization"):
            lines = (folder / f"all/{name}.txt").read_text().splitlines()
            write_lines(folder / f"{split}/{name}.txt", *lines[half])
    return [f"data.root={index.root}", "data.layout=wsolevaluation", f"data.metadata={folder}"]


def test_evaluate_chooses_thresholds_on_val_lists_and_saves_both_splits(run: Path, tmp_path: Path) -> None:
    overrides = wsolevaluation_set(run, tmp_path / "lists")
    maps, out = tmp_path / "maps", tmp_path / "out.json"
    result = call("evaluate", run, *overrides, "--threshold-from", "val", "--maps", maps, "-o", out)
    assert result.exit_code == 0, result.output
    assert "thresholds chosen on val" in result.output
    (summary,) = json.loads(out.read_text())["errors"].values()
    arguments = ("--metadata", tmp_path / "lists", "--resize", "--protocol", "paper", "--threshold-from", "val")
    again = call("score", maps, *arguments, "-o", tmp_path / "again.json")
    assert again.exit_code == 0, again.output
    (scored,) = json.loads((tmp_path / "again.json").read_text())["errors"].values()
    assert scored["gt_known"] == summary["gt_known"] and scored["images"] == 6
    against = call("evaluate", run, *overrides, "--threshold-from", "val", "--against", run, "-o", out)
    assert against.exit_code == 0, against.output
    differences: dict[str, Any] = json.loads(out.read_text())["differences"]
    assert differences["gt_known"]["difference"] == 0


def test_evaluate_without_a_boxed_split_to_choose_by(run: Path) -> None:
    mistake(call("evaluate", run, "--threshold-from", "train"), "the training images of", "have no boxes")
    mistake(call("evaluate", run, "--threshold-from", "val"), "val is the split that is scored in the ilsvrc layout")
