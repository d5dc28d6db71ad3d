"""scripts/measure_gpu, at toy size on the CPU."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[2] / "scripts" / "measure_gpu"


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("measure_gpu")


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_parts_are_done_at_toy_size_and_only_once(
    tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch, exhaustive: bool
) -> None:
    # The other parts run scripts that have tests of their own; what joins them is the same for all.
    parts = [part for part in script.parts_of_toy() if exhaustive or part.name in ("tests", "profile")]
    monkeypatch.setattr(script, "parts_of_toy", lambda: parts)
    done = CliRunner().invoke(script.main, ["--toy", "--results", str(tmp_path)])
    assert done.exit_code == 0, done.output
    names = [part.name for part in parts]
    results = {name: json.loads((tmp_path / "cpu" / f"{name}.json").read_text()) for name in names}
    assert {path.name for path in (tmp_path / "cpu").iterdir()} == {*(f"{name}.json" for name in names), "bars.json"}
    assert all(result["status"] == "done" and result["seconds"] > 0 for result in results.values())
    assert "skipped" in results["tests"]["output_tail"] and results["tests"]["report"] is None
    assert results["profile"]["report"]["kernels"]
    assert results["profile"]["command"] == "python benchmarks/profile.py --steps 1"
    assert all(result["environment"]["torch"] for result in results.values())
    if exhaustive:
        assert results["kernels_label_cam"]["report"]["rows"] and results["loader"]["report"]["rows"]
        steps = results["train_step_toy"]["report"]["rows"]
        assert {row["provider"] for row in steps} == {"ours cam", "ours i2c"}
    bars = json.loads((tmp_path / "cpu" / "bars.json").read_text())["bars"]
    assert bars and all(bar["kept"] is None for bar in bars)

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    again = CliRunner().invoke(script.main, ["--toy", "--next", "--results", str(tmp_path)])
    assert again.exit_code == 0 and again.output.count("│ done ") == len(names)  # the list alone
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == before


def test_an_interrupted_part_leaves_nothing(tmp_path: Path) -> None:
    process = start("--toy", "--part", "profile", "--results", str(tmp_path))
    assert process.stdout is not None and process.stdout.readline().startswith("profile")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert not list(tmp_path.rglob("*.*"))


def sleeper(script: ModuleType, tmp_path: Path, code: str) -> Any:
    """A part that writes a report, then does `code`."""
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys, time\nopen(sys.argv[-1], 'w').write('{{\"rows\": [1]}}')\nprint('begun', flush=True)\n{code}"
    )

    class Sleeper(script.Part):  # type: ignore[misc,name-defined]
        def command(self, output: Path, traces: Path | None = None) -> list[str]:
            return [sys.executable, str(program), "--output", str(output)]

    return Sleeper("sleeper", "program.py")


def test_a_part_out_of_time_keeps_what_it_measured(
    tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "LIMIT", 2)
    result = script.run_part(sleeper(script, tmp_path, "time.sleep(600)"), tmp_path, {}, toy=True)
    assert result["status"] == "out of time after 2 s" and result["report"] == {"rows": [1]}
    assert json.loads((tmp_path / "sleeper.json").read_text()) == result


def test_a_part_that_fails_is_recorded_and_left_alone(tmp_path: Path, script: ModuleType) -> None:
    part = sleeper(script, tmp_path, "sys.exit(3)")
    result = script.run_part(part, tmp_path, {}, toy=True)
    assert result["status"] == "failed with status 3" and "begun" in result["output_tail"]
    assert list(script.doable([part], script.results_of([part], tmp_path))) == []


def test_parts_whose_packages_are_missing_are_left_for_later(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [script.Part("one", "a.py", needs=("no_such_package",)), script.Part("two", "b.py", needs=())]
    assert [part.name for part in script.doable(parts, {})] == ["two"]
    assert capsys.readouterr().out.strip() == "not installed: no_such_package; put them on PYTHONPATH for the parts one"


def test_the_parts_on_a_gpu_cover_every_op_backbone_batch_and_provider(script: ModuleType) -> None:
    from benchmarks.candidates import NAMES
    from benchmarks.steps.providers import PROVIDERS

    parts = script.parts_on_gpu()
    assert len({part.name for part in parts}) == len(parts)
    assert {part.name for part in parts} >= {*(f"kernels_{name}" for name in NAMES), "tests", "profile"}
    steps = [part for part in parts if part.script == "train_step.py"]
    asked = (
        {part.arguments[part.arguments.index("--backbone") + 1] for part in steps},
        {part.arguments[part.arguments.index("--batch") + 1] for part in steps},
    )
    assert asked == ({"resnet50", "vgg16", "inception_v3"}, {"10", "40", "80", "160"})
    assert {word for part in steps for word in part.arguments} >= {*PROVIDERS}


def test_without_a_gpu_the_way_out_is_named(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(script.main, ["--next"])
    assert done.exit_code == 1 and "--toy" in done.output
