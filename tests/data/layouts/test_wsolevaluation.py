"""wsolevaluation's lists: the label order trap, and mistakes that are one line."""

from pathlib import Path

import pytest

from i2c_fast.data.layouts import read_split
from i2c_fast.data.layouts.wsolevaluation import class_names
from i2c_fast.errors import UserError

from .small_set import CLASSES, DEVKIT, VAL, Options, write_lines, wsolevaluation, wsolevaluation_devkit

FIRST = f"val/{VAL[0].name}"


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return wsolevaluation(tmp_path)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def mistake(pattern: str, options: Options, split: str = "val") -> None:
    with pytest.raises(UserError, match=pattern) as caught:
        read_split(split=split, **options)
    assert "\n" not in str(caught.value)


# Class names and the label order trap


def test_class_names_are_the_training_folders() -> None:
    assert class_names({"a/crow/1.jpg": 1, "a/owl/1.jpg": 0, "b/crow/2.jpg": 1}) == ("owl", "crow")


@pytest.mark.parametrize(
    "labels",
    [
        {"1.jpg": 0, "2.jpg": 1},
        {"a/1.jpg": 0, "a/2.jpg": 1},
        {"a/1.jpg": 0, "b/2.jpg": 1, "c/3.jpg": 1},
        {"a/1.jpg": 0, "a/2.jpg": 1, "b/3.jpg": 1},
    ],
    ids=["no folders", "one folder for two classes", "two folders for one class", "a stray image"],
)
def test_without_a_folder_each_classes_are_numbered(labels: dict[str, int]) -> None:
    assert class_names(labels) == ("0", "1")


def test_numbers_sort_in_label_order() -> None:
    names = class_names({"1.jpg": 0, "2.jpg": 1000})
    assert names[7] == "0007"
    assert list(names) == sorted(names) and len(names) == 1001


def test_devkit_numbering_without_the_devkit_is_found_out(tmp_path: Path) -> None:
    options = wsolevaluation_devkit(tmp_path)
    del options["devkit"]
    mistake(r"does not number classes by sorted WordNet id \(its label 0 is n02102040\).*data\.devkit=", options)


def test_devkit_for_lists_in_sorted_order_is_found_out(options: Options, tmp_path: Path) -> None:
    write_lines(tmp_path / "map_clsloc.txt", [f"{wnid} {i} name" for i, wnid in enumerate(DEVKIT, 1)])
    mistake("label 0 is n01440764, in .* it is n02102040; .*leave data.devkit out", {**options, "devkit": tmp_path})


def test_devkit_maps_labels_where_paths_tell_nothing(options: Options, tmp_path: Path) -> None:
    # Numbers alone: nothing to compare with, so the map is believed.
    images, metadata = options["root"], options["metadata"]
    write_lines(tmp_path / "map.txt", [f"{i} {wnid}" for i, wnid in enumerate(DEVKIT, 1)])
    for path in (images / "train").rglob("*.JPEG"):
        path.rename(images / "train" / path.name)
    for name in ("image_ids.txt", "class_labels.txt"):
        path = metadata / "train" / name
        write_lines(path, ["train/" + line.split("/")[2] for line in path.read_text().splitlines()])
    assert read_split(split="train", **options).classes == ("0", "1", "2")
    mapped = read_split(split="train", devkit=tmp_path / "map.txt", **options)
    assert mapped.classes == CLASSES
    assert mapped.labels.tolist() == [1, 1, 2, 2, 0, 0]  # devkit ids 1, 2, 3 by sorted WordNet id


def test_label_beyond_the_devkit(tmp_path: Path) -> None:
    options = wsolevaluation_devkit(tmp_path)
    write_lines(tmp_path / "short.txt", [f"{wnid} {i}" for i, wnid in enumerate(DEVKIT[:2], 1)])
    mistake("label 2 is not among the 2 classes of .*short.txt", {**options, "devkit": tmp_path / "short.txt"})


# Splits


def test_test_lists_go_before_val_lists(options: Options) -> None:
    write_lines(options["metadata"] / "val/image_ids.txt", ["train/n01440764/n01440764_1.JPEG"])
    assert len(read_split(split="val", **options)) == len(VAL)


def test_training_boxes_are_passed_over(options: Options) -> None:
    write_lines(options["metadata"] / "train/localization.txt", ["train/n01440764/n01440764_1.JPEG,1,1,2,2"])
    assert sum(map(len, read_split(split="train", **options).boxes)) == 0


def test_training_boxes_are_read_where_thresholds_are_chosen_by_them(options: Options) -> None:
    lists = options["metadata"] / "train"
    paths = (lists / "image_ids.txt").read_text().splitlines()
    write_lines(lists / "localization.txt", [f"{path},1,1,2,{i + 2}" for i, path in enumerate(paths)])
    index = read_split(split="boxed_train", **options)
    assert [boxes.tolist() for boxes in index.boxes] == [[[1, 1, 2, i + 2]] for i in range(len(paths))]
    assert index.paths == read_split(split="train", **options).paths


def test_val_lists_beside_test_ones_are_the_fullsup_split(options: Options) -> None:
    mistake("holds no val lists beside test lists", options, "fullsup")
    path = "train/n01440764/n01440764_1.JPEG"
    for name, line in {"image_ids": path, "class_labels": f"{path},0", "localization": f"{path},1,1,2,2"}.items():
        write_lines(options["metadata"] / f"val/{name}.txt", [line])
    index = read_split(split="fullsup", **options)
    assert index.paths == (path,) and index.boxes[0].tolist() == [[1, 1, 2, 2]]
    assert index.classes == read_split(split="val", **options).classes


def test_listed_images_may_be_fewer_than_the_labelled(options: Options) -> None:
    write_lines(options["metadata"] / "test/image_ids.txt", [FIRST])
    assert read_split(split="val", **options).paths == (FIRST,)


@pytest.mark.parametrize("missing", [False, True])
def test_sizes_may_be_missing_or_empty_as_some_published_ones_are(options: Options, missing: bool) -> None:
    sizes = options["metadata"] / "test/image_sizes.txt"
    sizes.write_text("")
    if missing:
        sizes.unlink()
    assert read_split(split="val", **options).sizes is None


# Mistakes


def test_metadata_without_training_lists(options: Options, tmp_path: Path) -> None:
    (options["metadata"] / "train").rename(tmp_path / "gone")
    mistake(r"data\.metadata: .* has no folder train with image_ids\.txt and class_labels\.txt", options)


def test_metadata_of_several_sets_asks_for_one(options: Options, tmp_path: Path) -> None:
    for name in ("CUB", "ILSVRC"):
        (tmp_path / "all" / name / "train").mkdir(parents=True)
    mistake("holds CUB, ILSVRC; give one, as in data.metadata=.*all/CUB", {**options, "metadata": tmp_path / "all"})


@pytest.mark.parametrize("name", ["image_ids.txt", "class_labels.txt", "localization.txt"])
def test_missing_list(options: Options, name: str) -> None:
    (options["metadata"] / "test" / name).unlink()
    mistake(f"cannot read .*test/{name}: No such file", options)


@pytest.mark.parametrize("name", ["image_ids.txt", "class_labels.txt", "localization.txt"])
def test_empty_list(options: Options, name: str) -> None:
    (options["metadata"] / "test" / name).write_text("")
    mistake(f"test/{name} is empty", options)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("class_labels.txt", "val/x.JPEG"),
        ("class_labels.txt", "val/x.JPEG,two"),
        ("class_labels.txt", "val/x.JPEG,3"),
        ("class_labels.txt", "val/x.JPEG,-1"),
        ("image_sizes.txt", "val/x.JPEG,0,5"),
        ("image_sizes.txt", "val/x.JPEG,5"),
        ("localization.txt", "val/x.JPEG,1,2,3"),
        ("localization.txt", "val/x.jpg,val/x_mask.png,"),
    ],
)
def test_malformed_line_or_label_out_of_range(options: Options, name: str, line: str) -> None:
    path = options["metadata"] / "test" / name
    lines = path.read_text().splitlines()
    write_lines(path, [*lines, line])
    mistake(rf"test/{name}:{len(lines) + 1}: expected path,.*, got '{line}'", options)


def test_training_label_of_a_damaged_line(options: Options) -> None:
    edit(options["metadata"] / "train/class_labels.txt", "_2.JPEG,0", "_2.JPEG,999999999999")
    mistake(r"train/class_labels\.txt:2: expected path,label with a label of 0…999999", options, "train")


@pytest.mark.parametrize("name", ["image_ids.txt", "class_labels.txt", "image_sizes.txt"])
def test_image_listed_twice(options: Options, name: str) -> None:
    path = options["metadata"] / "test" / name
    lines = path.read_text().splitlines()
    write_lines(path, [*lines, lines[0]])
    mistake(f"{FIRST} is listed twice", options)


@pytest.mark.parametrize("name", ["class_labels.txt", "image_sizes.txt", "localization.txt"])
def test_image_without_a_line(options: Options, name: str) -> None:
    path = options["metadata"] / "test" / name
    write_lines(path, path.read_text().splitlines()[1:])
    mistake(f"test/{name} has no line for {FIRST}", options)


def test_box_outside_its_image(options: Options) -> None:
    edit(options["metadata"] / "test/localization.txt", "1,2,10,12", "1,2,10,17")
    mistake(r"localization\.txt:1: box 1 2 10 17 \(x0 y0 x1 y1\) does not lie in its image of 20 × 16", options)


@pytest.mark.parametrize("path", ["../secret.JPEG", "/etc/passwd", "val/../../x.JPEG", "val//x.JPEG", "./x.JPEG"])
def test_path_that_climbs_out_or_has_two_spellings(options: Options, path: str) -> None:
    write_lines(options["metadata"] / "train/image_ids.txt", [path])
    write_lines(options["metadata"] / "train/class_labels.txt", [f"{path},0"])
    mistake("image path .* leaves its root or is not plain", options, "train")


def test_root_where_none_of_the_images_is(options: Options, tmp_path: Path) -> None:
    mistake(r"none of the images in .*image_ids\.txt is under .*\(the first is val/", {**options, "root": tmp_path})


def test_list_that_is_no_text(options: Options) -> None:
    (options["metadata"] / "test/image_ids.txt").write_bytes(b"\x1f\x8b\x08\x00\xff")
    mistake(r"image_ids\.txt is not UTF-8 text", options)
