"""Score saved maps of any method by the boxes or masks of wsolevaluation's lists; no image is needed."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..data.layouts import wsolevaluation_lists as lists
from ..data.layouts.annotations import look_up
from ..errors import UserError
from .metric import LocalizationMetric
from .pixels import PixelAveragePrecision, read_mask
from .predictions import read_ranks
from .protocols import ScoringProtocol, WsolEvaluationProtocol
from .saved_maps import MAX_PIXELS, Map, open_maps, require_maps
from .scores import Scores

Item = TypeVar("Item")
Result = TypeVar("Result")


def score_maps(
    maps: Path,
    metadata: Path,
    split: str | None = None,
    protocol: ScoringProtocol | None = None,
    *,
    resize: bool = False,
    predictions: Path | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda images: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Scores:
    """Score saved maps of the labels' classes by the boxes of a split.

    Maps are min–max normalized, as the protocols say. A map with a NaN or infinity is an error.

    Args:
        maps: a folder or one ``.npz``, see `open_maps`; maps of other images are passed over.
        metadata: wsolevaluation's, a folder of split folders, or one that holds a single such folder.
        split: ``test``, ``val`` or ``train``; by default ``test``, or ``val`` where there is no ``test``.
        protocol: default `WsolEvaluationProtocol`.
        resize: take raw maps of any size. Without, each must have the size that the protocol brings maps to.
        predictions: file of ``image_id,class,class,…``, best first, see `read_ranks`; without, scores have no ranks.
        threads: how many read maps, and as many judge them; default one for each processor.
        progress: called with the number of images after each.
        warn: called with a line if maps of the protocol's size do not reach 0 and 1, so that normalizing changed them.

    Raises:
        UserError: lists or maps that do not fit, are missing, or are not what they should be; see `read_map`.
    """
    protocol = WsolEvaluationProtocol() if protocol is None else protocol
    folder = split_folder(metadata, split)
    ids, known = lists.read_ids(folder), lists.read_sizes(folder)
    boxes = lists.read_objects(folder, ids, known, "masks need --masks")
    sizes = [look_up(known, image, folder / lists.SIZES) for image in ids]
    expected = [protocol.map_size(*size) for size in sizes]
    for image, (width, height) in zip(ids, expected, strict=True):
        if width * height > MAX_PIXELS:
            raise UserError(f"{folder / lists.SIZES}: {image} has {width} × {height} pixels; the most is {MAX_PIXELS}")
    ranks = None if predictions is None else read_ranks(predictions, folder, ids)
    saved = open_maps(maps)
    require_maps(saved, ids, maps)
    metric = LocalizationMetric(protocol, threads)
    reads = in_order(lambda i: saved.read(ids[i], None if resize else expected[i]), range(len(ids)), threads)
    changed = 0
    for i, raw in enumerate(reads):
        changed += _changes(raw, expected[i])
        rank = None if ranks is None else ranks[[i]]
        metric.update(raw[None], None, None, boxes[i : i + 1], sizes[i : i + 1], [i], ranks=rank)
        progress(1)
    _warn_changed(changed, len(ids), warn)
    return metric.scores()


def score_masks(
    maps: Path,
    metadata: Path,
    masks: Path,
    split: str | None = None,
    protocol: WsolEvaluationProtocol | None = None,
    *,
    resize: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda images: None,
    warn: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """PxAP of saved maps by the masks of a split, as `PixelAveragePrecision` has it.

    Args:
        masks: folder where the paths of the masks start. protocol: its interval parts the pixels. Other arguments as
            `score_maps`.

    Returns:
        ``protocol``, ``images``, and ``pxap`` in per cent; ready for JSON.

    Raises:
        UserError: as `score_maps`, a mask that cannot be read, or masks without any object.
    """
    folder, protocol = split_folder(metadata, split), WsolEvaluationProtocol() if protocol is None else protocol
    ids = lists.read_ids(folder)
    paths = lists.read_masks(folder, ids, "boxes need no --masks")
    saved = open_maps(maps)
    require_maps(saved, ids, maps)

    size = (protocol.side, protocol.side)

    def count(i: int) -> tuple[PixelAveragePrecision, bool]:
        pixels = PixelAveragePrecision(protocol)
        raw = saved.read(ids[i], None if resize else size)
        pixels.update(torch.from_numpy(raw)[None], [read_mask(masks, paths[i])])
        return pixels, _changes(raw, size)

    total, changed = PixelAveragePrecision(protocol), 0
    for pixels, change in in_order(count, range(len(ids)), threads):
        total.merge_state(pixels)
        changed += change
        progress(1)
    _warn_changed(changed, len(ids), warn)
    try:
        return {"protocol": protocol.name, "images": len(ids), "pxap": total.compute()}
    except ValueError as error:
        raise UserError(f"{folder / lists.OBJECTS}: {error}") from None


def _changes(raw: Map, size: tuple[int, int]) -> bool:
    """Whether normalizing changes a map that has the protocol's size already."""
    return raw.shape == size[::-1] and (raw.min() != 0 or raw.max() not in (0, 1))


def _warn_changed(changed: int, count: int, warn: Callable[[str], None]) -> None:
    if changed:
        text = f"{changed} of {count} maps do not reach 0 and 1 and were normalized"
        warn(f"{text}; wsolevaluation's own code scores saved maps as they are")


def split_folder(metadata: Path, split: str | None) -> Path:
    """Folder of a split's lists; for None those of ``test``, or ``val`` where there is no ``test``."""
    if not metadata.is_dir():
        raise UserError(f"--metadata: {metadata} is not a folder")
    wanted = ("test", "val") if split is None else (split,)
    folder = lists.find_metadata(metadata, wanted, "--metadata")
    return next(folder / name for name in wanted if (folder / name).is_dir())


def in_order(function: Callable[[Item], Result], items: Sequence[Item], threads: int | None = None) -> Iterator[Result]:
    """Results of a function, in order, computed by threads that run only a few items ahead of the caller."""
    count = threads or os.cpu_count() or 1
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(count) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
