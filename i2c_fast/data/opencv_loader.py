"""The OpenCV loader: worker processes make the batches."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError


def deliver(batches: Dataset[Any], positions: Iterable[Any], workers: int, prefetch: int) -> Iterator[Any]:
    """``batches[position]`` for each position in turn, made ahead by `workers` processes (0: none), `prefetch` by each.

    Raises:
        UserError: one that a batch raised, or a loader process that died.
    """
    loader: DataLoader[Any] = DataLoader(
        _UserErrorsAsItems(batches),
        batch_size=None,  # an item is a whole batch: its plan, not the loader, decides what is in it
        sampler=positions,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_as_it_is,
    )
    try:
        for item in loader:
            if isinstance(item, UserError):
                raise item
            yield item
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise UserError(
            f"a loader process died ({str(error).splitlines()[0]}); is memory or shared memory short? "
            "Lower data.workers, or load in the training process with data.workers=0"
        ) from None


class _UserErrorsAsItems(Dataset[Any]):
    """Hands a `UserError` on as an item: raised in a loader process it would arrive wrapped in a traceback's text."""

    def __init__(self, batches: Dataset[Any]) -> None:
        self.batches = batches

    def __getitem__(self, position: Any) -> Any:
        try:
            return self.batches[position]
        except UserError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch
