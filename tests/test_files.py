"""Files are written whole or not at all, failures are one line, and only regular files of a bounded size are read."""

import errno
import json
import os
from pathlib import Path

import pytest

from i2c_fast.config import load_recipe
from i2c_fast.data import read_image
from i2c_fast.data.layouts.annotations import read_lines
from i2c_fast.data.layouts.ilsvrc_annotations import read_xml
from i2c_fast.errors import UserError
from i2c_fast.files import read_regular, write_bytes, write_json
from i2c_fast.report.training_log import read_log


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_file_and_folders_are_made(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "b" / "file.bin", b"data")
    assert (tmp_path / "a" / "b" / "file.bin").read_bytes() == b"data"
    assert names(tmp_path / "a" / "b") == ["file.bin"]


def test_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"longer than what comes")
    write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_unflushed_file_is_whole_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", disk_full)
    write_bytes(tmp_path / "file", b"data", flush=False)
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"data"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[call], disk_full)
    with pytest.raises(UserError, match=r"cannot write .*file: No space left on device"):
        write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_folder_in_the_way_stays_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    (tmp_path / "name" / "inner").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*name: Is a directory"):
        write_bytes(tmp_path / "name", b"data")
    assert names(tmp_path) == ["name"] and names(tmp_path / "name") == ["inner"]


@pytest.mark.parametrize("name", ["file/below", "file/far/below", "n" * 300, "n" * 253])
def test_path_that_cannot_be_is_an_error_on_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        write_bytes(tmp_path / name, b"data")
    assert str(caught.value).startswith(f"cannot write {tmp_path / name}: ")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["file"]


def test_json_reads_back(tmp_path: Path) -> None:
    value = {"text": "ünï ☃", "list": [1, 2.5, None, True], "nested": {"a": []}}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == value
    assert "ünï ☃" in (tmp_path / "a.json").read_text("utf-8")


def test_json_of_file_names_that_are_not_utf8_reads_back(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode(errors="surrogateescape")  # as Python lists such a file
    write_json(tmp_path / "a.json", {"image": name})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"image": name}


def test_value_that_json_does_not_know_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"path": tmp_path})
    assert not names(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "folder", "large"])
def test_what_may_have_no_end_is_not_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if kind == "large":
        path.touch()
        os.truncate(path, 2**40 + 1)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe") if kind != "pipe" else (tmp_path / "pipe").rename(path)
    with pytest.raises(OSError, match=r"is no regular file|is larger than 1,048,576 MiB|Is a directory"):
        read_regular(path, 2**40)


def test_a_file_of_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"four")
    assert read_regular(tmp_path / "file", 4) == b"four"
    with pytest.raises(OSError, match="is larger than 0 MiB"):
        read_regular(tmp_path / "file", 3)


def test_no_reader_waits_for_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    readers = (read_image, read_xml, lambda path: list(read_lines(path)), lambda path: load_recipe(str(path)))
    for reader in readers:
        with pytest.raises(UserError) as caught:
            reader(pipe)
        assert str(pipe) in str(caught.value) and "\n" not in str(caught.value)
    assert not len(read_log(pipe).steps)
