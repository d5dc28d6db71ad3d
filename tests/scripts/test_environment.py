"""scripts/demo and scripts/test up to what they run, with stand-ins for Python that record what they are asked."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STAND_IN = """#!/bin/sh
case "$*" in
    *"import os, sys"*) printf '%s\\n' "{torch}" "$0" "$0" "{site}" ;;
    *"import ensurepip"*) exit 1 ;;
    *venv*) echo python3.11-venv ;;
    *"pip install"*) echo "$*" >>"{site}/pip.log"; echo "no space left"; exit {pip_status} ;;
    *) echo "ran $*${{I2C_FAST_BACKEND:+ with $I2C_FAST_BACKEND}}"; case "$2$I2C_FAST_BACKEND" in {statuses} esac ;;
esac
"""


@dataclass
class Clone:
    """A clone at a path with a space, and a folder of packages in which stand-ins record their pip calls."""

    root: Path
    site: Path

    def python(self, torch: str = "", pip_status: int = 0, **statuses: int) -> Path:
        """`statuses` are those with which modules end; `pytestinterpret` is pytest with that backend."""
        python = self.root.parent / "python"
        arms = " ".join(f"{module}) exit {status} ;;" for module, status in statuses.items())
        python.write_text(STAND_IN.format(torch=torch, site=self.site, pip_status=pip_status, statuses=arms))
        python.chmod(0o755)
        return python

    def demo(self, python: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("demo", python, *arguments)

    def run(self, script: str, python: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
        environment["I2C_FAST_BACKEND"] = ""
        command = [self.root / "scripts" / script, *arguments]
        environment["PYTHON"] = str(python)
        return subprocess.run(command, env=environment, cwd=self.site, capture_output=True, text=True)

    def pip_calls(self) -> list[str]:
        log = self.site / "pip.log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    root, site = tmp_path / "a clone", tmp_path / "site"
    site.mkdir()
    shutil.copytree(ROOT / "scripts", root / "scripts")
    for name in ("pyproject.toml", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, root)
    return Clone(root, site)


def test_python_with_torch_is_used_and_its_torch_is_pinned(clone: Clone) -> None:
    done = clone.demo(clone.python(torch="2.12.1+cu130"), "--seed", "1 2")
    assert done.stdout == "ran -P -m i2c_fast.cli demo --seed 1 2\n"
    assert clone.pip_calls()[0].endswith(f"--editable {clone.root} torch==2.12.1+cu130")
    assert not (clone.root / ".venv").exists()


def test_second_start_leaves_pip_alone(clone: Clone) -> None:
    python = clone.python(torch="2.13.0")
    assert [clone.demo(python).returncode, clone.demo(python).returncode] == [0, 0]
    assert len(clone.pip_calls()) == 1


@pytest.mark.parametrize("name", ["pyproject.toml", "setup.py", "constraints.txt"])
def test_changed_requirements_are_installed_at_the_next_start(clone: Clone, name: str) -> None:
    python = clone.python(torch="2.13.0")
    clone.demo(python)
    with (clone.root / name).open("a") as file:
        file.write("# changed\n")
    clone.demo(python)
    assert len(clone.pip_calls()) == 2


def test_changed_torch_is_pinned_anew(clone: Clone) -> None:
    clone.demo(clone.python(torch="2.13.0"))
    clone.demo(clone.python(torch="2.14.0"))
    assert [call.split("==")[-1] for call in clone.pip_calls()] == ["2.13.0", "2.14.0"]


def test_failed_installation_shows_the_words_of_pip_and_is_tried_again(clone: Clone) -> None:
    failed = clone.demo(clone.python(torch="2.13.0", pip_status=1))
    assert failed.returncode == 2
    assert "no space left" in failed.stderr
    assert failed.stdout == ""
    assert clone.demo(clone.python(torch="2.13.0")).returncode == 0
    assert len(clone.pip_calls()) == 2


def test_older_torch_is_left_alone(clone: Clone) -> None:
    done = clone.demo(clone.python(torch="2.10.0"))
    assert "torch 2.10.0" in done.stderr
    assert "stays as it is; using .venv" in done.stderr
    assert clone.pip_calls() == []


def test_python_without_ensurepip_is_told_what_to_install(clone: Clone) -> None:
    done = clone.demo(clone.python())
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "apt-get install python3.11-venv" in done.stderr
    assert not (clone.root / ".venv").exists()


def test_installation_under_way_is_not_disturbed(clone: Clone) -> None:
    marker = clone.root / ".venv" / "unfinished-i2c-fast"
    marker.parent.mkdir()
    marker.write_text(f"{os.getpid()}\n")
    done = clone.demo(clone.python())
    assert done.returncode == 2
    assert f"process {os.getpid()} is still installing into .venv" in done.stderr
    assert marker.exists()


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/false"])
def test_unusable_python_is_refused_in_one_line(clone: Clone, python: str) -> None:
    done = clone.demo(python)
    assert done.returncode == 2
    assert done.stderr == f"demo: PYTHON={python} is no Python 3.11 or newer: name another, or unset PYTHON\n"


@pytest.mark.parametrize(("failing", "ran"), [("ruff", 1), ("mypy", 3), ("pytest", 4)])
def test_checks_stop_at_the_first_that_fails(clone: Clone, failing: str, ran: int) -> None:
    done = clone.run("test", clone.python("2.13.0", **{failing: 3}), "-k", "some test")
    assert done.returncode == 3
    checks = ["ran -m ruff check .", "ran -m ruff format --check .", "ran -m mypy", "ran -m pytest -k some test tests"]
    assert done.stdout.splitlines() == checks[:ran]
    assert clone.pip_calls()[0].endswith(f"--editable {clone.root}[dev] torch==2.13.0")


INTERPRET = "tests/kernels/interpret"
PROCESSES = f"--numprocesses {min(os.cpu_count() or 1, 4)} --dist loadfile --no-loadscope-reorder"


@pytest.mark.parametrize(
    ("arguments", "plain", "interpreted"),
    [
        ("", f"{PROCESSES} tests", f"{PROCESSES} {INTERPRET}"),
        ("--exhaustive -k kernels", "--exhaustive -k kernels tests", f"--exhaustive -k kernels {INTERPRET}"),
        ("tests/models", "tests/models", None),
        ("-x tests/kernels", "-x tests/kernels", f"-x {INTERPRET}"),
        (f"tests/models {INTERPRET}/test_one.py::test -v", "-v tests/models", f"-v {INTERPRET}/test_one.py::test"),
        (f"{INTERPRET}", None, INTERPRET),
    ],
)
def test_options_go_to_both_calls_of_pytest_and_paths_to_their_own(
    clone: Clone, arguments: str, plain: str | None, interpreted: str | None
) -> None:
    for folder in ("tests/models", INTERPRET, "kernels"):
        (clone.root / folder).mkdir(parents=True)
    (clone.root / INTERPRET / "test_one.py").touch()
    done = clone.run("test", clone.python("2.13.0"), *arguments.split())
    calls = [
        *([] if plain is None else [f"ran -m pytest {plain}"]),
        *([] if interpreted is None else [f"ran -m pytest {interpreted} with interpret"]),
    ]
    assert done.stdout.splitlines()[3:] == calls
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("plain", "interpreted", "status"),
    [(0, 0, 0), (1, 0, 1), (0, 1, 1), (5, 0, 0), (0, 5, 0), (5, 5, 5), (5, 1, 1), (1, 5, 1), (2, 0, 2), (0, 4, 4)],
)
def test_a_call_without_tests_fails_only_if_the_other_has_none(
    clone: Clone, plain: int, interpreted: int, status: int
) -> None:
    assert clone.run("test", clone.python("2.13.0", pytest=plain, pytestinterpret=interpreted)).returncode == status


def test_developers_environment_serves_the_demo(clone: Clone) -> None:
    python = clone.python(torch="2.13.0")
    clone.run("test", python)
    clone.run("demo", python)
    assert len(clone.pip_calls()) == 1
