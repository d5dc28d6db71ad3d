"""A hard look at one file: each kind of damage and oddity, told from each other and from nothing at all."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from i2c_fast.data import read_image
from i2c_fast.data.inspection import inspect_image

YS, XS = np.mgrid[:40, :60]
PICTURE = Image.fromarray(np.stack([4 * XS, 6 * YS, 255 - 2 * (XS + YS)], axis=2).astype(np.uint8))


def encoded(picture: Image.Image = PICTURE, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int) -> bytes:
    """A PNG that claims to be large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def look(folder: Path, data: bytes, name: str = "image.JPEG") -> Any:
    (folder / name).write_bytes(data)
    return inspect_image(folder / name)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("a.JPEG", "JPEG", {}),
        ("a.jpg", "JPEG", {"progressive": True}),
        ("a.PNG", "PNG", {}),
        ("a.webp", "WEBP", {}),
        ("a.bmp", "BMP", {}),
        ("a.tif", "TIFF", {}),
        ("a.tiff", "TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_plain_image_is_neither_broken_nor_odd(tmp_path: Path, name: str, kind: str, options: dict[str, Any]) -> None:
    assert look(tmp_path, encoded(PICTURE, kind, **options), name) == ("", (), (60, 40))


def test_gray_image_is_plain(tmp_path: Path) -> None:
    assert look(tmp_path, encoded(PICTURE.convert("L"))) == ("", (), (60, 40))


# Broken


@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
def test_truncated_image_is_broken(tmp_path: Path, kind: str, fraction: float) -> None:
    data = encoded(PICTURE, kind)
    found = look(tmp_path, data[: int(len(data) * fraction)])
    assert found.broken
    assert found.size is None


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("lost", [1, 2, 20])
def test_jpeg_without_its_last_bytes_is_broken(tmp_path: Path, lost: int, progressive: bool) -> None:
    # Decoders take a small file whose last bytes are missing.
    assert "truncated" in look(tmp_path, encoded(progressive=progressive)[:-lost]).broken


def test_jpeg_whose_end_is_overwritten_is_broken(tmp_path: Path) -> None:
    data = encoded()
    assert "truncated" in look(tmp_path, data[: len(data) // 2] + bytes(len(data) // 2)).broken


def test_jpeg_with_something_behind_its_end_is_plain(tmp_path: Path) -> None:
    for tail in (bytes(100), b"appended", encoded()):
        assert look(tmp_path, encoded() + tail) == ("", (), (60, 40))


def test_end_marker_of_a_thumbnail_does_not_count(tmp_path: Path) -> None:
    exif = b"\xff\xe1" + struct.pack(">H", len(encoded()) + 8) + b"Exif\0\0" + encoded()
    data = encoded()[:2] + exif + encoded()[2:]
    assert not look(tmp_path, data).broken
    assert "truncated" in look(tmp_path, data[:-20]).broken


def test_png_with_a_changed_byte_is_broken(tmp_path: Path) -> None:
    data = bytearray(encoded(PICTURE, "PNG"))
    data[len(data) // 2] ^= 255
    assert look(tmp_path, bytes(data), "a.png").broken.startswith("is damaged: ")


def test_tiff_with_a_hole_is_broken_though_opencv_takes_it(tmp_path: Path) -> None:
    data = bytearray(encoded(PICTURE.resize((200, 200)), "TIFF", compression="tiff_lzw"))
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    assert look(tmp_path, bytes(data), "a.tif").broken.startswith("is damaged: ")
    assert read_image(tmp_path / "a.tif").shape == (200, 200, 3)


def test_empty_file_is_broken(tmp_path: Path) -> None:
    assert look(tmp_path, b"").broken == "is empty"


@pytest.mark.parametrize("data", [b"garbage" * 100, b"<html>404</html>", b"RIFF", bytes(4096)])
def test_garbage_is_broken(tmp_path: Path, data: bytes) -> None:
    assert look(tmp_path, data).broken == "is no image that Pillow recognizes"


@pytest.mark.parametrize("kind", ["GIF", "JPEG2000", "PPM", "ICO"])
def test_other_formats_are_broken_though_some_decoder_reads_them(tmp_path: Path, kind: str) -> None:
    assert look(tmp_path, encoded(PICTURE, kind)).broken == f"is a {kind}, which is not read; convert it to JPEG or PNG"


def test_missing_file_and_folder_are_broken(tmp_path: Path) -> None:
    assert inspect_image(tmp_path / "nowhere.JPEG").broken == "No such file or directory"
    assert inspect_image(tmp_path).broken == "Is a directory"


@pytest.mark.parametrize("side", [13_400, 60_000])
def test_picture_of_absurd_size_is_broken_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    assert look(tmp_path, png(side, side), "a.png").broken == "has more than 178 956 970 pixels"


def test_png_with_fewer_pixels_than_it_claims_is_broken(tmp_path: Path) -> None:
    assert "truncated" in look(tmp_path, png(300, 300), "a.png").broken


# Odd


@pytest.mark.parametrize(("name", "kind"), [("a.JPEG", "PNG"), ("a.png", "JPEG"), ("a", "JPEG"), ("a.jpg", "WEBP")])
def test_name_that_says_another_format_is_odd(tmp_path: Path, name: str, kind: str) -> None:
    assert look(tmp_path, encoded(PICTURE, kind), name) == ("", (f"is a {kind}",), (60, 40))


def test_cmyk_is_odd(tmp_path: Path) -> None:
    assert look(tmp_path, encoded(PICTURE.convert("CMYK"))).odd == ("is CMYK",)


@pytest.mark.parametrize(("orientation", "odd"), [(1, False), (3, True), (6, True)])
@pytest.mark.parametrize(("name", "kind"), [("a.JPEG", "JPEG"), ("a.png", "PNG"), ("a.webp", "WEBP")])
def test_exif_rotation_is_odd_and_the_size_that_of_the_stored_pixels(
    tmp_path: Path, name: str, kind: str, orientation: int, odd: bool
) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    found = look(tmp_path, encoded(PICTURE, kind, exif=exif), name)
    text = f"is rotated by EXIF orientation {orientation}, which is not applied"
    assert found == ("", (text,) if odd else (), (60, 40))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_odd(tmp_path: Path, mode: str) -> None:
    picture = PICTURE.convert("RGBA")
    picture.putalpha(7)
    found = look(tmp_path, encoded(picture.convert(mode), "PNG"), "a.png")
    assert found.odd == ("has transparency, which is dropped",)


def test_deep_gray_is_odd(tmp_path: Path) -> None:
    deep = Image.fromarray(np.linspace(0, 65535, 2400).reshape(40, 60).astype(np.uint16))
    for name, kind in (("a.png", "PNG"), ("a.tif", "TIFF")):
        assert look(tmp_path, encoded(deep, kind), name).odd == ("has more than 8 bits a channel",)


def test_deep_color_is_odd(tmp_path: Path) -> None:
    rows = zlib.compress(b"".join(b"\0" + bytes(6 * 4) for _ in range(3)))
    data = png(4, 3).replace(zlib.compress(bytes(1000)), rows)
    # Bit depth 16 in the header, with checksums made anew.
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0)
    idat = b"IDAT" + rows
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (ihdr, idat)]
    assert look(tmp_path, data[:8] + b"".join(parts) + end, "a.png") == (
        "",
        ("has more than 8 bits a channel",),
        (4, 3),
    )


def test_several_oddities_are_all_listed(tmp_path: Path) -> None:
    picture = PICTURE.convert("RGBA")
    assert look(tmp_path, encoded(picture, "PNG")).odd == ("is a PNG", "has transparency, which is dropped")
