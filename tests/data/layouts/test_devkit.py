"""The devkit's order of ILSVRC's classes and the field's."""

from pathlib import Path

import pytest

from i2c_fast.data.layouts.devkit import read_devkit
from i2c_fast.errors import UserError

from .small_set import write_lines

# The first five lines of the official file: none of the ids keeps its position.
OFFICIAL = ["n02119789 1 kit_fox", "n02100735 2 English_setter", "n02110185 3 Siberian_husky"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_lines(tmp_path / "map_clsloc.txt", OFFICIAL)
    return tmp_path / "map_clsloc.txt"


def test_labels_of_devkit_ids_by_hand(file: Path) -> None:
    devkit = read_devkit(file)
    assert devkit.classes == ("n02100735", "n02110185", "n02119789")
    assert devkit.numbered == ("n02119789", "n02100735", "n02110185")
    assert devkit.to_label.tolist() == [2, 0, 1]


@pytest.mark.parametrize("name", ["map_clsloc.txt", "data/map_clsloc.txt", "devkit/data/map_clsloc.txt"])
def test_folder_of_the_devkit_serves(name: str, tmp_path: Path) -> None:
    write_lines(tmp_path / name, OFFICIAL)
    assert read_devkit(tmp_path).path == tmp_path / name


@pytest.mark.parametrize("form", ["{i} {w}", "{i},{w},fox", "{w} {i}", "{i}\t{w}\tkit fox, Vulpes macrotis"])
def test_texts_made_of_meta_mat_serve(form: str, file: Path, tmp_path: Path) -> None:
    pairs = [line.split()[:2] for line in OFFICIAL]
    write_lines(tmp_path / "meta.txt", [form.format(w=wnid, i=i) for wnid, i in pairs], "\r\n")
    assert read_devkit(tmp_path / "meta.txt").numbered == read_devkit(file).numbered


def test_inner_nodes_are_no_classes(file: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "meta.txt", [*OFFICIAL, "n00001740 1001 entity"])
    assert read_devkit(tmp_path / "meta.txt").classes == read_devkit(file).classes


def test_folder_without_the_map(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.devkit: .* has no map_clsloc\.txt; give a text file with a line"):
        read_devkit(tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.txt: No such file"):
        read_devkit(tmp_path / "nowhere.txt")


@pytest.mark.parametrize("line", ["n02119789", "kit_fox 4", "n02119789 four", "n0211978 4", "4 fox n02119789"])
def test_malformed_line(line: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "map.txt", [*OFFICIAL, line])
    with pytest.raises(UserError, match=r"map\.txt:4: expected 'n02119789 1 kit_fox'"):
        read_devkit(tmp_path / "map.txt")


@pytest.mark.parametrize("line", ["n02113186 5", "n02119789 4", "n02113186 0"], ids=["gap", "class twice", "from 0"])
def test_ids_that_do_not_number_the_classes(line: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "map.txt", [*OFFICIAL, line])
    with pytest.raises(UserError, match="does not give each devkit id 1…4 a WordNet id of its own"):
        read_devkit(tmp_path / "map.txt")


def test_id_twice(tmp_path: Path) -> None:
    write_lines(tmp_path / "map.txt", [*OFFICIAL, "n02113186 3"])
    with pytest.raises(UserError, match=r"map\.txt:4: 3 is listed twice"):
        read_devkit(tmp_path / "map.txt")
