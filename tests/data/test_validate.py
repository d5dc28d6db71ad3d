"""Validation of a split: everything is listed once, under the right heading, whatever the files do to the decoder."""

import importlib
import io
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
from PIL import Image

from i2c_fast.data import read_image
from i2c_fast.data.index import ImageIndex, no_boxes
from i2c_fast.data.layouts.blacklist import read_blacklist, without
from i2c_fast.data.validate import Finding, ValidationReport, validate, write_blacklist
from i2c_fast.errors import UserError

SIZE = (30, 20)
validation = importlib.import_module("i2c_fast.data.validate")  # the package has a function of that name
_SERVE = validation._serve


def jpeg(size: tuple[int, int] = SIZE, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def index(root: Path, files: dict[str, bytes], **known: Any) -> ImageIndex:
    for name, data in files.items():
        (root / name).write_bytes(data)
    labels = np.zeros(len(files), np.int64)
    return ImageIndex(root, ("cat",), tuple(files), labels, known.pop("boxes", no_boxes(len(files))), **known)


def boxes(*rows: tuple[float, ...]) -> np.ndarray:
    return np.asarray(rows, np.float32).reshape(-1, 4)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageIndex, ValidationReport, list[int]]:
    """More images than one chunk of work, some of them broken or odd, looked at by two processes."""
    good = jpeg()
    rotten = bytearray(jpeg((200, 200)))
    rotten[len(rotten) // 2 : len(rotten) // 2 + 2000] = bytes(2000)
    files = {f"{i:03d}.JPEG": good for i in range(150)}
    files |= {
        "003.JPEG": b"",
        "070.JPEG": good[:-40],
        "071.JPEG": jpeg(mode="CMYK"),
        "100.JPEG": bytes(rotten),
        "149.JPEG": jpeg(kind="GIF"),
    }
    found = index(tmp_path_factory.mktemp("mixed"), dict(sorted(files.items())))
    steps: list[int] = []
    return found, validate(found, expect_boxes=False, workers=2, progress=steps.append), steps


def test_broken_images_are_listed_in_index_order(mixed: Any) -> None:
    assert [finding.path for finding in mixed[1].broken] == ["003.JPEG", "070.JPEG", "149.JPEG"]


def test_every_broken_image_has_its_reason(mixed: Any) -> None:
    empty, truncated, gif = (finding.reason for finding in mixed[1].broken)
    assert empty == "is empty"
    assert "truncated" in truncated
    assert gif.startswith("is a GIF")


def test_odd_images_are_listed_and_are_not_broken(mixed: Any) -> None:
    assert mixed[1].odd[0] == Finding("071.JPEG", "is CMYK")


def test_damage_that_the_decoder_repairs_is_odd(mixed: Any) -> None:
    # Nothing else tells: every decoder gives an image of the right size and no error.
    rotten = mixed[1].odd[1]
    assert rotten.path == "100.JPEG"
    assert rotten.reason.startswith("decoder: Corrupt JPEG data")
    assert read_image(mixed[0].root / "100.JPEG").shape == (200, 200, 3)
    assert len(mixed[1].odd) == 2


def test_all_images_are_counted_as_they_are_done(mixed: Any) -> None:
    _, report, steps = mixed
    assert report.images == sum(steps) == 150
    assert len(steps) > 1


def test_blacklist_drops_exactly_the_broken_images(mixed: Any, tmp_path: Path) -> None:
    found, report, _ = mixed
    write_blacklist(tmp_path / "new" / "blacklist.txt", report)
    left = without(found, tmp_path / "new" / "blacklist.txt")
    assert set(found.paths) - set(left.paths) == {"003.JPEG", "070.JPEG", "149.JPEG"}
    assert "is a GIF" in (tmp_path / "new" / "blacklist.txt").read_text()


def test_boxes_are_held_against_the_decoded_size(tmp_path: Path) -> None:
    known = (
        boxes((0, 0, 30, 20)),  # touches both ends: inside
        boxes((1, 1, 5, 5), (2, 2, 31, 9)),
        boxes(),
        boxes((0, 0, 5, 20.5)),
    )
    files = {f"{i}.JPEG": jpeg() for i in range(4)}
    report = validate(index(tmp_path, files, boxes=known), expect_boxes=True, workers=1)
    assert report.outside == [
        Finding("1.JPEG", "box 2 2 31 9 does not lie in its 30 × 20 pixels"),
        Finding("3.JPEG", "box 0 0 5 20.5 does not lie in its 30 × 20 pixels"),
    ]
    assert report.boxless == ["2.JPEG"]
    assert (report.broken, report.odd) == ([], [])


def test_size_that_differs_from_the_annotated_is_odd(tmp_path: Path) -> None:
    sizes = np.array([SIZE, (0, 0), (20, 30)])
    report = validate(
        index(tmp_path, {f"{i}.JPEG": jpeg() for i in range(3)}, sizes=sizes), expect_boxes=False, workers=1
    )
    assert report.odd == [Finding("2.JPEG", "is 30 × 20 pixels, annotated as 20 × 30")]
    assert report.boxless == []


class Killer(PosixPath):
    """Ends the process that it is sent to, as a file that crashes a decoder does."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


def test_file_that_kills_the_decoder_is_named_and_the_rest_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = index(tmp_path, {f"{i}.JPEG": jpeg() for i in range(4)} | {"4.JPEG": b""})
    plain = ImageIndex.file
    monkeypatch.setattr(ImageIndex, "file", lambda self, i: Killer("x") if i in (1, 2) else plain(self, i))
    report = validate(found, expect_boxes=False, workers=1)
    assert [(f.path, f.reason) for f in report.broken] == [
        ("1.JPEG", "kills the process that decodes it"),
        ("2.JPEG", "kills the process that decodes it"),
        ("4.JPEG", "is empty"),
    ]
    assert report.images == 5


def _serve_and_stall(pipe: Connection) -> None:
    """In the process that decodes: the second image takes it for ever."""
    decode = validation.inspect_image

    def stalled(path: Path) -> Any:
        if path.name == "1.JPEG":
            signal.pause()
        return decode(path)

    validation.inspect_image = stalled  # type: ignore[attr-defined]
    _SERVE(pipe)


def test_file_that_stalls_the_decoder_is_named_and_the_rest_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "_TIME_LIMIT", 1.0)
    monkeypatch.setattr(validation, "_serve", _serve_and_stall)
    found = index(tmp_path, {f"{i}.JPEG": jpeg() for i in range(3)})
    report = validate(found, expect_boxes=False, workers=1)
    assert report.broken == [Finding("1.JPEG", "takes longer than 1 s to decode")]
    assert not multiprocessing.active_children()


# Writing the blacklist


def test_blacklist_of_several_splits_holds_each_ones_images(tmp_path: Path) -> None:
    reports = [ValidationReport(broken=[Finding(name, "why\nnot")]) for name in ("train/a.JPEG", "val/b.JPEG")]
    write_blacklist(tmp_path / "list", *reports)
    assert read_blacklist(tmp_path / "list") == {"train/a.JPEG", "val/b.JPEG"}


def test_sound_set_has_an_empty_blacklist(tmp_path: Path) -> None:
    write_blacklist(tmp_path / "list", ValidationReport())
    assert read_blacklist(tmp_path / "list") == frozenset()


@pytest.mark.parametrize("name", ["with space.JPEG", "ünï☃.JPEG", b"caf\xe9.JPEG".decode(errors="surrogateescape")])
def test_any_usual_name_is_read_back(tmp_path: Path, name: str) -> None:
    write_blacklist(tmp_path / "list", ValidationReport(broken=[Finding(name, "is empty")]))
    assert read_blacklist(tmp_path / "list") == {name}


@pytest.mark.parametrize("name", ["#1.JPEG", " a.JPEG", "a.JPEG ", "a\nb.JPEG"])
def test_name_that_cannot_be_written_is_refused_not_lost(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot stand on a line"):
        write_blacklist(tmp_path / "list", ValidationReport(broken=[Finding(name, "is empty")]))
    assert not (tmp_path / "list").exists()


def test_blacklist_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write_blacklist(tmp_path / "file" / "list", ValidationReport())
