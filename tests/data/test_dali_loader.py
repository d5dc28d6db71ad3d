"""The DALI loader: the batches of the OpenCV loader, whatever threads, prefetching and the state of the files."""

import gc
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

pytest.importorskip("nvidia.dali")

from i2c_fast.data import (
    ClassPairedSampler,
    Deal,
    EvalBatches,
    Flavor,
    ImageIndex,
    Loading,
    TrainBatch,
    TrainBatches,
    eval_loader,
    read_split,
    train_loader,
)
from i2c_fast.data.generated import write_generated
from i2c_fast.data.images import MAX_ASPECT, Image
from i2c_fast.errors import UserError

DALI = Loading("dali")
SIZE, SHORT = 40, 44

# Of 255, mean and largest difference of a resized pixel from the OpenCV loader's. Averages of antialiasing differ more
# in the border of the image, where DALI repeats its outermost pixels and Pillow leaves out what is not there.
TOLERANCE: dict[Flavor, tuple[float, int]] = {"linear": (0.25, 1), "antialias": (0.25, 1)}
BORDER, BORDER_TOLERANCE = 3, 16


def natural(width: int, height: int, seed: int) -> Image:
    """Noise whose spectrum falls as 1/f, as that of photographs does."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    spectrum = np.fft.rfft2(rng.standard_normal((3, height, width))) / np.maximum(frequency, 1 / max(width, height))
    pixels = np.fft.irfft2(spectrum, (height, width))
    return np.clip(127 + 50 * pixels / pixels.std(), 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()


def encoded(picture: Image | Pillow.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Pillow.Image) else Pillow.fromarray(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def folder_of(root: Path, files: dict[str, bytes]) -> ImageIndex:
    """Training split of one class of these files."""
    for split in ("train", "val"):
        (root / split / "cat").mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (root / split / "cat" / name).write_bytes(data)
    return read_split(root, "train")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dali") / "set"
    write_generated(root, seed=1, classes=3, train_images=4, val_images=3, size=48)
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    sizes = [(500, 375), (375, 500), (224, 224), (90, 61), (641, 97)]
    files = {f"{i}.JPEG": encoded(natural(*size, seed=i), quality=90) for i, size in enumerate(sizes)}
    return folder_of(tmp_path_factory.mktemp("photos"), files)


@pytest.fixture
def copied(generated: Path, tmp_path: Path) -> Path:
    """A set of one's own, to damage."""
    return Path(shutil.copytree(generated, tmp_path / "set"))


def train_batches(index: ImageIndex, slots: int = 4, flavor: Flavor = "linear") -> TrainBatches:
    return TrainBatches(index, ClassPairedSampler(index.labels, slots, 2, seed=5), SIZE, SHORT, flavor)


def positions(count: int) -> list[tuple[int, int]]:
    return [(step // 2, step % 2) for step in range(count)]


def assert_equal(first: TrainBatch, second: TrainBatch) -> None:
    assert all(torch.equal(one, other) for one, other in zip(first[:4], second[:4], strict=True))
    assert first.unreadable == second.unreadable


def assert_close(first: torch.Tensor, second: torch.Tensor, flavor: Flavor) -> None:
    """uint8 [N, 3, S, S] within the tolerance."""
    mean, largest = TOLERANCE[flavor]
    difference = (first.int() - second.int()).abs()
    if flavor == "antialias":
        assert difference.max() <= BORDER_TOLERANCE
        difference = difference[..., BORDER:-BORDER, BORDER:-BORDER]
    assert difference.float().mean() <= mean
    assert difference.max() <= largest


# The same batches as OpenCV's


@pytest.mark.parametrize("flavor", ["linear", "antialias"])
@pytest.mark.parametrize(("size", "short_side"), [(32, 32), (96, 110), (224, 256), (400, 460)])
def test_training_crops_agree_with_opencvs(photos: ImageIndex, flavor: Flavor, size: int, short_side: int) -> None:
    batches = TrainBatches(photos, ClassPairedSampler(photos.labels, 1, 5, seed=2), size, short_side, flavor)
    where = positions(2)
    for first, second in zip(train_loader(batches, where, 0), train_loader(batches, where, 1, DALI), strict=True):
        assert_close(first.images, second.images, flavor)
        assert_equal(first, second._replace(images=first.images))


@pytest.mark.parametrize("flavor", ["linear", "antialias"])
@pytest.mark.parametrize("size", [32, 224, 448])
def test_evaluation_images_agree_with_opencvs(photos: ImageIndex, flavor: Flavor, size: int) -> None:
    batches = EvalBatches(photos, size, 3, round(size * 8 / 7), flavor)
    for first, second in zip(eval_loader(batches, 0), eval_loader(batches, 1, DALI), strict=True):
        assert_close(first.images, second.images, flavor)
        assert first.enlarged is not None and second.enlarged is not None
        assert_close(first.enlarged, second.enlarged, flavor)
        assert torch.equal(first.sizes, second.sizes)
        assert torch.equal(first.labels, second.labels)
        assert torch.equal(first.indices, second.indices)


def test_decoded_pixels_and_flips_are_exact(tmp_path: Path) -> None:
    index = folder_of(tmp_path, {f"{i}.JPEG": encoded(natural(64, 64, i), quality=80) for i in range(4)})
    batches = TrainBatches(index, ClassPairedSampler(index.labels, 1, 4, seed=0), 64, 64)  # nothing is resized or cut
    flips = set()
    for where in positions(3):
        (second,) = train_loader(batches, [where], 1, DALI)
        assert_equal(batches[where], second)
        flips |= set(batches.sampler.plan(*where).flips.tolist())
    assert flips == {False, True}


def test_crops_without_resizing_are_exact(tmp_path: Path) -> None:
    shapes = [(64, 80), (97, 64), (64, 64)]
    index = folder_of(tmp_path, {f"{i}.png": encoded(natural(*shape, i), "PNG") for i, shape in enumerate(shapes)})
    batches = TrainBatches(index, ClassPairedSampler(index.labels, 1, 3, seed=0), 50, 64)
    for where, batch in zip(positions(8), train_loader(batches, positions(8), 1, DALI), strict=True):
        assert_equal(batches[where], batch)


def test_sizes_that_end_in_a_half_are_rounded_alike(tmp_path: Path) -> None:
    # 48 x 49.5 before the cut: with a pixel less, crops at the far end lie elsewhere.
    index = folder_of(tmp_path, {"a.png": encoded(natural(66, 64, 0), "PNG")})
    batches = TrainBatches(index, ClassPairedSampler(index.labels, 1, 8, seed=0), 48, 48)
    (batch,) = train_loader(batches, [(0, 0)], 1, DALI)
    assert_close(batches[0, 0].images, batch.images, "linear")


@pytest.mark.parametrize("upright", [False, True])
def test_of_a_strip_only_the_longest_allowed_part_is_resized(tmp_path: Path, upright: bool) -> None:
    strip = natural(20 * (MAX_ASPECT + 9), 20, 0)
    picture = strip.transpose(1, 0, 2) if upright else strip
    index = folder_of(tmp_path, {"a.png": encoded(np.ascontiguousarray(picture), "PNG")})
    batches = TrainBatches(index, ClassPairedSampler(index.labels, 1, 8, seed=3), 32, 36)
    (batch,) = train_loader(batches, [(0, 0)], 1, DALI)
    assert_close(batches[0, 0].images, batch.images, "linear")


# Files of all kinds


def kinds() -> dict[str, bytes]:
    """Files that are read, of the same picture."""
    picture = natural(70, 50, 7)
    image = Pillow.fromarray(picture)
    rotated = Pillow.Exif()
    rotated[0x112] = 6
    return {
        "progressive.JPEG": encoded(picture, progressive=True),
        "png named so.JPEG": encoded(picture, "PNG"),
        "bmp.bmp": encoded(picture, "BMP"),
        "webp.webp": encoded(picture, "WEBP", lossless=True),
        "tiff.tif": encoded(picture, "TIFF"),
        "gray.JPEG": encoded(picture[..., 0]),
        "palette.png": encoded(image.convert("P"), "PNG"),
        "cmyk.JPEG": encoded(image.convert("CMYK")),
        "rotated.JPEG": encoded(picture, exif=rotated),
        "more behind its end.JPEG": encoded(picture) + b"more",
        "ünï☃.JPEG": encoded(picture),
    }


def test_files_of_all_kinds_are_read_as_opencv_reads_them(tmp_path: Path) -> None:
    index = folder_of(tmp_path, kinds())
    batches = EvalBatches(index, 64, 64)
    (first,), (second,) = eval_loader(batches, 0), eval_loader(batches, 2, DALI)
    assert_close(first.images, second.images, "linear")
    assert torch.equal(first.sizes, second.sizes)


def bad() -> dict[str, Callable[[Path], object]]:
    picture = natural(70, 50, 8)
    whole, gif = encoded(picture), encoded(picture, "GIF")
    return {
        "truncated": lambda file: file.write_bytes(whole[: len(whole) // 2]),
        "without its last bytes": lambda file: file.write_bytes(whole[:-2]),
        "empty": lambda file: file.write_bytes(b""),
        "garbage": lambda file: file.write_bytes(b"garbage" * 100),
        "gif": lambda file: file.write_bytes(gif),
        "jpeg 2000": lambda file: file.write_bytes(encoded(picture, "JPEG2000")),  # which DALI would read
        "missing": lambda file: file.unlink(),
        "folder": lambda file: (file.unlink(), file.mkdir()),
        "pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    }


@pytest.mark.parametrize("damage", bad().values(), ids=bad())
def test_an_unreadable_training_image_is_replaced_and_reported_as_by_opencv(
    copied: Path, damage: Callable[[Path], object]
) -> None:
    batches = train_batches(read_split(copied, "train"))
    victim = int(batches.sampler.plan(0, 1).indices[3])
    damage(batches.index.file(victim))
    met = 0
    for where, batch in zip(positions(4), train_loader(batches, positions(4), 1, DALI), strict=True):
        expected = batches[where]
        met += len(expected.unreadable)
        assert batch.unreadable == expected.unreadable
        assert_close(expected.images, batch.images, "linear")
    assert met


def test_several_unreadable_images_in_a_row_are_replaced(copied: Path) -> None:
    batches = train_batches(read_split(copied, "train"))
    for image in (0, 1, 2, 5, 6, 10):
        batches.index.file(image).write_bytes(b"")
    for where, batch in zip(positions(4), train_loader(batches, positions(4), 1, DALI), strict=True):
        assert batch.unreadable == batches[where].unreadable
        assert_close(batches[where].images, batch.images, "linear")


def test_a_class_without_a_readable_image_is_an_error_that_names_it(copied: Path) -> None:
    batches = train_batches(read_split(copied, "train"))
    for image in np.flatnonzero(batches.index.labels == 1):
        batches.index.file(int(image)).write_bytes(b"garbage")
    with pytest.raises(UserError, match="n90000002"):
        list(train_loader(batches, positions(2), 1, DALI))


@pytest.mark.parametrize("data", [b"", b"garbage", b"P6 1 1 255 abc"])
def test_an_unreadable_test_image_is_the_error_that_opencv_gives(copied: Path, data: bytes) -> None:
    index = read_split(copied, "val")
    index.file(5).write_bytes(data)
    found = []
    for loading in (Loading(), DALI):
        with pytest.raises(UserError, match=index.file(5).name) as caught:
            list(eval_loader(EvalBatches(index, SIZE, 4), 0, loading))
        found.append(str(caught.value))
    assert found[0] == found[1]


def test_what_only_dali_cannot_read_is_found_by_a_probe(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from i2c_fast.data import dali_loader

    batches = train_batches(read_split(copied, "train"))
    victim = int(batches.sampler.plan(0, 0).indices[0])
    batches.index.file(victim).write_bytes(b"garbage")
    monkeypatch.setattr(dali_loader, "read_image", lambda path: None)
    (batch,) = train_loader(batches, [(0, 0)], 1, DALI)
    assert [image for image, _ in batch.unreadable] == [victim]
    assert batch.unreadable[0][1].startswith("DALI cannot read it: nvImageCodec")


def test_a_failure_that_is_no_image_s_is_one_line_of_dalis_own_words(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from i2c_fast.data import dali_graph

    batches = train_batches(read_split(copied, "train"))
    monkeypatch.setattr(dali_graph.fn, "cast", lambda node, **_: node)  # a graph that no image passes
    with pytest.raises(UserError, match=r"^data\.loader=dali failed, and no image is to blame \([^\n]+\)[^\n]*opencv"):
        list(train_loader(batches, [(0, 0)], 1, DALI))


# Threads, prefetching, memory


@pytest.mark.parametrize(("threads", "prefetch"), [(0, 1), (2, 2), (3, 4)])
def test_threads_and_prefetching_change_no_pixel(generated: Path, threads: int, prefetch: int) -> None:
    batches = train_batches(read_split(generated, "train"), flavor="antialias")
    reference = list(train_loader(batches, positions(5), 1, DALI))
    found = list(train_loader(batches, positions(5), threads, Loading("dali", prefetch)))
    assert len(found) == len(reference) == 5
    for first, second in zip(reference, found, strict=True):
        assert_equal(first, second)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_have_the_parts_of_one_batch(generated: Path, ranks: int) -> None:
    index = read_split(generated, "train")
    (whole,) = train_loader(train_batches(index), [(1, 0)], 1, DALI)
    for rank in range(ranks):
        sampler = ClassPairedSampler(index.labels, 4, 2, 5, Deal(ranks=ranks, rank=rank))
        (part,) = train_loader(TrainBatches(index, sampler, SIZE, SHORT), [(1, 0)], 1, DALI)
        assert len(part.images) == 8 // ranks
        assert_equal(part, TrainBatch(*(one[part.image_ids] for one in whole[:4])))


def test_no_position_is_no_batch(generated: Path) -> None:
    # A rank has none where there are fewer batches than ranks.
    assert list(eval_loader(EvalBatches(read_split(generated, "val"), SIZE, 4), 1, DALI, [])) == []
    assert list(train_loader(train_batches(read_split(generated, "train")), [], 1, DALI)) == []


def test_a_position_gives_the_same_batch_wherever_loading_begins(generated: Path) -> None:
    batches = train_batches(read_split(generated, "train"))
    whole = list(train_loader(batches, positions(6), 1, DALI))
    rest = list(train_loader(batches, positions(6)[4:], 2, DALI))
    assert len(rest) == 2
    for first, second in zip(whole[4:], rest, strict=True):
        assert_equal(first, second)


def test_batches_that_are_kept_are_not_written_again(generated: Path) -> None:
    batches = train_batches(read_split(generated, "train"))
    kept, copies = [], []
    for batch in train_loader(batches, positions(14), 1, Loading("dali", prefetch=1)):
        kept.append(batch.images)
        copies.append(batch.images.clone())
    del batch
    gc.collect()  # the pipeline is gone
    assert all(torch.equal(one, other) for one, other in zip(kept, copies, strict=True))
    assert not torch.equal(copies[0], copies[1])


def test_images_are_uint8_in_channels_last_memory(generated: Path) -> None:
    (trained,) = train_loader(train_batches(read_split(generated, "train")), [(0, 0)], 1, DALI)
    for batch in (trained, *eval_loader(EvalBatches(read_split(generated, "val"), SIZE, 9), 1, DALI)):
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape[1:] == (3, SIZE, SIZE)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.parametrize("flavor", ["linear", "antialias"])
def test_on_a_gpu_the_batch_lies_there_and_agrees_with_the_cpus(photos: ImageIndex, flavor: Flavor) -> None:
    batches = TrainBatches(photos, ClassPairedSampler(photos.labels, 1, 5, seed=2), 96, 110, flavor)
    device = torch.device("cuda")
    found = list(train_loader(batches, positions(4), 2, Loading("dali", device=device)))
    for where, batch in zip(positions(4), found, strict=True):
        assert batch.images.device.type == "cuda"
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        # nvJPEG upsamples colors more simply than libjpeg-turbo.
        difference = (batch.images.cpu().int() - batches[where].images.int()).abs().float()
        assert difference.mean() < 3
        assert difference.median() <= 2


def test_opencv_is_not_told_of_dalis_libraries() -> None:
    # Both bring libjpeg-turbo: reading by OpenCV after DALI was loaded gives what it always gave.
    picture = natural(64, 48, 3)
    data = np.frombuffer(encoded(picture, quality=95), np.uint8)
    np.testing.assert_array_equal(
        cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.asarray(Pillow.open(io.BytesIO(data.tobytes())))
    )
