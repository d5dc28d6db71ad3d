"""Pixels: which files decode and how, the geometry of crops by hand, and normalization by hand."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from i2c_fast.data import UnreadableImageError, read_image, resize
from i2c_fast.data.images import Image, train_crop

# Smooth, so that JPEG keeps it, and different in every channel and direction.
YS, XS = np.mgrid[:40, :60]
PICTURE = np.stack([4 * XS, 6 * YS, 255 - 2 * (XS + YS)], axis=2).astype(np.uint8)
ORIENTATION = 0x112


def encoded(picture: Image | Pillow.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Pillow.Image) else Pillow.fromarray(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(folder: Path, data: bytes, name: str = "image.JPEG") -> Image:
    (folder / name).write_bytes(data)
    return read_image(folder / name)


def offset(x: float, y: float) -> np.ndarray:
    return np.array([x, y])


# Decoding


@pytest.mark.parametrize(("kind", "name"), [("PNG", "a.png"), ("BMP", "a.bmp"), ("TIFF", "a.tif"), ("PNG", "a.JPEG")])
def test_lossless_files_decode_exactly_whatever_their_name(tmp_path: Path, kind: str, name: str) -> None:
    image = decoded(tmp_path, encoded(PICTURE, kind), name)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, PICTURE)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_decodes_to_rgb(tmp_path: Path, options: dict[str, Any]) -> None:
    image = decoded(tmp_path, encoded(PICTURE, "JPEG", quality=98, **options))
    assert abs(image.astype(int) - PICTURE).mean() < 2


def test_webp_decodes_to_rgb(tmp_path: Path) -> None:
    np.testing.assert_array_equal(decoded(tmp_path, encoded(PICTURE, "WEBP", lossless=True)), PICTURE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_gray_file_becomes_three_equal_channels(tmp_path: Path, kind: str) -> None:
    gray = PICTURE[..., 0]
    image = decoded(tmp_path, encoded(gray, kind))
    assert image.shape == (40, 60, 3)
    assert (image == image[..., :1]).all()
    assert abs(image[..., 0].astype(int) - gray).max() <= 3


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    image = decoded(tmp_path, encoded(Pillow.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=98))
    assert image.shape == (40, 60, 3)
    assert abs(image.astype(int) - PICTURE).mean() < 3


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 2400).reshape(40, 60).astype(np.uint16)
    image = decoded(tmp_path, encoded(Pillow.fromarray(deep), "PNG"))
    assert image.dtype == np.uint8
    assert abs(image[..., 1] - deep / 257).max() <= 1


@pytest.mark.parametrize("alpha", [0, 7, 255])
def test_alpha_is_dropped_not_blended(tmp_path: Path, alpha: int) -> None:
    picture = Pillow.fromarray(PICTURE)
    picture.putalpha(alpha)
    np.testing.assert_array_equal(decoded(tmp_path, encoded(picture, "PNG")), PICTURE)


def test_palette_and_black_and_white_files_become_rgb(tmp_path: Path) -> None:
    for mode in ("P", "1"):
        picture = Pillow.fromarray(PICTURE).convert(mode)
        expected = np.asarray(picture.convert("RGB"))
        np.testing.assert_array_equal(decoded(tmp_path, encoded(picture, "PNG")), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation_is_not_applied(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Pillow.Exif()
    exif[ORIENTATION] = orientation
    plain = decoded(tmp_path, encoded(PICTURE, kind))
    np.testing.assert_array_equal(decoded(tmp_path, encoded(PICTURE, kind, exif=exif)), plain)


def test_path_may_hold_any_characters(tmp_path: Path) -> None:
    for name in ("with space.png", "ünï☃.png", b"caf\xe9.png".decode(errors="surrogateescape")):
        np.testing.assert_array_equal(decoded(tmp_path, encoded(PICTURE, "PNG"), name), PICTURE)


# Decoding that fails


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.6, 0.95])
def test_truncated_file_is_unreadable(tmp_path: Path, kind: str, fraction: float) -> None:
    data = encoded(PICTURE, kind)
    with pytest.raises(UnreadableImageError):
        decoded(tmp_path, data[: int(len(data) * fraction)])


@pytest.mark.parametrize("data", [b"", b"garbage" * 100, b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
def test_file_that_is_no_image_is_unreadable_and_named_on_one_line(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UnreadableImageError) as caught:
        decoded(tmp_path, data, "broken.JPEG")
    assert str(caught.value).startswith(str(tmp_path / "broken.JPEG"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.png", "folder"])
def test_missing_file_and_folder_are_unreadable(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnreadableImageError, match=name):
        read_image(tmp_path / name)


def test_picture_of_absurd_size_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    data = encoded(np.zeros((1, 1, 3), np.uint8), "BMP")
    with pytest.raises(UnreadableImageError):
        decoded(tmp_path, data[:18] + (50_000).to_bytes(4, "little") * 2 + data[26:])


# Resizing


def test_resize_to_the_same_size_keeps_every_pixel() -> None:
    np.testing.assert_array_equal(resize(PICTURE, 60, 40), PICTURE)


def test_resize_takes_width_before_height() -> None:
    assert resize(PICTURE, 30, 70).shape == (70, 30, 3)


def test_resize_is_bilinear_with_pixel_centers_at_halves() -> None:
    ramp = np.broadcast_to(10 * np.arange(20, dtype=np.uint8)[:, None], (10, 20, 3))
    expected = np.clip(10 * ((np.arange(60) + 0.5) / 3 - 0.5), 0, 190)
    assert abs(resize(np.ascontiguousarray(ramp), 60, 10) - expected[:, None]).max() <= 1


def test_shrinking_does_not_antialias() -> None:
    stripes = np.zeros((12, 12, 3), np.uint8)
    stripes[:, 1::3] = 240  # a third of the width shows the middle column of each three alone
    assert (resize(stripes, 4, 4) == 240).all()


def test_shrinking_antialiased_averages() -> None:
    stripes = np.zeros((12, 12, 3), np.uint8)
    stripes[:, 1::3] = 240
    found = resize(stripes, 4, 4, "antialias")
    assert 60 < found.min() <= found.max() < 140  # with weights that fall off to both sides


@pytest.mark.parametrize("size", [(60, 40), (90, 80)])
def test_flavors_are_one_where_nothing_shrinks(size: tuple[int, int]) -> None:
    assert abs(resize(PICTURE, *size, "antialias").astype(int) - resize(PICTURE, *size, "linear")).max() <= 1


def test_opencvs_threads_are_off() -> None:
    # A pool of its own would fight the loader's processes, and hang those forked beside it.
    assert cv2.getNumThreads() == 1


# Cropping


def test_crop_is_cut_at_its_share_of_the_free_range() -> None:
    # Short side 40 of a 40 x 60 picture: nothing is resized; 31 offsets across, 11 down.
    for (px, py), (x, y) in {(0, 0): (0, 0), (0.5, 0.5): (15, 5), (0.999, 0.999): (30, 10), (0.1, 0.9): (3, 9)}.items():
        cut = train_crop(PICTURE, 40, 30, offset(px, py), flip=False)
        np.testing.assert_array_equal(cut, PICTURE[y : y + 30, x : x + 30])


def test_every_place_of_the_crop_is_as_likely() -> None:
    strip = PICTURE[:10, :13]
    starts = [train_crop(strip, 10, 10, offset(i / 400, 0), flip=False)[0, 0, 0] // 4 for i in range(400)]
    assert np.bincount(starts).tolist() == [100] * 4


def test_flip_mirrors_left_and_right_after_the_cut() -> None:
    plain, mirrored = (train_crop(PICTURE, 40, 30, offset(0.2, 0.7), flip) for flip in (False, True))
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])
    assert (plain != mirrored).any()


@pytest.mark.parametrize("upright", [False, True])
def test_shorter_side_becomes_the_short_side(upright: bool) -> None:
    picture = np.ascontiguousarray(PICTURE.transpose(1, 0, 2)) if upright else PICTURE
    whole = resize(picture, *((20, 30) if upright else (30, 20)))
    far = train_crop(picture, 20, 20, offset(0.9999, 0.9999), flip=False)
    np.testing.assert_array_equal(far, whole[-20:, -20:])


def test_training_crop_of_the_full_square_is_the_test_image() -> None:
    square = PICTURE[:, :40]
    np.testing.assert_array_equal(train_crop(square, 24, 24, offset(0.5, 0.5), flip=False), resize(square, 24, 24))


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 48), st.integers(0, 16), st.booleans())
def test_crop_has_the_asked_size_for_any_image(width: int, height: int, size: int, more: int, flip: bool) -> None:
    image = np.full((height, width, 3), 9, np.uint8)
    cut = train_crop(image, size + more, size, offset(0.999999, 0.999999), flip)
    assert (cut.shape, cut.dtype) == ((size, size, 3), np.uint8)
    assert (cut == 9).all()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 400), (400, 2), (1, 50)])
def test_tiny_and_extreme_images_are_cropped(width: int, height: int) -> None:
    assert train_crop(np.zeros((height, width, 3), np.uint8), 36, 32, offset(0.5, 0.5), True).shape == (32, 32, 3)
