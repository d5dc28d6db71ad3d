"""ILSVRC's trees and annotations: what does not fit together is one line that names file and way out."""

from pathlib import Path

import pytest

from i2c_fast.data.layouts import read_split
from i2c_fast.data.layouts.ilsvrc_annotations import read_xml
from i2c_fast.errors import UserError

from .small_set import (
    CLASSES,
    VAL,
    Item,
    ilsvrc,
    ilsvrc_class_folders,
    kaggle,
    plain_csv,
    solution,
    write_images,
    write_lines,
    write_tree,
    xml,
)

ANNOTATIONS = "Annotations/CLS-LOC/val"
FIRST = f"{ANNOTATIONS}/ILSVRC2012_val_00000001.xml"
BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;&b;">]>'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    ilsvrc(tmp_path)
    return tmp_path


def mistake(root: Path, pattern: str) -> None:
    with pytest.raises(UserError, match=pattern) as caught:
        read_split(root, "val")
    assert "\n" not in str(caught.value)


def test_annotations_are_told_from_class_folders(tmp_path: Path) -> None:
    # Boxes come from the CSV; as mere class folders the same tree would have none.
    options = plain_csv(tmp_path)
    assert sum(map(len, read_split(split="val", **options).boxes)) == sum(len(item.boxes) for item in VAL)
    assert sum(map(len, read_split(split="val", layout="folders", **options).boxes)) == 0


def test_csv_beside_a_tree_of_class_folders_is_anothers(tmp_path: Path) -> None:
    write_tree(tmp_path / "birds", class_folders=True)
    write_lines(tmp_path / "LOC_val_solution.csv", solution())
    assert sum(map(len, read_split(tmp_path / "birds", "val").boxes)) == 0


def test_xml_goes_before_the_csv(root: Path) -> None:
    write_lines(root / "LOC_val_solution.csv", ["ILSVRC2012_val_00000001,n01440764 0 0 1 1"])
    assert read_split(root, "val").boxes[0].tolist() == [list(VAL[0].boxes[0])]


def test_images_come_in_the_order_of_their_names_whatever_the_tree(tmp_path: Path) -> None:
    ilsvrc(tmp_path / "flat")
    ilsvrc_class_folders(tmp_path / "nested")
    flat, nested = (read_split(tmp_path / name, "val") for name in ("flat", "nested"))
    assert [Path(p).name for p in flat.paths] == [Path(p).name for p in nested.paths] == [item.name for item in VAL]


def test_neither_xml_nor_csv_says_what_to_do(tmp_path: Path) -> None:
    write_tree(tmp_path / "Data/CLS-LOC", class_folders=True)
    mistake(tmp_path, "has neither .*/val nor LOC_val_solution.csv.*data.layout=folders data.root=.*Data/CLS-LOC$")


def test_two_images_of_one_name(root: Path) -> None:
    write_images(root, ["Data/CLS-LOC/val/ILSVRC2012_val_00000003.png"])
    mistake(root, "val holds two images of the name ILSVRC2012_val_00000003; only one can be the annotated one")


def test_image_in_two_class_folders(tmp_path: Path) -> None:
    ilsvrc_class_folders(tmp_path)
    write_images(tmp_path, [f"Data/CLS-LOC/val/{CLASSES[0]}/{VAL[0].name}"])
    mistake(tmp_path, "two images of the name ILSVRC2012_val_00000001")


def test_image_in_the_folder_of_another_class(tmp_path: Path) -> None:
    ilsvrc_class_folders(tmp_path)
    val = tmp_path / "Data/CLS-LOC/val"
    (val / CLASSES[2] / VAL[0].name).rename(val / CLASSES[0] / VAL[0].name)
    mistake(tmp_path, rf"00000001\.xml: class {CLASSES[2]}, but the image lies in .*val/{CLASSES[0]}")


def test_annotated_class_without_training_folder(root: Path) -> None:
    write_lines(root / FIRST, [xml(VAL[0], "n09999999")])
    mistake(root, r"00000001\.xml: class n09999999 has no folder under .*train")


def test_missing_annotation(root: Path) -> None:
    (root / FIRST).unlink()
    mistake(root, r"00000001\.xml is missing; every validation image needs its annotation")


@pytest.mark.parametrize("box", [(0, 0, 21, 5), (0, 0, 5, 17), (-1, 0, 5, 5), (6, 0, 5, 5), (0, 6, 5, 5)])
def test_box_outside_its_image(root: Path, box: tuple[int, int, int, int]) -> None:
    write_lines(root / FIRST, [xml(Item("", 2, [(0, 0, 1, 1), box]))])
    mistake(root, r"00000001\.xml: box .* does not lie in its image of 20 × 16 pixels")


@pytest.mark.parametrize("unknown", ["<height>0</height>", ""])
def test_size_that_was_not_looked_up_limits_no_box(root: Path, unknown: str) -> None:
    text = xml(Item("", 2, [(0, 0, 300, 200)])).replace("<height>16</height>", unknown)
    write_lines(root / FIRST, [text])
    index = read_split(root, "val")
    assert index.boxes[0].tolist() == [[0, 0, 300, 200]]
    assert index.sizes is not None
    assert index.sizes[:2].tolist() == [[0, 0], [20, 16]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no element found"),
        ("<annotation>", "no element found"),
        ("garbage", "syntax error"),
        (xml(VAL[0]).replace("<ymin>2</ymin>", ""), "an object has no bndbox/ymin"),
        (xml(VAL[0]).replace("<ymin>2", "<ymin>two"), "could not convert"),
        (xml(VAL[0]).replace("<width>20", "<width>wide"), "invalid literal"),
        (f"{BOMB}<annotation>&c;</annotation>", "DTDForbidden"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "DTDForbidden"),
        ('<?xml version="1.0" encoding="no-such"?><annotation/>', "unknown encoding"),
    ],
)
def test_xml_that_is_no_annotation(root: Path, text: str, reason: str) -> None:
    (root / FIRST).write_text(text)
    mistake(root, rf"00000001\.xml is not a readable annotation: .*{reason}")


def test_entities_are_refused_in_any_encoding(tmp_path: Path) -> None:
    text = f'<?xml version="1.0" encoding="utf-16"?>{BOMB}<annotation>&c;</annotation>'
    (tmp_path / "a.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(UserError, match="DTDForbidden"):
        read_xml(tmp_path / "a.xml")


def test_xml_bytes_that_are_no_text(root: Path) -> None:
    (root / FIRST).write_bytes(b"<annotation>\xff\xfe</annotation>")
    mistake(root, r"00000001\.xml is not a readable annotation")


@pytest.mark.parametrize(
    ("item", "named"), [(Item("", 2, []), "no object"), (None, "n01440764, n02102040")], ids=["none", "two"]
)
def test_annotation_must_name_one_class(root: Path, item: Item | None, named: str) -> None:
    text = xml(item) if item else xml(Item("", 0, [(0, 0, 1, 1)] * 2)).replace("n01440764", "n02102040", 1)
    write_lines(root / FIRST, [text])
    mistake(root, rf"00000001\.xml names {named}; the objects of a validation image are all of its one class")


@pytest.mark.parametrize(
    "line", ["a", "a,b,c", "a,n01440764 1 2 3", "a,n01440764 1 2 3 x", "a,n01440764 1 2 3 4 n01440764"]
)
def test_malformed_line_of_the_csv(tmp_path: Path, line: str) -> None:
    kaggle(tmp_path)
    write_lines(tmp_path / "LOC_val_solution.csv", [*solution(), line])
    mistake(tmp_path, r"LOC_val_solution\.csv:6: expected ImageId,wnid x0 y0 x1 y1 …, got 'a")


def test_csv_without_an_image(tmp_path: Path) -> None:
    kaggle(tmp_path)
    write_lines(tmp_path / "LOC_val_solution.csv", solution()[:-1])
    mistake(tmp_path, r"LOC_val_solution\.csv has no line for ILSVRC2012_val_00000001")


def test_csv_with_an_image_twice(tmp_path: Path) -> None:
    kaggle(tmp_path)
    write_lines(tmp_path / "LOC_val_solution.csv", [*solution(), solution()[1]])
    mistake(tmp_path, r"LOC_val_solution\.csv:6: ILSVRC2012_val_00000004 is listed twice")


@pytest.mark.parametrize("objects", ["", "n01440764 1 2 3 4 n02102040 1 2 3 4"])
def test_csv_line_must_name_one_class(tmp_path: Path, objects: str) -> None:
    kaggle(tmp_path)
    write_lines(tmp_path / "LOC_val_solution.csv", [*solution(), f"another,{objects}"])
    mistake(tmp_path, r"LOC_val_solution\.csv:6 names (no object|n01440764, n02102040)")


def test_csv_box_upside_down(tmp_path: Path) -> None:
    kaggle(tmp_path)
    write_lines(tmp_path / "LOC_val_solution.csv", [*solution(), "another,n01440764 9 2 3 4"])
    mistake(tmp_path, r"LOC_val_solution\.csv:6: box 9 2 3 4")
