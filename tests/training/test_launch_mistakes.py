"""A launcher's usual mistakes: one line, told once, with the way out."""

import re
import shutil
import socket
from pathlib import Path

import pytest
import torch

from i2c_fast.errors import UserError
from i2c_fast.world import LAUNCHED, open_world

from .ranks import ended, free_port, run_forked, train_job, write_set

ALIKE = "; start all ranks with the same options, files and code"
# What two ranks are started with, and the line that one of them tells.
MISTAKES: dict[str, tuple[list[str], str]] = {
    "another configuration": (["run.seed={rank}"], rf"rank 0 on \S+ has run\.seed 0, rank 1 on \S+ has 1{ALIKE}"),
    "another code": ([], rf"rank 0 on \S+ has i2c-fast's code \w+, rank 1 on \S+ has \w+{ALIKE}"),
    "another data set": (
        ["data.root=FOLDER/set{rank}"],
        rf"rank 0 on \S+ has training images \w+, rank 1 on \S+ has \w+{ALIKE}",
    ),
    "a folder of its own": (
        ["-o", "FOLDER/of rank {rank}"],
        r"rank 1 on \S+ does not see \S+/of rank 1, which rank 0 writes; choose an --output that all nodes share",
    ),
    "a folder in use": (
        ["-o", "FOLDER/set0"], r"\S+/set0 is not empty; continue it with --resume, or choose another --output"
    ),
    "three slots": (
        ["batch.classes=3"],
        r"2 ranks cannot divide the 3 slots alike; 1, 3 ranks can, or give another batch\.classes than 3",
    ),
    "one slot a part": (
        ["batch.micro_batches=4"],
        r"2 ranks cannot divide the 1 slots of each of 4 micro-batches alike; 1 ranks can, or give another "
        r"batch\.classes than 4",
    ),
    "one GPU for all": (
        ["run.device=cuda:0"],
        r"run\.device=cuda:0 names one GPU for all ranks; each takes its own with run\.device=cuda",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two ranks said to each mistake."""
    folder = tmp_path_factory.mktemp("mistakes")
    write_set(folder / "set0")
    next(Path(shutil.copytree(folder / "set0", folder / "set1")).glob("**/train/*/*.JPEG")).unlink()
    jobs = []
    for name, (changes, _) in MISTAKES.items():
        fault = ("other code" if name == "another code" else "", 1, 0)
        own = [change.replace("FOLDER", str(folder)) for change in changes]
        jobs.append(train_job(folder, name, folder / "set0", *own, fault=fault))
    run_forked(folder, jobs, 2)
    return folder


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_once_in_a_line(made: Path, name: str) -> None:
    found = ended(made, name, 2)
    assert found.codes == [2, 2]
    (line,) = found.told
    assert re.fullmatch("i2c-fast: " + MISTAKES[name][1], line), line


def launch(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    """A process as torchrun starts the first of two."""
    defaults = ("0", "2", "0", "2", "127.0.0.1", "1")
    for name, value in (dict(zip(LAUNCHED, defaults, strict=True)) | environment).items():
        monkeypatch.setenv(name, value)


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    message = (
        "2 ranks on this node of 1 GPUs; start as many ranks as GPUs by torchrun --nproc-per-node=1, or use processors "
        r"by run\.device=cpu"
    )
    launch(monkeypatch)
    with pytest.raises(UserError, match=f"^{message}$"), open_world("auto", 1):
        pass


def test_half_a_launch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = (
        "WORLD_SIZE is set, RANK, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT not; start ranks by torchrun, "
        "or unset WORLD_SIZE"
    )
    with pytest.raises(UserError, match=f"^{message}$"), open_world("cpu", 1):
        pass


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        message = (
            rf"rank 0 cannot join the others at 127\.0\.0\.1:{port} \([^\n]+\); is the port in use, or closed to "
            r"this node\? torchrun --rdzv-endpoint=HOST:PORT names another"
        )
        launch(monkeypatch, MASTER_PORT=port)
        with pytest.raises(UserError, match=f"^{message}$"), open_world("cpu", 2):
            pass


def test_a_port_where_nobody_listens_is_named_within_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    launch(monkeypatch, RANK="1", MASTER_PORT=port)
    message = rf"^rank 1 cannot join the others at 127\.0\.0\.1:{port} \([^\n]+\); [^\n]+$"
    with pytest.raises(UserError, match=message), open_world("cpu", 2):
        pass
