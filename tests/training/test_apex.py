"""NVIDIA apex is found without being imported, and said to be missing in one line."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from i2c_fast.config import Config
from i2c_fast.errors import UserError
from i2c_fast.training import apex, build_trainer


def install(folder: Path, patch: pytest.MonkeyPatch, *files: str) -> None:
    """Put empty modules on the import path."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    patch.syspath_prepend(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("apex", "amp_C")]:
        patch.delitem(sys.modules, name)


NVIDIA = ("apex/__init__.py", "apex/optimizers/__init__.py", "apex/optimizers/fused_sgd.py")


@pytest.mark.parametrize(("files", "reason"), [
    (("apex/__init__.py",), "the apex installed here is not NVIDIA's"),
    (NVIDIA, "apex is installed without its CUDA kernels"),
    ((*NVIDIA, "amp_C.py"), "apex needs a GPU"),
])  # fmt: skip
def test_what_is_wrong_with_an_apex_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...], reason: str
) -> None:
    install(tmp_path, monkeypatch, *files)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert apex.find_apex() == reason


def test_a_run_that_asks_for_a_missing_apex_ends_in_one_line(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apex.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^optim.impl=apex: apex is not installed; install it by scripts/install_apex"):
        build_trainer(tiny_config("optim.impl=apex"), tmp_path, Console(quiet=True))


@pytest.mark.parametrize("other", ["optim.clip_norm=1", "run.precision=fp16"])
def test_apex_is_not_combined_with_what_it_does_not_do(
    tiny_config: Callable[..., Config], tmp_path: Path, other: str
) -> None:
    with pytest.raises(UserError, match=r"optim.impl=apex goes with none of optim.clip_norm"):
        build_trainer(tiny_config("optim.impl=apex", other), tmp_path, Console(quiet=True))


def test_the_guard_s_flag_reaches_apex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a stand-in that, like FusedSGD, does nothing where its overflow buffer is set."""

    class FusedSGD(torch.optim.SGD):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[arg-type]
            self._dummy_overflow_buf = torch.zeros(1, dtype=torch.int32)

        def step(self, closure: object = None) -> None:  # type: ignore[override]
            del self.found_inf  # which it knows nothing of, and torch's unfused SGD refuses
            if not self._dummy_overflow_buf.item():
                super().step()

    module = ModuleType("apex.optimizers")
    module.FusedSGD = FusedSGD  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", module)
    monkeypatch.setattr(apex, "find_apex", lambda: None)
    weight = nn.Parameter(torch.ones(2))
    optimizer = apex.apex_sgd([{"params": [weight]}], 0.9, True)
    optimizer.param_groups[0]["lr"] = 0.5

    def stepped(found_inf: float) -> Tensor:
        weight.grad = torch.ones(2)
        optimizer.found_inf = torch.tensor(found_inf)  # type: ignore[attr-defined]
        optimizer.step()
        return weight.detach().clone()

    assert stepped(1.0).tolist() == [1.0, 1.0]
    assert (stepped(0.0) < 1).all()
