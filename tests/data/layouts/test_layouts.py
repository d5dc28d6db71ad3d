"""All layouts together: one set gives one index whatever its layout, which is recognized, and mistakes are one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from i2c_fast.data import ImageIndex, UnreadableImageError, read_image
from i2c_fast.data.layouts import LAYOUTS, read_split, recognize
from i2c_fast.errors import UserError

from . import small_set
from .small_set import CLASSES, HEIGHT, TRAIN, VAL, VARIANTS, WIDTH, Item, Options

Writer = Callable[[Path], Options]
every_variant = pytest.mark.parametrize(("layout", "write"), VARIANTS, ids=[writer.__name__ for _, writer in VARIANTS])


def contents(index: ImageIndex) -> dict[str, Any]:
    """Label and boxes of each image, by its file's name."""
    return {
        Path(path).name: (int(label), [tuple(box) for box in boxes.tolist()])
        for path, label, boxes in zip(index.paths, index.labels, index.boxes, strict=True)
    }


def expected(items: list[Item]) -> dict[str, Any]:
    return {item.name: (item.label, item.boxes) for item in items}


@every_variant
def test_index_labels_and_boxes_are_equal_in_every_layout(layout: str, write: Writer, tmp_path: Path) -> None:
    options = write(tmp_path)
    train, val = read_split(split="train", **options), read_split(split="val", **options)
    assert train.classes == val.classes == CLASSES
    assert contents(train) == expected(TRAIN)
    assert contents(val) == expected(VAL)


@every_variant
def test_indexed_paths_lead_to_the_images(layout: str, write: Writer, tmp_path: Path) -> None:
    options = write(tmp_path)
    for split in ("train", "val"):
        index = read_split(split=split, **options)
        for i in range(len(index)):
            assert read_image(index.file(i)).shape == (HEIGHT, WIDTH, 3)


@every_variant
def test_layout_is_recognized_and_may_be_named(layout: str, write: Writer, tmp_path: Path) -> None:
    options = write(tmp_path)
    assert recognize(options["root"], options.get("metadata", "")) == layout
    named, found = read_split(split="val", layout=layout, **options), read_split(split="val", **options)
    assert named.paths == found.paths


@every_variant
def test_types_are_those_of_the_index(layout: str, write: Writer, tmp_path: Path) -> None:
    index = read_split(split="val", **write(tmp_path))
    assert index.labels.dtype == np.int64
    assert all(boxes.dtype == np.float32 and boxes.shape[1:] == (4,) for boxes in index.boxes)
    assert index.sizes is None or index.sizes.dtype == np.int64


@pytest.mark.parametrize("write", [small_set.ilsvrc, small_set.wsolevaluation])
def test_annotated_sizes_come_along(write: Writer, tmp_path: Path) -> None:
    sizes = read_split(split="val", **write(tmp_path)).sizes
    assert sizes is not None
    assert sizes.tolist() == [[WIDTH, HEIGHT]] * len(VAL)


def test_trees_of_the_same_set_have_one_fingerprint(tmp_path: Path) -> None:
    # Where Kaggle's archive was unpacked, or which of its folders is named, makes no other data set.
    options = small_set.kaggle_with_xml(tmp_path)
    outer, inner = read_split(split="val", **options), read_split(tmp_path / "ILSVRC", "val")
    assert outer.fingerprint() == inner.fingerprint()


def test_relative_root_finds_the_csv_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_set.kaggle(tmp_path)
    monkeypatch.chdir(tmp_path / "ILSVRC")
    assert contents(read_split(".", "val")) == expected(VAL)


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_set.folders(tmp_path / "set")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(read_split("~/set", "train")) == len(TRAIN)


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    small_set.folders(tmp_path / "disk")
    (tmp_path / "set").mkdir()
    for name in ("train", "val", "boxes.csv"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "disk" / name)
    assert contents(read_split(tmp_path / "set", "val")) == expected(VAL)


def test_dangling_link_stays_in_the_index_so_that_reading_names_it(tmp_path: Path) -> None:
    small_set.folders(tmp_path)
    (tmp_path / "train" / CLASSES[0] / "lost.JPEG").symlink_to(tmp_path / "nowhere.JPEG")
    index = read_split(tmp_path, "train")
    with pytest.raises(UnreadableImageError, match="lost"):
        read_image(index.file(index.paths.index(f"train/{CLASSES[0]}/lost.JPEG")))


# Mistakes


def mistake(pattern: str, **options: Any) -> None:
    with pytest.raises(UserError, match=pattern) as caught:
        read_split(**{"split": "val", **options})
    assert "\n" not in str(caught.value)


def test_unset_root() -> None:
    mistake("data.root is not set; give the data set's folder", root="")


@pytest.mark.parametrize("layout", ["auto", *LAYOUTS])
def test_wrong_root(layout: str, tmp_path: Path) -> None:
    mistake(r"data\.root: .*nowhere is not a folder", root=tmp_path / "nowhere", layout=layout)


def test_root_of_no_layout_lists_what_would_be_one(tmp_path: Path) -> None:
    (tmp_path / "stuff").mkdir()
    mistake(
        r"fits no known layout .*cub: images\.txt.*ilsvrc: Data/CLS-LOC/train.*folders: train/<class>", root=tmp_path
    )


def test_unknown_layout_lists_those_there_are(tmp_path: Path) -> None:
    mistake("data.layout=voc is not one of auto, wsolevaluation, cub, ilsvrc, folders", root=tmp_path, layout="voc")


@pytest.mark.parametrize("layout", ["cub", "ilsvrc", "wsolevaluation"])
def test_root_of_another_layout_than_the_named_one(layout: str, tmp_path: Path) -> None:
    mistake(f"is not in the {layout} layout", layout=layout, **small_set.folders(tmp_path))


def test_wsolevaluation_without_metadata_says_what_to_give(tmp_path: Path) -> None:
    options = small_set.folders(tmp_path)
    mistake("give its lists as data.metadata=FOLDER", layout="wsolevaluation", **options)


def test_wrong_metadata(tmp_path: Path) -> None:
    mistake(r"data\.metadata: .*nowhere is not a folder", **small_set.folders(tmp_path), metadata=tmp_path / "nowhere")


def test_metadata_beside_another_named_layout(tmp_path: Path) -> None:
    options = small_set.folders(tmp_path)
    mistake(
        "data.metadata is for data.layout=wsolevaluation, this is folders",
        layout="folders",
        metadata=tmp_path,
        **options,
    )


def test_devkit_for_another_layout(tmp_path: Path) -> None:
    mistake(
        "data.devkit is for data.layout=wsolevaluation, this is ilsvrc", **small_set.ilsvrc(tmp_path), devkit=tmp_path
    )


@pytest.mark.parametrize("write", [small_set.ilsvrc, small_set.folders])
def test_class_folder_without_images(write: Writer, tmp_path: Path) -> None:
    options = write(tmp_path)
    folder = next(tmp_path.rglob("train")) / "n09999999"
    folder.mkdir()
    mistake(f"{folder} holds no images; unpack them there, or remove the folder", split="train", **options)


@pytest.mark.parametrize("write", [small_set.ilsvrc, small_set.folders])
def test_training_folder_that_cannot_be_listed(write: Writer, tmp_path: Path) -> None:
    options = write(tmp_path)
    folder = next(tmp_path.rglob("train")) / CLASSES[0]
    (folder / "loop.JPEG").symlink_to(folder / "loop.JPEG")
    mistake(r"cannot list .*loop\.JPEG: Too many levels of symbolic links", split="train", **options)


@pytest.mark.parametrize("write", [small_set.ilsvrc, small_set.folders])
def test_missing_validation_folder(write: Writer, tmp_path: Path) -> None:
    options = write(tmp_path)
    val = next(tmp_path.rglob("train")).with_name("val")
    val.rename(tmp_path / "elsewhere")
    mistake(f"{val} does not exist", **options)


def test_training_boxes_are_given_where_asked_for_and_known(tmp_path: Path) -> None:
    known = small_set.cub(tmp_path / "cub")
    assert all(boxes.tolist() == [[0, 0, 5, 5]] for boxes in read_split(split="boxed_train", **known).boxes)
    assert not any(map(len, read_split(split="train", **known).boxes))
    in_folders = small_set.folders(tmp_path / "folders")
    item = TRAIN[3]
    with (in_folders["root"] / "boxes.csv").open("a") as file:
        file.write(f"\ntrain/{item.wnid}/{item.name},1,2,3,4")
    index = read_split(split="boxed_train", **in_folders)
    assert [boxes.tolist() for boxes in index.boxes if len(boxes)] == [[[1, 2, 3, 4]]]
    assert index.paths[3].endswith(item.name) and len(index.boxes[3])
    unknown = small_set.ilsvrc(tmp_path / "ilsvrc")
    assert not any(map(len, read_split(split="boxed_train", **unknown).boxes))


def test_third_split_is_for_one_layout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="val is the split that is scored in the folders layout"):
        read_split(split="fullsup", **small_set.folders(tmp_path))
