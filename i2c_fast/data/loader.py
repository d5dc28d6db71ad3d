"""The OpenCV loader: worker processes turn batch plans into uint8 batches."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from .images import Image, UnreadableImageError, read_image, resize, train_crop
from .index import ImageIndex
from .sampler import Sampler


class TrainBatch(NamedTuple):
    """One training batch."""

    images: Tensor  # uint8 [N, 3, S, S], channels_last
    labels: Tensor  # int64 [N]
    groups: Tensor  # int64 [N] slot numbers
    image_ids: Tensor  # int64 [N] position in the global batch
    unreadable: tuple[tuple[int, str], ...] = ()  # (image of the index, reason) of those replaced

    def to(self, device: torch.device) -> "TrainBatch":
        """The batch with its tensors on a device; nothing waits for pinned memory to be copied."""
        return self._replace(**{name: getattr(self, name).to(device, non_blocking=True) for name in self._fields[:4]})

    def split(self, parts: int) -> "list[TrainBatch]":
        """Equal parts one after the other, views of this batch; see `Sampler.check_micro_batches`."""
        pieces = zip(*(getattr(self, name).chunk(parts) for name in self._fields[:4]), strict=True)
        return [self._replace(**dict(zip(self._fields, piece, strict=False))) for piece in pieces]


class EvalBatch(NamedTuple):
    """Test images in index order."""

    images: Tensor  # uint8 [N, 3, S, S], channels_last; aspect not kept
    enlarged: Tensor | None  # uint8 [N, 3, L, L], the same images at the side ten crops are cut from
    labels: Tensor  # int64 [N]
    sizes: Tensor  # int64 [N, 2] width and height of the stored image
    indices: Tensor  # int64 [N] image of the index


def stack(images: list[Image]) -> Tensor:
    """uint8 arrays [S, S, 3] → [N, 3, S, S] whose memory is channels_last, without a transpose."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


class TrainBatches(Dataset[TrainBatch]):
    """Batches addressed by (epoch, step)."""

    def __init__(self, index: ImageIndex, sampler: Sampler, image_size: int, short_side: int) -> None:
        self.index, self.sampler = index, sampler
        self.image_size, self.short_side = image_size, short_side

    def __getitem__(self, position: tuple[int, int]) -> TrainBatch:
        plan = self.sampler.plan(*position)
        unreadable: dict[int, str] = {}
        images = [
            train_crop(self._read(int(i), unreadable), self.short_side, self.image_size, crop, flip)
            for i, crop, flip in zip(plan.indices, plan.crops, plan.flips, strict=True)
        ]
        labels, groups = torch.from_numpy(plan.labels), torch.from_numpy(plan.groups)
        return TrainBatch(stack(images), labels, groups, torch.arange(len(images)), tuple(unreadable.items()))

    def _read(self, image: int, unreadable: dict[int, str]) -> Image:
        """The image, or instead the next readable one of its class: again a function of nothing but the index."""
        candidates = [image]
        for candidate in candidates:
            try:
                return read_image(self.index.file(candidate))
            except UnreadableImageError as error:
                unreadable[candidate] = error.reason
                if candidate == image:
                    members = np.flatnonzero(self.index.labels == self.index.labels[image])
                    candidates += np.roll(members, -int(np.searchsorted(members, image)))[1:].tolist()
        raise UserError(f"no image of class {self.index.classes[self.index.labels[image]]} is readable")


class EvalBatches(Dataset[EvalBatch]):
    """Consecutive batches of a split, each image resized to a square, and to an enlarged one if that has a side."""

    def __init__(self, index: ImageIndex, image_size: int, batch_size: int, enlarged_size: int = 0) -> None:
        self.index, self.batch_size = index, batch_size
        self.image_size, self.enlarged_size = image_size, enlarged_size

    def __len__(self) -> int:
        return -(-len(self.index) // self.batch_size)

    def __getitem__(self, number: int) -> EvalBatch:
        start = number * self.batch_size
        indices = range(start, min(start + self.batch_size, len(self.index)))
        images = [self._read(i) for i in indices]
        sizes = torch.tensor([(image.shape[1], image.shape[0]) for image in images])
        labels = torch.from_numpy(self.index.labels[indices.start : indices.stop])

        def squares(side: int) -> Tensor:
            return stack([resize(image, side, side) for image in images])

        enlarged = squares(self.enlarged_size) if self.enlarged_size else None
        return EvalBatch(squares(self.image_size), enlarged, labels, sizes, torch.tensor(indices))

    def _read(self, image: int) -> Image:
        try:
            return read_image(self.index.file(image))
        except UnreadableImageError as error:
            # A score over fewer images would not compare, so nothing takes its place.
            raise UserError(
                f"validation image {self.index.file(image)} is unreadable ({error.reason}); mend it, or leave it out "
                "by data.blacklist (`i2c-fast validate-data` writes one)"
            ) from None


def train_loader(batches: TrainBatches, positions: Iterable[tuple[int, int]], workers: int) -> Iterator[TrainBatch]:
    """Batches at the given (epoch, step) positions, in that order, prefetched by `workers` processes (0: none).

    Raises:
        UserError: a class without a readable image, or a loader process that died.
    """
    return _deliver(_UserErrorsAsItems(batches), positions, workers)


def eval_loader(batches: EvalBatches, workers: int) -> Iterator[EvalBatch]:
    """All batches of a split in order.

    Raises:
        UserError: an unreadable image, or a loader process that died.
    """
    return _deliver(_UserErrorsAsItems(batches), list(range(len(batches))), workers)


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


def _deliver(batches: Dataset[Any], positions: Iterable[Any], workers: int) -> Iterator[Any]:
    loader: DataLoader[Any] = DataLoader(
        batches,
        batch_size=None,  # an item is a whole batch: its plan, not the loader, decides what is in it
        sampler=positions,
        num_workers=workers,
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
