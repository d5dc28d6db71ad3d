"""The DALI loader: a pipeline reads, decodes, cuts and resizes images; on the GPU, if the model is on one.

One pipeline serves a whole stage of training or a whole evaluation. It is fed with the plans of batches and keeps no
state that a continuation would need: where it stands is the position that is delivered next.

A file that does not decode kills a pipeline without being named. The batches that were on their way are then searched
for it, and a new pipeline goes on from the first of them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import pipeline_def
from torch import Tensor

from ..errors import UserError
from .batches import (
    EvalBatch,
    EvalBatches,
    LabeledFiles,
    TrainBatch,
    TrainBatches,
    first_readable,
    unreadable_test_image,
)
from .dali_graph import Geometry, squares_of
from .images import UnreadableImageError, has_bounded_end, looks_whole, read_image
from .loader import Loading
from .sampler import BatchPlan


class Request(NamedTuple):
    """One batch to make."""

    position: Any
    images: list[int]  # of the index, replacements instead of unreadable ones
    crops: NDArray[np.float64] | None = None  # [N, 3] of cuts: x, y as fractions of the free range, 1 to mirror
    plan: BatchPlan | None = None  # of a training batch
    unreadable: tuple[tuple[int, str], ...] = ()  # (image, reason) of those replaced


RequestOf = Callable[[Any], Request]
Squares = list[Tensor]  # uint8 [N, 3, S, S] channels_last, one for each side asked for


class Pipelines:
    """Makes batches on request, by one pipeline after another should one die.

    Args:
        files: images by number. geometry: what to make of them.
        batch_size: the most images of a request. threads: of DALI.
    """

    def __init__(
        self, files: LabeledFiles, geometry: Geometry, batch_size: int, threads: int, loading: Loading
    ) -> None:
        self.files, self.geometry, self.loading = files, geometry, loading
        self.gpu = loading.device.type == "cuda"
        self.options = {
            "num_threads": max(1, threads),
            "device_id": (loading.device.index or 0) if self.gpu else None,
            "prefetch_queue_depth": loading.prefetch,
            "exec_dynamic": True,  # whoever holds a batch keeps its memory from being written again
        }
        self.batch_size = batch_size
        self._whole: set[int] = set()  # images that look truncated at their ends and are not

    def make(
        self, positions: Iterable[Any], request: RequestOf, refuse: Callable[[dict[int, str]], None]
    ) -> Iterator[tuple[Request, Squares, Tensor]]:
        """The batch of each position in turn: its request, its squares, and the images' sizes, int64 [N, 3].

        Args:
            request: what to make at a position; asked again after images were refused.
            refuse: told of images that cannot be read, and why; it raises, or what is requested leaves them out.

        Raises:
            UserError: a pipeline died, and no image is to blame.
        """
        pending, under_way = iter(positions), deque[Request]()
        while True:
            pending = chain([earlier.position for earlier in under_way], pending)
            under_way.clear()
            try:
                pipeline = self._pipeline(self._feed(pending, under_way, request), self.batch_size)
                while True:
                    # On a GPU the consumer's stream waits for the images, the host does not.
                    *squares, sizes, ends = pipeline.run(*self._stream())
                    found = self._broken_ends(under_way[0].images, ends.as_array())
                    if found:
                        break
                    yield under_way.popleft(), [_torch(one) for one in squares], torch.tensor(sizes.as_array())
            except StopIteration:
                return
            except RuntimeError as error:
                found = self._culprits(under_way, error)
            refuse(found)

    def _stream(self) -> tuple[torch.cuda.Stream, ...]:
        return (torch.cuda.current_stream(self.loading.device),) if self.gpu else ()

    def _feed(self, pending: Iterator[Any], under_way: deque[Request], request: RequestOf) -> Callable[[], Any]:
        def source() -> tuple[Any, ...]:
            under_way.append(request(next(pending)))  # StopIteration tells DALI of the end
            return self._inputs(under_way[-1])

        return source

    def _inputs(self, request: Request) -> tuple[Any, ...]:
        files = [self.files.file(image) for image in request.images]
        # DALI would wait for a pipe for ever, and read any length: with a slash behind it, a file cannot be opened.
        paths = [np.frombuffer(bytes(file) + b"/" * (not has_bounded_end(file)), np.uint8) for file in files]
        return (paths,) if request.crops is None else (paths, request.crops)

    def _pipeline(self, source: Callable[[], Any], batch_size: int) -> Any:
        return pipeline_def(squares_of, batch_size=batch_size, **self.options)(source, self.geometry, self.loading)

    def _broken_ends(self, images: list[int], ends: NDArray[np.uint8]) -> dict[int, str]:
        """Images that DALI decodes and `read_image` refuses, for their format or a lost end, and why."""
        suspects = [
            image
            for image, end in zip(images, ends, strict=True)
            if image not in self._whole and not looks_whole(bytes(end[:6]), bytes(end[6:]))
        ]
        found = self._reasons(suspects, self._read)
        self._whole.update(set(suspects) - set(found))
        return found

    def _culprits(self, under_way: Iterable[Request], error: RuntimeError) -> dict[int, str]:
        """Images of the first request that has any that cannot be read, and why."""
        for request in under_way:
            found = self._reasons(request.images, self._read)
            if not found:
                found = self._reasons(request.images, self._probe)
                if len(found) == len(set(request.images)):  # it is not the images that DALI fails at
                    found = {}
            if found:
                return found
        raise UserError(
            f"data.loader=dali failed, and no image is to blame ({_own_words(error)}); data.loader=opencv does without"
        ) from None

    def _reasons(self, images: list[int], read: Callable[[int], object]) -> dict[int, str]:
        found = {}
        for image in dict.fromkeys(images):
            try:
                read(image)
            except UnreadableImageError as error:
                found[image] = error.reason
        return found

    def _read(self, image: int) -> None:
        read_image(self.files.file(image))

    def _probe(self, image: int) -> None:
        """Read by DALI alone what OpenCV reads."""
        try:
            alone = Request(0, [image], np.zeros((1, 3)) if self.geometry.short_side else None)
            self._pipeline(lambda: self._inputs(alone), 1).run()
        except RuntimeError as error:
            raise UnreadableImageError(self.files.file(image), f"DALI cannot read it: {_own_words(error)}") from None


def train_batches(
    batches: TrainBatches, positions: Iterable[tuple[int, int]], threads: int, loading: Loading
) -> Iterator[TrainBatch]:
    """See `loader.train_loader`."""
    refused: dict[int, str] = {}

    def accepted(image: int) -> int:
        if image in refused:
            raise UnreadableImageError(batches.index.file(image), refused[image])
        return image

    def request(position: tuple[int, int]) -> Request:
        plan = batches.sampler.plan(*position)
        met: dict[int, str] = {}
        images = [first_readable(batches.index, image, accepted, met) for image in plan.indices.tolist()]
        return Request(position, images, np.column_stack([plan.crops, plan.flips]), plan, tuple(met.items()))

    geometry = Geometry((batches.image_size,), batches.short_side, batches.flavor)
    pipelines = Pipelines(batches.index, geometry, batches.sampler.batch_size, threads, loading)
    for made, (images,), _ in pipelines.make(positions, request, refused.update):
        assert made.plan is not None
        facts = (made.plan.labels, made.plan.groups, made.plan.image_ids)
        labels, groups, image_ids = (_pinned(torch.from_numpy(each)) for each in facts)
        yield TrainBatch(images, labels, groups, image_ids, made.unreadable)


def eval_batches(batches: EvalBatches, numbers: Iterable[int], threads: int, loading: Loading) -> Iterator[EvalBatch]:
    """See `loader.eval_loader`."""

    def request(number: int) -> Request:
        return Request(number, list(batches.indices(number)))

    def refuse(found: dict[int, str]) -> None:
        image, reason = next(iter(found.items()))
        raise unreadable_test_image(batches.index.file(image), reason)

    sides = (batches.image_size, *([batches.enlarged_size] if batches.enlarged_size else []))
    size = min(batches.batch_size, len(batches.index))
    pipelines = Pipelines(batches.index, Geometry(sides, 0, batches.flavor), size, threads, loading)
    labels = torch.from_numpy(batches.index.labels)
    for made, (images, *enlarged), sizes in pipelines.make(numbers, request, refuse):
        indices = torch.tensor(made.images)
        facts = map(_pinned, (labels[indices], sizes[:, [1, 0]], indices))
        yield EvalBatch(images, enlarged[0] if enlarged else None, *facts)


def _torch(squares: Any) -> Tensor:
    """[N, S, S, 3] of DALI as [N, 3, S, S]: the same memory."""
    return torch.from_dlpack(squares.as_tensor()).permute(0, 3, 1, 2)


def _pinned(facts: Tensor) -> Tensor:
    return facts.pin_memory() if torch.cuda.is_available() else facts


def _own_words(error: RuntimeError) -> str:
    """The line of DALI's many that says what happened."""
    lines = [line.strip() for line in str(error).partition("encountered:")[2].splitlines() or str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)
