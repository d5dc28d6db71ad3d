"""Checkpoints: whole or absent, kept in number, never executed."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from i2c_fast.config import build_config
from i2c_fast.errors import UserError
from i2c_fast.training import load_checkpoint, save_checkpoint, stored_threshold
from i2c_fast.training.checkpoint import FORMAT, checkpoint_path, checkpoints_of, save_weights

from ..checkpoints import whole_state
from ..conftest import TINY

CONFIG = build_config({}, "tests", TINY)


def save(run: Path, step: int, keep: int = 0) -> Path:
    path = checkpoint_path(run, step)
    save_checkpoint(path, whole_state(CONFIG, ["a", "b"], step=step), keep)
    return path


def test_a_run_folder_gives_its_newest(tmp_path: Path) -> None:
    save(tmp_path, 9)
    save(tmp_path, 10)
    assert load_checkpoint(tmp_path)["step"] == 10


def test_only_the_last_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, keep=2)
    assert [path.name for path in checkpoints_of(tmp_path)] == ["step-00000004.pt", "step-00000005.pt"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_newest_falls_back_with_a_warning(tmp_path: Path, share: float) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    data = newest.read_bytes()
    newest.write_bytes(data[: int(share * len(data))])
    warnings: list[str] = []
    assert load_checkpoint(tmp_path, warnings.append)["step"] == 1
    assert len(warnings) == 1
    assert newest.name in warnings[0]


def test_a_lone_truncated_checkpoint_is_one_line(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=path.name) as caught:
        load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_temporary_file_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / "step-00000002.pt.tmp").write_bytes(b"half")
    assert load_checkpoint(tmp_path)["step"] == 1


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": FORMAT, "evil": Malicious()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious()))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(UserError, match=name) as caught:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_foreign_files_and_folders_are_one_line(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("text\n")
    for path, words in [
        (tmp_path / "other.pt", "not an i2c-fast checkpoint"),
        (tmp_path / "text.pt", "not a readable i2c-fast checkpoint"),
        (tmp_path / "missing.pt", "does not exist"),
        (tmp_path / ("n" * 300), "does not exist"),
        (tmp_path, "holds no checkpoint"),
    ]:
        with pytest.raises(UserError, match=words):
            load_checkpoint(path)


def test_weights_are_also_written_as_safetensors(tmp_path: Path) -> None:
    weights = {"a": torch.randn(3, 4), "b": torch.randn(4, 3).t()}
    save_weights(tmp_path / "weights.safetensors", weights, {"backbone": "resnet18"})
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert file.metadata() == {"backbone": "resnet18"}
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"protocol": "paper", "gt_known": {"threshold": 0}}, 0),
        ({"protocol": "paper"}, None),
        ({"protocol": "wsolevaluation", "gt_known": {"threshold": 90}}, None),
        (None, None),
    ],
)
def test_only_a_threshold_of_the_paper_protocol_is_stored(scores: dict[str, Any] | None, expected: int | None) -> None:
    assert stored_threshold({"scores": scores}) == expected
