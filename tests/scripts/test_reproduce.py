"""scripts/reproduce, at toy size on generated images: every command once, on runs that they share."""

import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from benchmarks.paper import cost, plan, results
from benchmarks.paper.runs import Evaluated
from i2c_fast.data import read_image
from i2c_fast.evaluation import Scores

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduce"
TOY = """base = "demo"
data = {workers = 0, loader = "opencv"}
batch = {classes = 3}
model = {backbone = "tiny"}
stage0 = {epochs = 1}
stage1 = {epochs = 1}
eval = {threshold_step = 1, batch = 12}
"""
FEW_ROWS = "cam,sc-l2-0.008,gc-0.1"
COMMANDS = ("table1", "table2", "table3", "table4", "fig3", "fig4", "fig5 --rows " + FEW_ROWS)

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("reproduce")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all tests' runs lie, so that each is trained once."""
    folder = tmp_path_factory.mktemp("reproduce")
    (folder / "toy.toml").write_text(TOY)
    return folder


@pytest.fixture
def reproduce(script: ModuleType, output: Path, tiny_set: Path) -> Command:
    def call(*arguments: str) -> Result:
        common = ("--data", str(tiny_set), "--recipe", str(output / "toy.toml"), "--size", "32", "-o", str(output))
        return CliRunner().invoke(script.main, [*common, *arguments], catch_exceptions=False)

    return call


@pytest.mark.parametrize("command", COMMANDS)
def test_each_experiment_writes_its_rows(command: str, reproduce: Command, output: Path) -> None:
    name, *options = command.split()
    assert reproduce(name, *options).exit_code == 0
    found = json.loads((output / f"{name}.json").read_text())
    rows = plan.EXPERIMENTS[name](str(output / "toy.toml"), 32).rows
    expected = FEW_ROWS.split(",") if options else [row.name for row in rows]
    assert [row["name"] for row in found["rows"]] == ["start", *expected]
    for row in found["rows"][2:]:
        assert row["minus_baseline"]["seeds"] == [0]
        assert row["errors"]["gt_known"]["mean"] == row["errors"]["gt_known"]["seeds"][0]
    assert "commit" in found["environment"]
    assert (output / f"{name}.md").read_text().count("\n| ") == len(found["rows"]) + 2
    charts = ["fig5", "fig5_differences"] if name == "fig5" else [f"{name}_differences"]
    pictures = [name] if name in ("fig3", "fig4") else charts if importlib.util.find_spec("matplotlib") else []
    assert all(read_image(output / f"{picture}.png").std() > 0 for picture in pictures)


def test_terms_are_compared_with_the_cross_entropy_by_both_distances(reproduce: Command, output: Path) -> None:
    assert reproduce("terms").exit_code == 0
    rows = json.loads((output / "terms.json").read_text())["rows"]
    assert [row["distance"] for row in rows] == ["l2", "squared_l2"]
    for row in rows:
        assert row["ce"]["weighted_gradient_over_ce"] == pytest.approx(1)
        expected = row["sc_weight"] * row["sc"]["value"] / row["ce"]["value"]
        assert row["sc"]["weighted_over_ce"] == pytest.approx(expected)
    # From the same weights on the same batches.
    assert rows[0]["ce"] == pytest.approx(rows[1]["ce"])
    assert rows[1]["sc"]["value"] > rows[0]["sc"]["value"]


def test_runs_that_are_done_are_not_done_again(reproduce: Command, output: Path) -> None:
    reproduce("table4", "--rows", "cam")
    runs = output / "toy-32"
    before = {file: file.stat().st_mtime_ns for file in runs.rglob("*.npz")}
    again = reproduce("table4", "--rows", "cam,sc")
    assert again.exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert "cam-seed0" not in again.output


def test_runs_of_another_setting_are_not_taken_for_this_one_s(reproduce: Command, output: Path) -> None:
    reproduce("table4", "--rows", "cam")
    found = reproduce("table4", "--rows", "cam", "stage1.lr=0.5")
    assert found.exit_code == 2
    assert "cam-seed0 was run with stage1.lr=0.005, not 0.5; give another --output" in found.stderr


def test_a_run_that_was_stopped_goes_on(reproduce: Command, output: Path) -> None:
    reproduce("table4", "--rows", "cam")
    run = output / "toy-32" / "cam-seed0"
    kept = (run / "result.npz").read_bytes()
    (run / "result.npz").unlink()  # stopped between training and scoring
    assert "continuing after step" in reproduce("table4", "--rows", "cam").output
    first, second = np.load(io.BytesIO(kept)), np.load(run / "result.npz")
    assert all(np.array_equal(first[name], second[name]) for name in first.files)


def test_rows_start_from_the_same_weights_and_draw_the_same_batches(reproduce: Command, output: Path) -> None:
    reproduce("table4", "--rows", "cam,sc")
    first = [
        json.loads((output / "toy-32" / f"{row}-seed0" / "log.jsonl").read_text().splitlines()[0])
        for row in ("cam", "sc")
    ]
    assert first[0]["ce"] == pytest.approx(first[1]["ce"], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table4", "--rows", "cam,nothing"), "there is no nothing; there are cam, sc, i2c, backprop"),
        (("table4", "model.freeze=layer9"), "model.freeze=layer9: the body has no such layer; there are 0, 1, 2, 3"),
        (("table3", "--rows", "cam", "--seeds", "2", "--no-train", "-o", "nowhere"), "leave --no-train out"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str, script: ModuleType, tiny_set: Path,
                               output: Path, tmp_path: Path) -> None:  # fmt: skip
    common = ("--data", str(tiny_set), "--recipe", str(output / "toy.toml"), "-o", str(tmp_path))
    found = CliRunner().invoke(script.main, [*common, *arguments])
    assert found.exit_code == 2
    assert message in found.stderr
    assert found.stderr.count("\n") == 1


def test_budget_is_a_fraction_of_the_recipe_s_steps(reproduce: Command, tmp_path: Path) -> None:
    assert reproduce("table4", "--rows", "cam", "--budget", "0.3", "-o", str(tmp_path)).exit_code == 0
    rows = json.loads((tmp_path / "table4.json").read_text())["rows"]
    assert [row["diagnostics"]["steps"] for row in rows] == [2, 2]  # of 4, rounded up


def made(hits: Any, folder: Path = Path()) -> Evaluated:
    """A run of as many images as there are hits, at one threshold."""
    right = np.asarray(hits, bool)[:, None]
    count = len(right)
    scores = Scores("paper", np.array([100]), np.zeros(count, int), np.ones(count, bool), right)
    return Evaluated(folder, np.zeros((count, 4, 4), np.float32), np.zeros(count, int), {"paper": scores})


def test_half_the_images_choose_and_the_other_half_judges() -> None:
    halves = [results._half(made([1, 0, 1, 0, 1]), "paper", which) for which in (0, 1)]
    assert [half.summary()["gt_known"]["error"] for half in halves] == [0, 100]


def test_cost_counts_the_paper_s_multiply_adds() -> None:
    # The paper: 21.42 G for InceptionV3 at 224 pixels; a quarter of that at 112, and 27 M parameters with the centers.
    found = cost.cost("inception_v3", 1000, 112)
    assert 4 * sum(found["multiply_adds"].values()) == pytest.approx(21.39e9, rel=5e-3)
    assert sum(found["parameters"].values()) + found["gc_parameters"] == pytest.approx(27.3e6, rel=5e-3)
    assert found["gc_parameters_relative"] == pytest.approx(0.029, abs=5e-4)
