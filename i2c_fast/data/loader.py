"""The OpenCV loader: worker processes turn batch plans into uint8 batches."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .images import Image, read_image, resize, train_crop
from .index import ImageIndex
from .sampler import ClassPairedSampler


class TrainBatch(NamedTuple):
    """One class-paired batch, on the host."""

    images: Tensor  # uint8 [N, 3, S, S], channels_last
    labels: Tensor  # int64 [N]
    groups: Tensor  # int64 [N] slot numbers
    image_ids: Tensor  # int64 [N] place in the global batch


class EvalBatch(NamedTuple):
    """Test images in index order."""

    images: Tensor  # uint8 [N, 3, S, S], channels_last; aspect not kept
    labels: Tensor  # int64 [N]
    sizes: Tensor  # int64 [N, 2] width and height of the stored image
    indices: Tensor  # int64 [N] image of the index


def stack(images: list[Image]) -> Tensor:
    """uint8 arrays [S, S, 3] → [N, 3, S, S] whose memory is channels_last, without a transpose."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


class TrainBatches(Dataset[TrainBatch]):
    """Batches addressed by (epoch, step)."""

    def __init__(self, index: ImageIndex, sampler: ClassPairedSampler, image_size: int, short_side: int) -> None:
        self.index, self.sampler = index, sampler
        self.image_size, self.short_side = image_size, short_side

    def __getitem__(self, position: tuple[int, int]) -> TrainBatch:
        plan = self.sampler.plan(*position)
        images = [
            train_crop(read_image(self.index.file(i)), self.short_side, self.image_size, place, flip)
            for i, place, flip in zip(plan.indices, plan.crops, plan.flips, strict=True)
        ]
        ids = torch.arange(len(images))
        return TrainBatch(stack(images), torch.from_numpy(plan.labels), torch.from_numpy(plan.groups), ids)


class EvalBatches(Dataset[EvalBatch]):
    """Consecutive batches of a split, each image resized to a square."""

    def __init__(self, index: ImageIndex, image_size: int, batch_size: int) -> None:
        self.index, self.image_size, self.batch_size = index, image_size, batch_size

    def __len__(self) -> int:
        return -(-len(self.index) // self.batch_size)

    def __getitem__(self, number: int) -> EvalBatch:
        start = number * self.batch_size
        indices = range(start, min(start + self.batch_size, len(self.index)))
        images = [read_image(self.index.file(i)) for i in indices]
        return EvalBatch(
            stack([resize(image, self.image_size, self.image_size) for image in images]),
            torch.from_numpy(self.index.labels[indices.start : indices.stop]),
            torch.tensor([(image.shape[1], image.shape[0]) for image in images]),
            torch.arange(indices.start, indices.stop),
        )


def train_loader(batches: TrainBatches, positions: list[tuple[int, int]], workers: int) -> Iterator[TrainBatch]:
    """Batches at the given (epoch, step) positions, in that order, prefetched by `workers` processes (0: none)."""
    return iter(_loader(batches, positions, workers))


def eval_loader(batches: EvalBatches, workers: int) -> Iterator[EvalBatch]:
    """All batches of a split in order."""
    return iter(_loader(batches, list(range(len(batches))), workers))


def _loader(batches: Dataset[TrainBatch] | Dataset[EvalBatch], positions: list, workers: int) -> DataLoader:  # type: ignore[type-arg]
    return DataLoader(
        batches,  # type: ignore[arg-type]
        batch_size=None,  # an item is a whole batch: its plan, not the loader, decides what is in it
        sampler=positions,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
