"""The demo, shrunk: fewer images, the same path."""

import io
import json
import re
from pathlib import Path

import cv2
import pytest
from rich.console import Console

from i2c_fast.commands import demo
from i2c_fast.config import Config
from i2c_fast.errors import UserError
from i2c_fast.training import load_checkpoint


def test_demo_leaves_both_rows_their_difference_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 4)
    monkeypatch.setattr(demo, "TEST_IMAGES", 2)
    console = Console(record=True, file=io.StringIO(), width=200)
    results = demo.run_demo(tmp_path / "demo", 3, 0, console, ["model.backbone=tiny", "data.workers=0"])
    told = console.export_text()
    assert re.findall(r"(\d) of 4: (?:generating|training)", told) == ["1", "2", "3", "4"]
    assert re.search(r"both branches: about \d+ s", told) and "stage1 (i2c): 4 steps of 40 images" in told
    written = json.loads((tmp_path / "demo/results.json").read_text())
    assert set(written["errors"]) == {"plain", "i2c"}
    assert "prove nothing about the paper" in written["notice"]
    for metric in ("loc_top1", "gt_known"):
        row = written["i2c_minus_plain"][metric]
        errors = [written["errors"][name][metric]["error"] for name in ("i2c", "plain")]
        assert row["difference"] == pytest.approx(errors[0] - errors[1])
        low, high = row["interval_95"]
        assert low <= row["difference"] <= high
    assert written["errors"]["i2c"]["images"] == 20
    assert 0 < written["centered_box_gt_known_error"] < 100
    plain, i2c = (load_checkpoint(tmp_path / "demo" / name) for name in ("plain", "i2c"))
    assert plain["step"] == i2c["step"]
    assert plain["config"]["model"]["init"] == i2c["config"]["model"]["init"] != ""
    picture = cv2.imread(str(tmp_path / "demo/overlays.png"))
    assert picture is not None
    assert picture.shape[1] > picture.shape[0] > 400
    assert results["folder"] == str(tmp_path / "demo")


def test_demo_takes_the_next_free_folder(tmp_path: Path) -> None:
    first = tmp_path / "demo"
    assert demo.free_folder(first) == first
    first.mkdir()
    assert demo.free_folder(first) == tmp_path / "demo-2"
    (tmp_path / "demo-2").mkdir()
    assert demo.free_folder(first) == tmp_path / "demo-3"


@pytest.mark.parametrize("override", ["data.root=here", "stage1.method=has", "run.seed=1", "stage1.epochs=2"])
def test_demo_refuses_keys_that_it_sets_itself_before_it_writes(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError, match=f"the demo sets {override.partition('=')[0]} itself") as caught:
        demo.run_demo(tmp_path / "demo", 0, 0, Console(quiet=True), ["run.log_every=5", override])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("override", "words"), [("data.loader=foo", "'auto', 'opencv' or 'dali'"), ("data.loadr=dali", "did you mean")]
)
def test_demo_refuses_what_is_no_key_or_value_before_it_writes(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        demo.run_demo(tmp_path / "demo", 0, 0, Console(quiet=True), [override])
    assert not (tmp_path / "demo").exists()


def test_demo_trains_both_branches_by_the_given_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = []
    monkeypatch.setattr(demo, "write_generated", lambda *_, **__: None)

    def start(config: Config, run: Path, console: Console, **_: object) -> None:
        configs.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "start_run", start)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(tmp_path / "demo", 4, 0, Console(quiet=True), ["data.prefetch=7", "data.resize=antialias"])
    assert (configs[0].data.prefetch, configs[0].data.resize, configs[0].run.seed) == (7, "antialias", 4)
