"""Which loader makes the batches: OpenCV's or DALI's.

Both give the same images, crops and flips; pixels differ by rounding, on a GPU also by its decoder (docs/loading.md).
"""

import importlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch

from ..errors import UserError
from . import opencv_loader
from .batches import EvalBatch, EvalBatches, TrainBatch, TrainBatches

LoaderName = Literal["opencv", "dali"]


class Loading(NamedTuple):
    """How batches are made; what is in them does not depend on it."""

    loader: LoaderName = "opencv"
    prefetch: int = 2  # batches made ahead, by each process of OpenCV's, by the pipeline of DALI's
    device: torch.device = torch.device("cpu")  # of the model: DALI makes images there
    hw_decoder_load: float = 0.65  # share of JPEGs for the GPU's hardware decoder


BY_OPENCV = Loading()


def train_loader(
    batches: TrainBatches, positions: Iterable[tuple[int, int]], workers: int, loading: Loading = BY_OPENCV
) -> Iterator[TrainBatch]:
    """Batches at the given (epoch, step) positions, in that order.

    Args:
        workers: processes of the OpenCV loader (0: none), or threads of the DALI loader (0: one).

    Raises:
        UserError: a class without a readable image, or a loader that died for another reason than an image.
    """
    if loading.loader == "dali":
        return _dali().train_batches(batches, positions, workers, loading)
    return opencv_loader.deliver(batches, positions, workers, loading.prefetch)


def eval_loader(
    batches: EvalBatches, workers: int, loading: Loading = BY_OPENCV, numbers: Sequence[int] | None = None
) -> Iterator[EvalBatch]:
    """Batches of a split in order: all of them, or those of the given `numbers`; `workers` as for `train_loader`.

    Raises:
        UserError: an unreadable image, or a loader that died.
    """
    numbers = range(len(batches)) if numbers is None else numbers
    if loading.loader == "dali":
        return _dali().eval_batches(batches, numbers, workers, loading)
    return opencv_loader.deliver(batches, numbers, workers, loading.prefetch)


def dali_problem() -> str:
    """Why DALI cannot be used here, in a line; empty if it can."""
    try:
        version = importlib.import_module("nvidia.dali").__version__
    except Exception as error:  # a broken installation fails in whatever way is broken
        absent = isinstance(error, ModuleNotFoundError) and error.name in ("nvidia", "nvidia.dali")
        return "DALI is not installed" if absent else f"DALI cannot be imported: {' '.join(str(error).split())}"
    if tuple(int(part) for part in version.split(".")[:2]) < (2, 2):
        return f"DALI is of version {version}, 2.2 or newer is needed"
    return ""


def choose_loader(device: torch.device) -> tuple[LoaderName, str]:
    """The loader for a model on that device, and why."""
    if device.type != "cuda":
        return "opencv", "the model runs on the CPU"
    problem = dali_problem()
    return ("opencv", f"{problem}; {_INSTALL}") if problem else ("dali", "it decodes on the GPU")


def check_loader(loader: LoaderName) -> None:
    """Raise a `UserError` if the loader cannot be used here."""
    if loader == "dali" and (problem := dali_problem()):
        raise UserError(f"data.loader=dali: {problem}; {_INSTALL}, or give data.loader=opencv")


_INSTALL = "install the extra dali-cu13 or dali-cu12 (for CUDA 13 or 12), as in pip install -e '.[dali-cu13]'"


def _dali():  # type: ignore[no-untyped-def]  # a module, imported only where it is used
    check_loader("dali")
    return importlib.import_module(f"{__package__}.dali_loader")
