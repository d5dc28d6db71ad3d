"""What is installed: i2c_fast with its kernels and data, and no other package, by every way of installing it."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import i2c_fast

ROOT = Path(__file__).parents[1]
PACKAGE = "i2c_fast"


def run_python(code: str, *arguments: Path | str, cwd: Path, options: tuple[str, ...] = ("-P",), path: str = "") -> str:
    """What the code prints in a new process; `path` is its PYTHONPATH."""
    command = [sys.executable, *options, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clone's sources: building leaves traces that have no place in the clone itself."""
    pytest.importorskip("setuptools")
    clone = tmp_path_factory.mktemp("clone")
    tracked = [PACKAGE, "kernels", *(path.name for path in ROOT.iterdir() if path.is_file())]
    subprocess.run(["cp", "-RP", *tracked, clone], cwd=ROOT, check=True)
    return clone


def build(kind: str, source: Path, folder: Path) -> Path:
    """A `wheel`, `sdist` or `editable` wheel of the sources, built where importing torch is an error."""
    poison = folder / "poison"
    poison.mkdir(parents=True)
    (poison / "torch.py").write_text("raise ImportError('the build must not need torch')\n")
    code = "import sys; from setuptools import build_meta; print('\\n' + getattr(build_meta, sys.argv[1])(sys.argv[2]))"
    return folder / run_python(code, f"build_{kind}", folder, cwd=source, path=str(poison)).splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", clone, tmp_path_factory.mktemp("wheel"))


def installed_files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def metadata(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"i2c_fast-{i2c_fast.__version__}.dist-info/{name}").decode()


def package_files() -> set[str]:
    """Everything in the package folder, the linked kernels included."""
    folders = os.walk(ROOT / PACKAGE, followlinks=True)
    files = [Path(folder, name) for folder, _, names in folders for name in names if "__pycache__" not in folder]
    return {file.relative_to(ROOT).as_posix() for file in files}


def test_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    assert "i2c_fast/kernels/__init__.py" in installed_files(wheel)
    assert installed_files(wheel) == package_files()


def test_wheel_of_the_source_archive_equals_the_wheel_of_the_clone(clone: Path, wheel: Path, tmp_path: Path) -> None:
    archive = build("sdist", clone, tmp_path / "sdist")
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path], check=True)
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    assert not (unpacked / PACKAGE / "kernels").is_symlink()
    assert installed_files(build("wheel", unpacked, tmp_path / "wheel")) == installed_files(wheel)


def test_editable_install_finds_the_kernels_of_the_clone_inside_the_package_alone(clone: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(build("editable", clone, tmp_path / "editable")) as archive:
        archive.extractall(tmp_path / "site")
    # This environment may have an editable install of its own: its .pth files are not read, its finder comes second.
    code = """import importlib.util, site, sys
site.addsitedir(sys.argv[1])
sys.path += sys.argv[2:]
import i2c_fast.kernels
print(i2c_fast.kernels.__file__, importlib.util.find_spec("kernels"))"""
    packages = [path for path in sys.path if path.endswith("-packages")]
    found = run_python(code, tmp_path / "site", *packages, cwd=tmp_path, options=("-P", "-S"))
    assert found == f"{clone / PACKAGE / 'kernels' / '__init__.py'} None"


def test_plain_clone_imports_the_kernels_through_the_link(clone: Path) -> None:
    assert os.readlink(clone / PACKAGE / "kernels") == "../kernels"
    code = "import i2c_fast.kernels; print(i2c_fast.kernels.__file__)"
    assert run_python(code, cwd=clone, path=str(clone)) == str(clone / PACKAGE / "kernels" / "__init__.py")


def test_wheel_carries_version_license_and_command(wheel: Path) -> None:
    fields = metadata(wheel, "METADATA")
    assert re.search(rf"^Version: {re.escape(i2c_fast.__version__)}$", fields, re.MULTILINE)
    assert re.search(r"^License-Expression: Apache-2.0$", fields, re.MULTILINE)
    assert "Copyright 2026 The i2c-fast authors" in metadata(wheel, "licenses/LICENSE")
    assert "i2c-fast = i2c_fast.cli:main" in metadata(wheel, "entry_points.txt")


def test_every_dependency_has_a_tested_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    own, *others = extras["dev"]
    assert own == "i2c-fast[bench,export]"
    required = project["dependencies"] + extras["bench"] + extras["export"] + others
    pins = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    tested = {name.lower().replace("_", "-") for name in pins}
    assert {re.split(r"[<>=]", requirement)[0] for requirement in required} <= tested
