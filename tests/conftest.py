"""What all tests share: one thread and seed a test, repeatable examples, and no GPU tests where there is no GPU."""

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

from i2c_fast.config import Config, build_config
from i2c_fast.data.generated import write_generated

from . import tiny  # noqa: F401  registers it
from .processes import server

THREADS = 1  # tests run beside each other, in processes of their own


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="test all of what is otherwise sampled")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(THREADS)
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # for the processes that tests start
    hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
    hypothesis.settings.load_profile("repeatable")
    if hasattr(config, "workerinput") and os.environ.get("I2C_FAST_BACKEND") != "interpret":
        server()  # before a test that would start it with less


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def exhaustive(request: pytest.FixtureRequest) -> bool:
    """Whether to test all of what is otherwise sampled."""
    return bool(request.config.getoption("--exhaustive"))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated ILSVRC tree of 3 classes, 8 training and 4 validation images each, 32 px. Not to be written to."""
    root = tmp_path_factory.mktemp("tiny") / "set"
    write_generated(root, seed=0, classes=3, train_images=8, val_images=4, size=32)
    return root


TINY = (
    "data.image_size=32", "data.short_side=36", "data.workers=0", "data.loader=opencv",
    "model.backbone=tiny", "model.weights=none",
    "batch.classes=3", "batch.images=2", "stage0.method=cam", "stage0.epochs=1", "stage0.lr=0.01",
    "stage1.method=i2c", "stage1.epochs=1", "stage1.lr=0.01",
    "optim.head_factor=1", "optim.head_bias_factor=1", "eval.threshold_step=16", "run.device=cpu",
    "run.deterministic=true", "run.log_every=3",
)  # fmt: skip


@pytest.fixture
def tiny_config(tiny_set: Path) -> Callable[..., Config]:
    """Configurations of a run that takes a second or two: 4 steps an epoch, one epoch of each stage."""
    return lambda *overrides: build_config({}, "tests", (f"data.root={tiny_set}", *TINY, *overrides))
