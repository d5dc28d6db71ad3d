"""Devices and precision by name, determinism, and one source of randomness."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from i2c_fast.errors import UserError
from i2c_fast.runtime import Runtime, open_runtime, seed_all

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def settings_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = benchmark


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    assert open_runtime("auto", "fp32").device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_cpu_can_always_be_asked_for() -> None:
    assert open_runtime("cpu", "bf16") == Runtime(CPU, "bf16")


@pytest.mark.parametrize("device", ["", "gpu", "CPU", "cuda:99", "cuda:x", "cpu,cuda"])
def test_device_that_is_not_there_is_an_error_that_names_option_and_way_out(device: str) -> None:
    with pytest.raises(UserError) as caught:
        open_runtime(device, "fp32")
    assert f"run.device={device} " in str(caught.value)
    assert "cpu" in str(caught.value).removeprefix(f"run.device={device}")
    assert "\n" not in str(caught.value)


def test_determinism_is_set_and_unset() -> None:
    open_runtime("cpu", "fp32", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    open_runtime("cpu", "fp32")
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark


def test_threads_are_set_only_when_asked_for() -> None:
    before = torch.get_num_threads()
    open_runtime("cpu", "fp32")
    assert torch.get_num_threads() == before
    open_runtime("cpu", "fp32", threads=3)
    assert torch.get_num_threads() == 3


def test_placed_model_has_channels_last_weights() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8))
    placed = Runtime(CPU).move(model)
    assert placed is model
    assert placed[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not placed[0].weight.is_contiguous()


@pytest.mark.parametrize(("precision", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_forward_runs_in_the_asked_precision_and_weights_stay_fp32(precision: str, expected: torch.dtype) -> None:
    layer, runtime = nn.Linear(3, 2), open_runtime("cpu", precision)  # type: ignore[arg-type]
    for _ in range(2):  # the context is made anew each time
        with runtime.autocast():
            assert layer(torch.ones(1, 3)).dtype == expected
    assert layer(torch.ones(1, 3)).dtype == layer.weight.dtype == torch.float32


def draw(*parts: int) -> list[float]:
    seed_all(*parts)
    return torch.rand(4).tolist()


def test_equal_numbers_seed_equal_draws_whatever_went_before() -> None:
    first = draw(1, 2)
    torch.rand(7)
    draw(5)
    assert draw(1, 2) == first


def test_each_number_and_their_order_matter() -> None:
    assert len({tuple(draw(*parts)) for parts in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (1, 2), (3,)]}) == 7


def test_large_seeds_are_accepted() -> None:
    assert draw(2**63, 1) != draw(2**70, 1)
