"""Blacklists: which images they drop, and which entries cannot be meant."""

from pathlib import Path

import numpy as np
import pytest

from i2c_fast.data.layouts import read_split
from i2c_fast.data.layouts.blacklist import read_blacklist
from i2c_fast.errors import UserError

from .small_set import TRAIN, VAL, Options, wsolevaluation


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return {**wsolevaluation(tmp_path), "blacklist": tmp_path / "blacklist.txt"}


def test_named_images_are_dropped_with_label_boxes_and_size(options: Options) -> None:
    whole = read_split(split="val", **{**options, "blacklist": ""})
    options["blacklist"].write_text(f"{whole.paths[1]}\n")
    left = read_split(split="val", **options)
    rest = [0, 2, 3]
    assert left.paths == tuple(whole.paths[i] for i in rest)
    assert left.labels.tolist() == whole.labels[rest].tolist()
    for boxes, i in zip(left.boxes, rest, strict=True):
        np.testing.assert_array_equal(boxes, whole.boxes[i])
    assert left.sizes is not None
    assert left.sizes.shape == (3, 2)
    assert left.classes == whole.classes


def test_one_file_serves_both_splits(options: Options) -> None:
    options["blacklist"].write_text(f"val/{VAL[0].name}\ntrain/{TRAIN[0].wnid}/{TRAIN[0].name}\n")
    assert len(read_split(split="val", **options)) == len(VAL) - 1
    assert len(read_split(split="train", **options)) == len(TRAIN) - 1


def test_comments_blank_lines_and_windows_ends_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbf# why\r\na b.JPEG\r\n\r\n  # not this\r\nc#.JPEG \r\n")
    assert read_blacklist(tmp_path / "list") == {"a b.JPEG", "c#.JPEG"}


def test_empty_blacklist_drops_nothing(options: Options) -> None:
    options["blacklist"].write_text("")
    assert len(read_split(split="val", **options)) == len(VAL)


def test_names_that_are_no_utf8_survive(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"caf\xe9.JPEG\n")
    assert read_blacklist(tmp_path / "list") == {b"caf\xe9.JPEG".decode(errors="surrogateescape")}


@pytest.mark.parametrize("line", ["/data/val/a.JPEG", "../a.JPEG", "val/../../a.JPEG"])
def test_entry_that_no_image_can_have(line: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"fine.JPEG\n{line}\n")
    with pytest.raises(UserError, match=rf"list:2: {line} must be relative to the data root and inside it"):
        read_blacklist(tmp_path / "list")


def test_blacklist_of_everything(options: Options) -> None:
    options["blacklist"].write_text("".join(f"val/{item.name}\n" for item in VAL))
    with pytest.raises(UserError, match=r"data\.blacklist: .* names every image of the split"):
        read_split(split="val", **options)


def test_missing_blacklist(options: Options) -> None:
    with pytest.raises(UserError, match=r"cannot read .*blacklist\.txt: No such file"):
        read_split(split="val", **options)
