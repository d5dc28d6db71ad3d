"""What a batch is: which images, cut and resized how. This is the definition that every loader's batches equal.

From any loader, images are uint8 [N, 3, S, S] in channels_last memory: a quarter of what floats would take to store and
to copy. The model normalizes them where it runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UserError
from .images import Flavor, Image, UnreadableImageError, read_image, resize, train_crop
from .index import ImageIndex
from .sampler import Sampler

T = TypeVar("T")


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
        """Equal parts one after the other, views of this batch; see `Deal`."""
        if parts == 1:
            return [self]
        pieces = zip(*(getattr(self, name).chunk(parts) for name in self._fields[:4]), strict=True)
        return [self._replace(**dict(zip(self._fields, piece, strict=False))) for piece in pieces]


class EvalBatch(NamedTuple):
    """Test images in index order."""

    images: Tensor  # uint8 [N, 3, S, S], channels_last; aspect not kept
    enlarged: Tensor | None  # uint8 [N, 3, L, L], the same images at the side ten crops are cut from
    labels: Tensor  # int64 [N]
    sizes: Tensor  # int64 [N, 2] width and height of the stored image
    indices: Tensor  # int64 [N] image of the index


class LabeledFiles(Protocol):
    """What evaluation asks of an `ImageIndex`."""

    @property
    def labels(self) -> NDArray[np.int64]: ...

    def __len__(self) -> int: ...

    def file(self, i: int, /) -> Path: ...


@dataclass(frozen=True)
class UnlabeledFiles:
    """Image files that belong to no data set, in any order and repeated at will; their labels are 0."""

    files: tuple[Path, ...]

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.zeros(len(self.files), np.int64)

    def __len__(self) -> int:
        return len(self.files)

    def file(self, i: int, /) -> Path:
        """The i-th of them."""
        return self.files[i]


def stack(images: list[Image]) -> Tensor:
    """uint8 arrays [S, S, 3] → [N, 3, S, S] whose memory is channels_last, without a transpose."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


class TrainBatches(Dataset[TrainBatch]):
    """Batches addressed by (epoch, step)."""

    def __init__(
        self, index: ImageIndex, sampler: Sampler, image_size: int, short_side: int, flavor: Flavor = "linear"
    ) -> None:
        self.index, self.sampler = index, sampler
        self.image_size, self.short_side, self.flavor = image_size, short_side, flavor

    def __getitem__(self, position: tuple[int, int]) -> TrainBatch:
        plan = self.sampler.plan(*position)
        unreadable: dict[int, str] = {}

        def read(image: int) -> Image:
            return read_image(self.index.file(image))

        images = [
            train_crop(
                first_readable(self.index, int(image), read, unreadable),
                self.short_side,
                self.image_size,
                crop,
                flip,
                self.flavor,
            )
            for image, crop, flip in zip(plan.indices, plan.crops, plan.flips, strict=True)
        ]
        labels, groups = torch.from_numpy(plan.labels), torch.from_numpy(plan.groups)
        return TrainBatch(stack(images), labels, groups, torch.from_numpy(plan.image_ids), tuple(unreadable.items()))


class EvalBatches(Dataset[EvalBatch]):
    """Consecutive batches of a split, each image resized to a square, and to an enlarged one if that has a side."""

    def __init__(
        self,
        index: LabeledFiles,
        image_size: int,
        batch_size: int,
        enlarged_size: int = 0,
        flavor: Flavor = "linear",
    ) -> None:
        self.index, self.batch_size = index, batch_size
        self.image_size, self.enlarged_size, self.flavor = image_size, enlarged_size, flavor

    def __len__(self) -> int:
        return -(-len(self.index) // self.batch_size)

    def indices(self, number: int) -> range:
        """Images of a batch."""
        start = number * self.batch_size
        return range(start, min(start + self.batch_size, len(self.index)))

    def __getitem__(self, number: int) -> EvalBatch:
        indices = self.indices(number)
        images = [self._read(i) for i in indices]
        sizes = torch.tensor([(image.shape[1], image.shape[0]) for image in images])
        labels = torch.from_numpy(self.index.labels[indices.start : indices.stop])

        def squares(side: int) -> Tensor:
            return stack([resize(image, side, side, self.flavor) for image in images])

        enlarged = squares(self.enlarged_size) if self.enlarged_size else None
        return EvalBatch(squares(self.image_size), enlarged, labels, sizes, torch.tensor(indices))

    def _read(self, image: int) -> Image:
        try:
            return read_image(self.index.file(image))
        except UnreadableImageError as error:
            raise unreadable_test_image(self.index.file(image), error.reason) from None


def first_readable(index: ImageIndex, image: int, read: Callable[[int], T], unreadable: dict[int, str]) -> T:
    """What `read` returns for the image, or instead for the next of its class: a function of nothing but the index.

    Args:
        read: raises `UnreadableImageError` for an image that is to be replaced.
        unreadable: takes down each such image and its reason.

    Raises:
        UserError: no image of the class is readable.
    """
    candidates = [image]
    for candidate in candidates:
        try:
            return read(candidate)
        except UnreadableImageError as error:
            unreadable[candidate] = error.reason
            if candidate == image:
                members = np.flatnonzero(index.labels == index.labels[image])
                candidates += np.roll(members, -int(np.searchsorted(members, image)))[1:].tolist()
    raise UserError(f"no image of class {index.classes[index.labels[image]]} is readable")


def unreadable_test_image(file: Path, reason: str) -> UserError:
    """The error for it: a score over fewer images would not compare, so nothing takes its place."""
    return UserError(
        f"test image {file} is unreadable ({reason}); mend it, or leave it out, of a data set by data.blacklist "
        "(`i2c-fast validate-data` writes one)"
    )
