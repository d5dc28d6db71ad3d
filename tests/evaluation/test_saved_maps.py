"""Maps from files that may be anybody's: what is read, and what is refused without being believed."""

import gc
import io
import os
import pickle
import struct
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from i2c_fast.errors import UserError
from i2c_fast.evaluation.saved_maps import MAX_PIXELS, SavedMaps, open_maps, read_map, require_maps

MAP = np.arange(12, dtype=np.float32).reshape(3, 4) / 7


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def read(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    return read_map(io.BytesIO(data), "it", size)


def refused(data: bytes, pattern: str, size: tuple[int, int] | None = None) -> None:
    with pytest.raises(UserError, match=pattern) as caught:
        read(data, size)
    assert str(caught.value).startswith("it ") and "\n" not in str(caught.value)


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    length = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + version + length + text.encode("latin1")


def zipped(path: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


# What is read


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("<f4", np.float32), (">f4", np.float32), ("<f2", np.float32), ("<f8", np.float64), (">f8", np.float64),
        ("u1", np.float64), (">i2", np.float64), ("<i8", np.float64), (np.longdouble, np.float64),
    ],
)  # fmt: skip
@pytest.mark.parametrize("order", ["C", "F"])
def test_kinds_byte_and_axis_orders_give_equal_values(dtype: Any, expected: type, order: Any) -> None:
    saved = (np.arange(12).reshape(3, 4) * 5).astype(dtype, order=order)
    found = read(npy(saved))
    assert found.dtype == expected and found.flags.c_contiguous and found.dtype.isnative
    np.testing.assert_array_equal(found, saved.astype(np.float64))


def test_format_version_2_is_read() -> None:
    np.testing.assert_array_equal(read(npy(MAP, version=(2, 0))), MAP)


def test_map_larger_than_the_first_read_is_whole() -> None:
    large = np.random.default_rng(0).random((200, 131))
    np.testing.assert_array_equal(read(npy(large)), large)


def test_map_of_the_expected_size_is_read_and_of_another_is_not() -> None:
    assert read(npy(MAP), (4, 3)).shape == (3, 4)
    refused(npy(MAP), r"is 4 × 3, expected 3 × 4; --resize", (3, 4))


# What is refused


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    objects = np.empty((2, 2), object)
    objects[:] = Trap(proof)
    data = npy(objects)
    refused(data, r"holds Python objects \(a pickle\), which are never opened")
    assert not proof.exists()
    np.load(io.BytesIO(data), allow_pickle=True)  # the trap does work
    assert proof.exists()


def test_bare_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    refused(pickle.dumps(Trap(tmp_path / "executed")), "is not a .npy array")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("array", "pattern"),
    [
        (np.zeros((1, 3, 4)), r"has the shape \[1, 3, 4\]; a map is \[height, width\]"),
        (np.zeros(4), r"has the shape \[4\]"),
        (np.float32(1), r"has the shape \[\]"),
        (np.zeros((0, 4)), r"has the shape \[0, 4\]"),
        (np.zeros((3, 4), complex), "holds complex128 values; a map is a floating or integer array"),
        (np.zeros((3, 4), bool), "holds bool values"),
        (np.zeros((3, 4), "U3"), "holds <U3 values"),
        (np.zeros((3, 4), "M8[s]"), "holds datetime64"),
        (np.zeros((3, 4), [("a", "f4")]), "holds .* values"),
        (
            np.array([[1, np.nan], [np.nan, 0]]),
            r"holds 2 values that are NaN or infinite, first at row, column \[0, 1\]",
        ),
        (np.array([[1, 2], [-np.inf, 0]], np.float16), r"first at row, column \[1, 0\]"),
        (np.full((2, 2), np.finfo(np.longdouble).max), "holds 4 values that are NaN or infinite"),
    ],
)
def test_arrays_that_are_no_map(array: np.ndarray, pattern: str) -> None:
    refused(npy(array), pattern)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUM",
        b"\x93NUMPY\x01",
        b"<html>no array</html>",
        b"\x93NUMPY\x09\x00\x10\x00" + b" " * 16,
        b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 100,
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4)" + " " * 20_000 + "}", b"\x02\x00"),
        header("__import__('os').system('touch executed')"),
        header("{'descr': '<f4', 'fortran_order': False}"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (3.0, 4)}"),
        header("{'descr': 'no such', 'fortran_order': False, 'shape': (3, 4)}"),
        header("{'descr': [], 'fortran_order': False, 'shape': (3, 4)}"),
        header("{[]: 3}"),
        header("(" * 5000),
        header("'" * 3 + "\n"),
        header("-" * 9000 + "1"),
        header("\\\n" * 10),
        header("0777"),
    ],
)
def test_bytes_that_are_no_array(data: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    refused(data, r"is not a \.npy array|holds .* values")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("shape", [(-3, 4), (3, -4), (10**30, 10**30), (MAX_PIXELS, 2), (2**31, 2**31), (2**63, 2)])
def test_impossible_sizes_are_refused_by_the_header_alone(shape: tuple[int, int]) -> None:
    refused(header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}"), r"has the shape|the most is")


def test_map_cut_short_or_going_on_is_refused() -> None:
    refused(npy(MAP)[:-5], "is cut short: 43 of 48 bytes of values are there")
    refused(npy(MAP) + b"x", "goes on after its map")
    refused(npy(MAP) + npy(MAP), "goes on after its map")


def test_no_damage_escapes_as_another_exception(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    plain = npy(MAP)
    packed = zipped(tmp_path / "a.npz", ("arr_0.npy", plain)).read_bytes()
    for suffix, data in ((".npy", plain), (".npz", packed)):
        path = tmp_path / f"x{suffix}"
        for trial in range(600):
            broken = bytearray(data)
            for i in rng.integers(0, len(data), 1 + trial % 3):
                broken[i] = rng.integers(0, 256)
            path.write_bytes(broken[: rng.integers(1, len(data) + 1)] if trial % 4 == 0 else broken)
            try:
                found = open_maps(tmp_path).read("x")
            except UserError as error:
                assert "\n" not in str(error)
            else:
                assert found.ndim == 2
        path.unlink()


# Folders


def fill(folder: Path, **maps: Any) -> SavedMaps:
    folder.mkdir(exist_ok=True)
    for name, array in maps.items():
        np.save(folder / f"{name}.npy", array)
    return open_maps(folder)


def refused_file(maps: SavedMaps, image: str, pattern: str) -> None:
    with pytest.raises(UserError, match=pattern) as caught:
        maps.read(image)
    assert "\n" not in str(caught.value)


def test_npz_of_one_array_is_a_map_and_of_several_is_not(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", MAP)
    np.savez_compressed(tmp_path / "named.npz", cam=MAP)
    np.savez(tmp_path / "two.npz", MAP, MAP)
    np.savez(tmp_path / "none.npz")
    maps = open_maps(tmp_path)
    np.testing.assert_array_equal(maps.read("one"), MAP)
    np.testing.assert_array_equal(maps.read("named"), MAP)
    refused_file(maps, "two", r"two\.npz holds 2 arrays; expected the one map")
    refused_file(maps, "none", r"none\.npz holds 0 arrays")


def test_two_files_of_one_image_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", MAP)
    refused_file(fill(tmp_path, a=MAP), "a", r"has both \.npy and \.npz")


def test_missing_map_folder_pipe_and_unreadable_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "dangling.npy").symlink_to(tmp_path / "gone")
    maps = fill(tmp_path, closed=MAP)
    refused_file(maps, "nothing", "nothing has no map")
    refused_file(maps, "folder", r"folder\.npy is not a file")
    refused_file(maps, "pipe", r"pipe\.npy is not a file")
    refused_file(maps, "dangling", r"cannot read .*dangling\.npy: No such file")
    (tmp_path / "closed.npy").chmod(0)
    if not os.access(tmp_path / "closed.npy", os.R_OK):  # the superuser may read all
        refused_file(maps, "closed", r"cannot read .*closed\.npy: Permission denied")


def test_links_are_followed_inside_the_folder_and_not_out_of_it(tmp_path: Path) -> None:
    fill(tmp_path / "secret", map=MAP)
    maps = fill(tmp_path / "maps", real=MAP)
    (tmp_path / "maps/inside.npy").symlink_to("real.npy")
    (tmp_path / "maps/outside.npy").symlink_to(tmp_path / "secret/map.npy")
    (tmp_path / "maps/folder").symlink_to(tmp_path / "secret")
    np.testing.assert_array_equal(maps.read("inside"), MAP)
    refused_file(maps, "outside", r"outside\.npy leads out of .*maps; copy the map into the folder")
    refused_file(maps, "folder/map", r"leads out of")
    (tmp_path / "link").symlink_to(tmp_path / "maps")  # the folder itself may be one
    np.testing.assert_array_equal(open_maps(tmp_path / "link").read("real"), MAP)


def test_a_folder_whose_name_begins_like_another_is_outside(tmp_path: Path) -> None:
    fill(tmp_path / "maps2", map=MAP)
    maps = fill(tmp_path / "maps")
    (tmp_path / "maps/x.npy").symlink_to("../maps2/map.npy")
    refused_file(maps, "x", "leads out of")


def test_missing_maps_are_counted_and_the_first_named(tmp_path: Path) -> None:
    maps = fill(tmp_path, a=MAP)
    require_maps(maps, ["a"], tmp_path)
    with pytest.raises(UserError, match=r"has no map for 4 of 5 images: b, c, d, … \(as <image id>\.npy or \.npz\)"):
        require_maps(maps, ["a", "b", "c", "d", "e"], tmp_path)
    with pytest.raises(UserError, match=r"has no map for 1 of 1 images: " + "x" * 5000):
        require_maps(maps, ["x" * 5000], tmp_path)
    with pytest.raises(UserError, match=r"'a\\\\b' has a backslash"):
        require_maps(maps, ["a\\b"], tmp_path)


def test_images_are_all_that_have_a_map(tmp_path: Path) -> None:
    zipped(tmp_path / "deep/er/c.JPEG.npz", ("x.npy", npy(MAP)))
    (tmp_path / "notes.txt").write_text("no map")
    assert sorted(fill(tmp_path, a=MAP, b=MAP).images()) == ["a", "b", "deep/er/c.JPEG"]


# Archives


def test_archive_of_all_maps_is_read_by_threads_at_once(tmp_path: Path) -> None:
    arrays = {f"val/{i}.JPEG": np.full((20, 30), i, np.float32) for i in range(40)}
    np.savez_compressed(tmp_path / "all.npz", **arrays)
    maps = open_maps(tmp_path / "all.npz")
    assert set(maps.images()) == set(arrays) and maps.has("val/3.JPEG") and not maps.has("val/40.JPEG")
    with ThreadPoolExecutor(8) as pool:
        for image, found in zip(arrays, pool.map(maps.read, arrays), strict=True):
            np.testing.assert_array_equal(found, arrays[image])


def test_archive_is_refused_like_files(tmp_path: Path) -> None:
    objects = np.empty((2, 2), object)
    objects[:] = Trap(tmp_path / "executed")
    members = [("bad.npy", b"no array"), ("objects.npy", npy(objects)), ("cut.npy", npy(MAP)[:-1])]
    maps = open_maps(zipped(tmp_path / "all.npz", *members))
    refused_file(maps, "bad", r"all\.npz: bad is not a \.npy array")
    refused_file(maps, "objects", "Python objects")
    refused_file(maps, "cut", "is cut short")
    assert not (tmp_path / "executed").exists()


def test_zip_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    # Gigabytes of zeros that deflate to megabytes are not unpacked: the header says too much.
    start = header("{'descr': '<f8', 'fortran_order': False, 'shape': (100000, 100000)}")
    maps = open_maps(zipped(tmp_path / "all.npz", ("bomb.npy", start + bytes(10_000_000))))
    refused_file(maps, "bomb", "says it has 100000 × 100000 values; the most is")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packing_that_unpacks_without_bound_is_refused(tmp_path: Path, method: int) -> None:
    zipped(tmp_path / "a.npz", ("x.npy", npy(MAP)), method=method)
    refused_file(open_maps(tmp_path), "a", r"a\.npz is packed in a way that NumPy does not write")


def test_damaged_checksum_is_found(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.npz", ("x.npy", npy(MAP)), method=zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(MAP.tobytes()) + 5] ^= 1
    path.write_bytes(data)
    refused_file(open_maps(tmp_path), "a", r"cannot read .*a\.npz: Bad CRC-32")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archive_with_two_maps_of_one_image(tmp_path: Path) -> None:
    path = zipped(tmp_path / "all.npz", ("a.npy", npy(MAP)), ("a.npy", npy(MAP)), ("b.npy", npy(MAP)))
    with pytest.raises(UserError, match=r"all\.npz holds 3 maps of 2 images; expected one of each"):
        open_maps(path)


def test_neither_folder_nor_archive(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no maps")
    (tmp_path / "text.npz").write_text("no archive")
    for path, pattern in (("gone", "neither a folder"), ("notes.txt", "neither a folder"), ("text.npz", "cannot read")):
        with pytest.raises(UserError, match=pattern):
            open_maps(tmp_path / path)


def test_threads_may_switch_while_a_header_is_parsed() -> None:
    class Loop:
        """What the collector frees at any moment, with Python code on the way: threads switch there."""

        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            for _ in range(200):
                pass

    def read_one(_: int) -> np.ndarray:
        Loop()
        return read(data)

    data, interval, thresholds = npy(MAP), sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(5)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(np.array_equal(found, MAP) for found in pool.map(read_one, range(3000)))
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
