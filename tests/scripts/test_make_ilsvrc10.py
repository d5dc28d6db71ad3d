"""scripts/make_ilsvrc10 as its user meets it: run on a small copy of ILSVRC's layout, judged by what it leaves."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "scripts/make_ilsvrc10"
TRAIN, VAL, BOXES = Path("Data/CLS-LOC/train"), Path("Data/CLS-LOC/val"), Path("Annotations/CLS-LOC/val")
CLASSES = ["n01440764", "n02102040", "n02979186", "n03000684", "n03028079"]
CLASSES += ["n03394916", "n03417042", "n03425413", "n03445777", "n03888257"]
TENCH, OTHER = "n01440764", "n01443537"


def picture(path: Path, mode: str = "RGB", width: int = 50, height: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, "JPEG")


def annotate(ilsvrc: Path, number: int, wnid: str, *boxes: tuple[int, int, int, int], width: int = 500) -> None:
    """An image and its annotation, `width` x 400, indented as the official files are."""
    name = f"ILSVRC2012_val_{number:08d}"
    picture(ilsvrc / VAL / f"{name}.JPEG", width=width, height=400)
    objects = "".join(
        f"\t<object>\n\t\t<name>{wnid}</name>\n\t\t<pose>Unspecified</pose>\n\t\t<truncated>0</truncated>\n"
        f"\t\t<difficult>0</difficult>\n\t\t<bndbox>\n\t\t\t<xmin>{xmin}</xmin>\n\t\t\t<ymin>{ymin}</ymin>\n"
        f"\t\t\t<xmax>{xmax}</xmax>\n\t\t\t<ymax>{ymax}</ymax>\n\t\t</bndbox>\n\t</object>\n"
        for xmin, ymin, xmax, ymax in boxes
    )
    (ilsvrc / BOXES).mkdir(parents=True, exist_ok=True)
    (ilsvrc / BOXES / f"{name}.xml").write_text(
        f"<annotation>\n\t<folder>val</folder>\n\t<filename>{name}</filename>\n\t<source>\n"
        "\t\t<database>ILSVRC_2012</database>\n\t</source>\n\t<size>\n"
        f"\t\t<width>{width}</width>\n\t\t<height>400</height>\n\t\t<depth>3</depth>\n\t</size>\n"
        f"\t<segmented>0</segmented>\n{objects}</annotation>\n"
    )


@pytest.fixture
def ilsvrc(tmp_path: Path) -> Path:
    """Tench has five training images, the other nine and one foreign class one each; three validation images."""
    root = tmp_path / "ILSVRC"
    # By name "10026" comes before "9": places 0 to 4 are 10026 (gray), 3 (CMYK), 40, 5, 9.
    for number, mode in {9: "RGB", 10026: "L", 3: "CMYK", 40: "RGB", 5: "RGB"}.items():
        picture(root / TRAIN / TENCH / f"{TENCH}_{number}.JPEG", mode)
    for wnid in [*CLASSES[1:], OTHER]:
        picture(root / TRAIN / wnid / f"{wnid}_1.JPEG")
    annotate(root, 1, TENCH, (100, 50, 499, 350), (1, 0, 250, 400))
    annotate(root, 2, OTHER, (10, 10, 20, 20))
    annotate(root, 7, CLASSES[9], (0, 0, 503, 401))
    return root


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


def made(ilsvrc: Path, *options: object) -> Path:
    out = ilsvrc.parent / "ilsvrc10"
    result = run(ilsvrc, out, *options)
    assert result.returncode == 0, result.stderr
    return out


def tench_numbers(out: Path) -> set[int]:
    return {int(path.stem.split("_")[1]) for path in (out / TRAIN / TENCH).iterdir()}


def refused(ilsvrc: Path, *words: str) -> None:
    """The command fails with one line that holds `words` and leaves nothing behind."""
    before = sorted(ilsvrc.parent.iterdir())
    result = run(ilsvrc, ilsvrc.parent / "ilsvrc10")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert all(word in result.stderr for word in words), result.stderr
    assert sorted(ilsvrc.parent.iterdir()) == before


def test_the_script_runs_as_a_command() -> None:
    result = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True)
    assert "ILSVRC OUT" in result.stdout


def test_only_the_ten_classes_are_taken(ilsvrc: Path) -> None:
    out = made(ilsvrc)
    assert sorted(path.name for path in (out / TRAIN).iterdir()) == CLASSES
    assert sorted(path.stem[-1] for path in (out / VAL).iterdir()) == ["1", "7"]
    assert sorted(path.stem[-1] for path in (out / BOXES).iterdir()) == ["1", "7"]


def test_all_shards_by_default(ilsvrc: Path) -> None:
    assert tench_numbers(made(ilsvrc)) == {10026, 3, 40, 5, 9}


@pytest.mark.parametrize("shard, numbers", [(0, {10026, 5}), (1, {3, 9}), (2, {40})])
def test_a_shard_is_every_third_image_in_file_name_order(ilsvrc: Path, shard: int, numbers: set[int]) -> None:
    assert tench_numbers(made(ilsvrc, "--shard", shard)) == numbers


def test_shards_add_up_and_validation_is_always_whole(ilsvrc: Path) -> None:
    out = made(ilsvrc, "--shard", 0, "--shard", 2)
    assert tench_numbers(out) == {10026, 5, 40}
    assert len(list((out / VAL).iterdir())) == 2


def test_images_are_pillows_default_resize_at_default_quality(ilsvrc: Path, tmp_path: Path) -> None:
    out = made(ilsvrc)
    with Image.open(ilsvrc / TRAIN / TENCH / f"{TENCH}_9.JPEG") as image:
        image.resize((224, 224)).save(tmp_path / "expected.jpg")
    assert (out / TRAIN / TENCH / f"{TENCH}_9.JPEG").read_bytes() == (tmp_path / "expected.jpg").read_bytes()


@pytest.mark.parametrize("number, mode", [(10026, "L"), (3, "RGB"), (9, "RGB")])
def test_gray_stays_gray_and_cmyk_becomes_rgb(ilsvrc: Path, number: int, mode: str) -> None:
    with Image.open(made(ilsvrc) / TRAIN / TENCH / f"{TENCH}_{number}.JPEG") as image:
        assert (image.mode, image.size) == (mode, (224, 224))


def test_boxes_are_scaled_rounded_and_keep_their_order(ilsvrc: Path) -> None:
    root = ET.parse(made(ilsvrc) / BOXES / "ILSVRC2012_val_00000001.xml").getroot()
    # 224 / 500 = .448 across, 224 / 400 = .56 down.
    assert [[int(side.text or "") for side in box] for box in root.iter("bndbox")] == [
        [45, 28, 224, 196],
        [0, 0, 112, 224],
    ]


def test_boxes_beyond_the_image_are_kept_within_it(ilsvrc: Path) -> None:
    root = ET.parse(made(ilsvrc) / BOXES / "ILSVRC2012_val_00000007.xml").getroot()
    assert [side.text for side in root.find("object/bndbox") or []] == ["0", "0", "224", "224"]


def test_annotation_is_one_line_in_the_subsets_form(ilsvrc: Path) -> None:
    text = (made(ilsvrc) / BOXES / "ILSVRC2012_val_00000007.xml").read_text()
    assert text == (
        "<annotation><folder>val</folder><filename>ILSVRC2012_val_00000007</filename>"
        "<source><database>ILSVRC_2012</database></source>"
        "<size><width>224</width><height>224</height><depth>3</depth></size><segmented>0</segmented>"
        f"<object><name>{CLASSES[9]}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
        "<bndbox><xmin>0</xmin><ymin>0</ymin><xmax>224</xmax><ymax>224</ymax></bndbox></object></annotation>\n"
    )


def test_nothing_but_the_result_is_left_beside_it(ilsvrc: Path) -> None:
    made(ilsvrc)
    assert sorted(path.name for path in ilsvrc.parent.iterdir()) == ["ILSVRC", "ilsvrc10"]


def test_an_empty_out_folder_is_used(ilsvrc: Path) -> None:
    (ilsvrc.parent / "ilsvrc10").mkdir()
    assert tench_numbers(made(ilsvrc)) == {10026, 3, 40, 5, 9}


def test_an_out_folder_that_holds_something_is_refused(ilsvrc: Path) -> None:
    (ilsvrc.parent / "ilsvrc10").mkdir()
    (ilsvrc.parent / "ilsvrc10/notes.txt").write_text("mine")
    refused(ilsvrc, "ilsvrc10", "not an empty folder")
    assert (ilsvrc.parent / "ilsvrc10/notes.txt").read_text() == "mine"


def test_a_path_that_is_not_ilsvrc_names_what_was_looked_for(ilsvrc: Path) -> None:
    (ilsvrc / "Data").rename(ilsvrc / "data")
    refused(ilsvrc, str(ilsvrc / TRAIN / TENCH), "Data/ and Annotations/")


def test_a_missing_class_folder_is_named(ilsvrc: Path) -> None:
    (ilsvrc / TRAIN / CLASSES[4]).rename(ilsvrc / "moved")
    refused(ilsvrc, str(ilsvrc / TRAIN / CLASSES[4]))


def test_an_empty_class_folder_is_named(ilsvrc: Path) -> None:
    (ilsvrc / TRAIN / CLASSES[4] / f"{CLASSES[4]}_1.JPEG").unlink()
    refused(ilsvrc, str(ilsvrc / TRAIN / CLASSES[4]), "no *.JPEG")


@pytest.mark.parametrize("folder", [VAL, BOXES])
def test_a_missing_validation_folder_is_named(ilsvrc: Path, folder: Path) -> None:
    (ilsvrc / folder).rename(ilsvrc / "moved")
    refused(ilsvrc, str(ilsvrc / folder))


def test_annotations_of_other_classes_alone_are_refused(ilsvrc: Path) -> None:
    for number in (1, 7):
        (ilsvrc / BOXES / f"ILSVRC2012_val_{number:08d}.xml").unlink()
    refused(ilsvrc, str(ilsvrc / BOXES), "ten classes")


@pytest.mark.parametrize(
    "old, new",
    [
        ("</annotation>", ""),
        ("<xmin>0<", "<xmin>left<"),
        ("<width>500<", "<width>0<"),
        ("<annotation>", '<!DOCTYPE a [<!ENTITY e "e">]><annotation>'),
    ],
)
def test_a_broken_annotation_is_named(ilsvrc: Path, old: str, new: str) -> None:
    path = ilsvrc / BOXES / "ILSVRC2012_val_00000007.xml"
    path.write_text(path.read_text().replace(old, new))
    refused(ilsvrc, str(path))


@pytest.mark.parametrize("content", [b"not an image", None])
def test_an_unreadable_or_missing_image_is_named_and_nothing_kept(ilsvrc: Path, content: bytes | None) -> None:
    path = ilsvrc / VAL / "ILSVRC2012_val_00000007.JPEG"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    refused(ilsvrc, str(path))
