"""Which loader is chosen, and what is said where DALI is asked for and missing."""

import sys
from types import ModuleType

import pytest
import torch

from i2c_fast.data import EvalBatches, Loading, UnlabeledFiles, check_loader, choose_loader, dali_problem, eval_loader
from i2c_fast.errors import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def pretend(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """A DALI of that version, or none."""
    module = None
    if version is not None:
        module = ModuleType("nvidia.dali")
        module.__version__ = version
    monkeypatch.setitem(sys.modules, "nvidia", ModuleType("nvidia"))
    monkeypatch.setitem(sys.modules, "nvidia.dali", module)


def test_auto_takes_dali_for_a_gpu_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "2.4.0")
    assert choose_loader(GPU)[0] == "dali"


def test_auto_takes_opencv_on_a_cpu_even_where_dali_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "2.4.0")
    loader, reason = choose_loader(CPU)
    assert loader == "opencv"
    assert "CPU" in reason


def test_auto_says_what_to_install_for_a_gpu_without_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None)
    loader, reason = choose_loader(GPU)
    assert loader == "opencv"
    assert "dali-cu13" in reason


@pytest.mark.parametrize(
    ("version", "words"), [(None, "DALI is not installed"), ("1.49.0", "of version 1.49.0"), ("2.1.0", "2.2 or newer")]
)
def test_asking_for_a_dali_that_cannot_be_used_is_one_line_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, version: str | None, words: str
) -> None:
    pretend(monkeypatch, version)
    with pytest.raises(UserError, match=rf"data\.loader=dali: .*{words}.*dali-cu13 or dali-cu12") as caught:
        check_loader("dali")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="dali-cu12"):
        eval_loader(EvalBatches(UnlabeledFiles(()), 32, 1), 0, Loading("dali"))


def test_a_dali_whose_libraries_do_not_load_is_told_from_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "nvidia.dali":
                raise OSError("libdali.so: cannot open\nshared object file")

    for name in [name for name in sys.modules if name.startswith("nvidia.dali")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nvidia", package := ModuleType("nvidia"))
    package.__path__ = []
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert dali_problem() == "DALI cannot be imported: libdali.so: cannot open shared object file"


def test_opencv_can_always_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None)
    check_loader("opencv")
