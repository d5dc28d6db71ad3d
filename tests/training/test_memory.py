"""Memory is compared with what a run needs before it is asked for, and what fails for lack of it is one line."""

import errno
import os
from collections.abc import Callable

import pytest
import torch

from i2c_fast.config import Config
from i2c_fast.errors import UserError
from i2c_fast.models import build_localizer
from i2c_fast.runtime import Runtime, memory_errors
from i2c_fast.training import memory
from i2c_fast.training.memory import GIB, check_evaluation_memory, check_training_memory, free_memory

CPU = Runtime(torch.device("cpu"))


def kept_for_backward(images: torch.Tensor) -> int:
    """Bytes that a forward of ResNet18 keeps beside its parameters."""
    model = build_localizer("resnet18", 3).train()
    kept = {parameter.untyped_storage().data_ptr(): 0 for parameter in model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model(images)
    assert logits.requires_grad
    return sum(kept.values())


def test_a_batch_that_cannot_fit_names_the_keys_to_lower(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_localizer("resnet18", 3)
    large = ("model.backbone=resnet18", "data.image_size=64", "data.short_side=64")
    needed = kept_for_backward(torch.zeros(6, 3, 64, 64, dtype=torch.uint8)) + 6 * 3 * 64**2
    for share, fits in ((1.1, True), (0.9, False)):
        monkeypatch.setattr(memory, "free_memory", lambda share=share: share * needed)
        for config, may in (
            (tiny_config(*large), fits),
            (tiny_config(*large, "batch.micro_batches=3"), True),
            (tiny_config("data.workers=256", "data.prefetch=256"), False),  # in the loader alone
        ):
            if may:
                check_training_memory(config, model, CPU)
                continue
            with pytest.raises(UserError, match=r"6 images .* lower batch\.classes, batch\.images") as caught:
                check_training_memory(config, model, CPU)
            assert "\n" not in str(caught.value)


def test_evaluation_s_batches_count_as_far_as_there_are_images(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = build_localizer("resnet18", 3), tiny_config("eval.batch=65536")
    monkeypatch.setattr(memory, "free_memory", lambda: GIB)
    check_evaluation_memory(config, model, 12, CPU)
    with pytest.raises(UserError, match=r"65,536 images of 32 px .* lower eval\.batch"):
        check_evaluation_memory(config, model, 10**6, CPU)


def test_free_memory_is_less_than_the_machine_has() -> None:
    assert 0 < free_memory() < 1.1 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + 2**40


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free."), "2.00 GiB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 640 bytes."), "640 bytes"),
        (MemoryError("Unable to allocate 7.28 TiB for an array with shape (1000000000000,)"), "7.28 TiB"),
        (MemoryError(), ""),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), ""),
    ],
)
def test_memory_that_runs_out_is_one_line(error: Exception, asked: str) -> None:
    with pytest.raises(UserError) as caught, memory_errors("lower this.key"):
        raise error
    assert str(caught.value) == f"out of memory{f' (asked for {asked})' if asked else ''}; lower this.key"


def test_other_errors_stay_what_they_are() -> None:
    for error in (ValueError("a"), RuntimeError("b"), UserError("no memory left for c"), OSError(errno.ENOENT, "d")):
        with pytest.raises(type(error)) as caught, memory_errors("lower this.key"):
            raise error
        assert caught.value is error
