"""``validate-data`` from the shell to a training run without the broken images."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from i2c_fast.cli import main

from ..conftest import TINY


@pytest.fixture
def rotten(tiny_set: Path, tmp_path: Path) -> tuple[Path, str]:
    root = tmp_path / "set"
    shutil.copytree(tiny_set, root)
    images = sorted((root / "Data/CLS-LOC/train").rglob("*.JPEG"))
    images[3].write_bytes(images[3].read_bytes()[:-40])
    Image.open(images[4]).convert("CMYK").save(images[4], "JPEG")
    return root, images[3].relative_to(root).as_posix()


def test_findings_are_printed_listed_and_left_out_of_training(rotten: tuple[Path, str], tmp_path: Path) -> None:
    root, broken = rotten
    blacklist, findings = tmp_path / "broken.txt", tmp_path / "findings.json"
    arguments = ["validate-data", f"data.root={root}", "data.workers=1"]
    result = CliRunner().invoke(main, [*arguments, "--blacklist", str(blacklist), "--output", str(findings)])
    assert result.exit_code == 1
    assert "ilsvrc layout" in result.output
    assert "train: 24 images, 1 broken, 1 odd" in result.output
    assert [finding["path"] for finding in json.loads(findings.read_text())["train"]["broken"]] == [broken]
    again = CliRunner().invoke(main, [*arguments, f"data.blacklist={blacklist}"])
    assert again.exit_code == 0
    assert "train: 23 images, 0 broken" in again.output
    (tmp_path / "empty.toml").write_text("")
    trained = CliRunner().invoke(
        main,
        ["train", str(tmp_path / "empty.toml"), f"data.root={root}", f"data.blacklist={blacklist}", *TINY,
         "stage1.epochs=0", "data.max_unreadable=0", "--output", str(tmp_path / "run")],
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    assert "23 training" in trained.output


def test_a_wrong_root_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["validate-data", f"data.root={tmp_path}"])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "fits no known layout" in result.stderr
