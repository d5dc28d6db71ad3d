"""What all tests share: few threads, one seed a test, repeatable examples, and no GPU tests where there is no GPU."""

import os

import hypothesis
import pytest
import torch

THREADS = 2  # tests are small: more threads only wait for each other


def pytest_configure() -> None:
    torch.set_num_threads(THREADS)
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # for the processes that tests start
    hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
    hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
