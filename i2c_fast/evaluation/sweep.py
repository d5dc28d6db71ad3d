"""Find every region of a gray map at many thresholds, in compiled code.

A mask ``gray > t`` is a list of runs: stretches of rows above the threshold, with gaps between them. Runs that touch
join into regions; gaps that touch join into holes, or into the frame around the map. Pixels are numbered row by row,
with two more of padding at each row's end: so one step moves a run onto the row below it, and the gaps around the ends
of rows are parts of the frame.

One scan of the map finds the runs of all masks. A run ends where two neighbors lie on both sides of a threshold, so the
work grows with the number of thresholds and with the roughness of the map. The compiled call releases the interpreter
lock.

Import this module late: it loads numba, which takes longer than the package. All that is compiled stays in this file:
numba's cache on disk notices no change in another.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Counts = NDArray[
    np.uint32
]  # what counts or is an index: numba asks of signed ones, each time, whether they are negative

ZERO, ONE = np.uint32(0), np.uint32(1)

# Columns of a region: its box, how many pixels it has, and twice the area of the polygon through its outermost pixels,
# less that of its holes: a full 2 x 2 quad of pixels counts 2, one with three pixels 1.
X0, Y0, X1, Y1, PIXELS, POLYGON = 0, 1, 2, 3, 4, 5


def compiled(signature: str | list[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function when it is defined, without the interpreter lock, and keep it on disk between processes."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(signature, nogil=True, cache=True)(function)
        except Exception:
            # The cache may fail (no folder, no space, a damaged file); compile without it.
            return numba.njit(signature, nogil=True)(function)

    return decorate


@numba.njit
def _masks(gray: Bytes, thresholds: Longs) -> tuple[Longs, Bytes, Longs]:
    """Number the different masks ``gray > t`` by rising threshold.

    Returns:
        the mask of each threshold [T]; in how many masks each pixel is, uint8 [H, W], those of the lowest numbers; and
        how many runs each mask has.
    """
    height, width = gray.shape
    present, asked = np.zeros(256, np.bool_), np.zeros(256, np.bool_)
    for y in range(height):
        for x in range(width):
            present[gray[y, x]] = True
    for threshold in thresholds:
        asked[threshold] = True
    rank_of, mask_of = np.zeros(256, np.uint8), np.zeros(256, np.int64)
    count, differs = 0, True
    for value in range(256):
        rank_of[value] = count
        differs |= present[value]
        if asked[value]:
            if differs:
                count, differs = count + 1, False
            mask_of[value] = count - 1
    ranks, runs = np.empty((height, width), np.uint8), np.zeros(256, np.int64)
    for y in range(height):
        before = 0
        for x in range(width):
            rank = ranks[y, x] = rank_of[gray[y, x]]
            if rank > before:
                runs[before] += 1
                runs[rank] -= 1
            before = rank
    return mask_of[thresholds], ranks, np.cumsum(runs)[:count]


@numba.njit
def _find_runs(ranks: Bytes, first: int, last: int, at: Longs, starts: Ints, ends: Ints) -> None:
    """Write down where the runs of the masks `first` … `last` − 1 start and, exclusive, end.

    Args:
        at: for each mask, where its first start and the end before it, that of the frame, go.
    """
    height, width = ranks.shape
    row = np.empty(width + 2, np.int32)
    row[0] = row[width + 1] = first
    changes, place = np.empty(width + 1, np.uint32), at.astype(np.uint32)
    for y in range(height):
        for x in range(width):
            row[x + 1] = min(max(np.int32(ranks[y, x]), np.int32(first)), np.int32(last))
        count = ZERO
        for x in range(width + 1):  # without a branch, which no processor would foresee
            changes[count] = x
            count += np.uint32(row[x] != row[x + 1])
        for i in range(count):
            x = changes[i]
            before, rank, pixel = row[x], row[x + ONE], y * (width + 2) + x
            if before < rank:
                for mask in range(np.uint32(before), np.uint32(rank)):
                    starts[place[mask]] = pixel
            else:
                for mask in range(np.uint32(rank), np.uint32(before)):
                    place[mask] += ONE
                    ends[place[mask]] = pixel


@numba.njit
def _root(parents: Counts, region: int) -> int:
    while parents[region] != region:
        parents[region] = parents[parents[region]]
        region = parents[region]
    return region


@numba.njit
def _join(
    starts: Ints, ends: Ints, step: int, reach: int, entered: Counts, parents: Counts, regions: Ints
) -> tuple[Any, bool]:
    """Join runs, which come in the order of their pixels, into regions.

    Args:
        step: pixels from a row to the next. reach: 1 joins runs whose corners touch (8-connected), 0 does not.
        entered: gets the region that each run entered. parents: get the region that each one joined, or itself; of two
            the one that started first goes on. regions: get what each is, see `X0`.

    Returns:
        how many regions there are, and whether some run joined a region to itself, around a hole.
    """
    count, holed, near, rows = ZERO, False, ZERO, 1 / step
    for run in range(np.uint32(len(starts))):
        start, end = starts[run], ends[run]
        y = int((start + 0.5) * rows)  # start // step, which takes longer
        while ends[near] + step + reach <= start:
            near += ONE
        region, polygon, above = count, 0, near
        while above < run and starts[above] + step < end + reach:
            left, right = starts[above] + step, ends[above] + step
            shared = min(right, end) - max(left, start)
            if shared > 0:
                polygon += 2 * (shared - 1) + (left != start) + (right != end)
            other = np.uint32(_root(parents, entered[above]))
            above += ONE
            if region == count:
                region = other
            elif other == region:
                holed = True
            else:
                region, other = min(region, other), max(region, other)
                parents[other] = region
                whole, part = regions[region], regions[other]
                whole[X0], whole[X1] = min(whole[X0], part[X0]), max(whole[X1], part[X1])
                whole[PIXELS] += part[PIXELS]
                whole[POLYGON] += part[POLYGON]
        if above > near:
            near = above - ONE
        x0, x1, grown = start - y * step, end - 1 - y * step, regions[region]
        if region == count:
            parents[region] = region
            count += ONE
            grown[X0], grown[Y0], grown[X1], grown[PIXELS], grown[POLYGON] = x0, y, x1, 0, 0
        grown[X0], grown[X1], grown[Y1] = min(grown[X0], x0), max(grown[X1], x1), y
        grown[PIXELS] += end - start
        grown[POLYGON] += polygon
        entered[run] = region
    return np.int64(count), holed


@numba.njit
def _largest(parents: Counts, regions: Ints, count: int, size: int, last_wins: bool) -> int:
    """The region whose column `size` is largest, of equal ones the first or the last; −1 if there is none."""
    found = -1
    for region in range(count):
        if parents[region] == region and (found < 0 or regions[region, size] >= regions[found, size] + (not last_wins)):
            found = region
    return found


@numba.njit
def _exceeds_all(found: int, parents: Counts, regions: Ints, count: int) -> bool:
    """Whether the polygon of a region, holes left out, is larger than the boxes around those of all others."""
    for region in range(count):
        x0, y0, x1, y1 = regions[region, :PIXELS]
        if region != found and parents[region] == region and 2 * (x1 - x0) * (y1 - y0) >= regions[found, POLYGON]:
            return False
    return True


@numba.njit
def _fill_holes(starts: Ints, ends: Ints, entered: Counts, parents: Counts) -> int:
    """Join the runs on both sides of each gap that is not the frame's, in place; returns how many runs there are."""
    count = 0
    for run in range(len(starts)):
        if _root(parents, entered[run]):  # of the gap before it; the frame is region 0
            ends[count - 1] = ends[run]
        else:
            starts[count], ends[count] = starts[run], ends[run]
            count += 1
    return count


@compiled("Tuple((int32[:, ::1], int32[:, ::1], int64[::1], int64[::1]))(uint8[:, :], int64[::1], boolean)")
def trace(gray: Bytes, thresholds: Longs, contours: bool) -> tuple[Ints, Ints, Longs, Longs]:
    """The fields of `boxes.Contours`; without `contours` ``largest`` is that of `boxes.largest_region_boxes`.

    Holes are the 4-connected dark regions that do not reach the border; their contours' boxes are theirs, grown by a
    pixel. A contour's area is that of its region with all holes filled, and such regions lie side by side. So the
    largest is found with the holes filled, and of equal ones OpenCV, which lists siblings from the bottom to the top,
    meets the one that starts last.

    Args:
        gray: uint8 [H, W] of any strides. thresholds: [T] of 0…254.
    """
    mask_of, ranks, counts = _masks(gray, thresholds)
    height, width = gray.shape
    step = width + 2
    most = max(counts.max() if len(counts) else 0, 0) + 1
    entered, parents, regions = np.empty(most, np.uint32), np.empty(most, np.uint32), np.empty((most, 6), np.int32)
    gap_entered, gap_parents, gap_regions = np.empty_like(entered), np.empty_like(parents), np.empty_like(regions)
    largest, begins = np.empty((len(counts), 4), np.int32), np.empty(len(counts), np.int64)
    boxes, box_count = np.empty((1024 if contours else 0, 4), np.int32), 0
    first = 0
    while first < len(counts):
        # As many masks at a time as have two runs a pixel together, so that memory stays bounded.
        last, total = first + 1, counts[first] + 1
        while last < len(counts) and total + counts[last] < 2 * gray.size:
            total += counts[last] + 1
            last += 1
        at = np.zeros(len(counts), np.int64)
        at[first + 1 : last] = np.cumsum(counts[first : last - 1] + 1)
        run_starts, run_ends = np.empty(total, np.int32), np.empty(total, np.int32)
        _find_runs(ranks, first, last, at, run_starts, run_ends)
        for mask in range(first, last):
            count, offset = counts[mask], at[mask]
            # The frame begins a row above the map and ends a row below it; gap i lies before run i.
            run_ends[offset], run_starts[offset + count] = -step, (height + 1) * step
            gap_starts, gap_ends = run_ends[offset : offset + count + 1], run_starts[offset : offset + count + 1]
            starts, ends = gap_ends[:-1], gap_starts[1:]
            found, holed = _join(starts, ends, step, 1, entered, parents, regions)
            chosen = _largest(parents, regions, found, POLYGON if contours else PIXELS, contours)
            largest[mask, :2], largest[mask, 2:] = 0, -1
            if chosen >= 0:
                largest[mask] = regions[chosen, :PIXELS]
            if not contours:
                continue
            begins[mask] = box_count
            if box_count + 2 * count + 2 > len(boxes):
                grown = np.empty((2 * len(boxes) + 2 * count + 2, 4), np.int32)
                grown[:box_count] = boxes[:box_count]
                boxes = grown
            if not found:
                boxes[box_count] = largest[mask]
                box_count += 1
            for region in range(found):
                if parents[region] == region:
                    boxes[box_count] = regions[region, :PIXELS]
                    box_count += 1
            if not holed:
                continue
            dark, _ = _join(gap_starts, gap_ends, step, 0, gap_entered, gap_parents, gap_regions)
            for hole in range(1, dark):
                if gap_parents[hole] == hole:
                    boxes[box_count, :2] = gap_regions[hole, :X1] - 1
                    boxes[box_count, 2:] = gap_regions[hole, X1:PIXELS] + 1
                    box_count += 1
            if not _exceeds_all(chosen, parents, regions, found):
                count = _fill_holes(starts, ends, gap_entered, gap_parents)
                found, _ = _join(starts[:count], ends[:count], step, 1, entered, parents, regions)
                largest[mask] = regions[_largest(parents, regions, found, POLYGON, True), :PIXELS]
        first = last
    return largest[mask_of], boxes[:box_count], begins, mask_of


@compiled("float64[:, :, ::1](float64[:, ::1], float64[:, ::1])")
def overlap_ratios(boxes: NDArray[np.float64], gt_boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """See `boxes.overlaps`: IoU, IoP and IoG, float64 [3, B, T]."""
    found = np.zeros((3, len(gt_boxes), len(boxes)))
    for i in range(len(gt_boxes)):
        left, top, right, bottom = gt_boxes[i]
        gt_area = (right - left + 1.0) * (bottom - top + 1.0)
        for j in range(len(boxes)):
            x0, y0, x1, y1 = boxes[j]
            width = min(x1, right) - max(x0, left) + 1.0
            height = min(y1, bottom) - max(y0, top) + 1.0
            if width > 0 and height > 0:  # then neither box is empty
                intersection = width * height
                area = (x1 - x0 + 1.0) * (y1 - y0 + 1.0)
                found[0, i, j] = intersection / (area + gt_area - intersection)
                found[1, i, j] = intersection / area
                found[2, i, j] = intersection / gt_area
    return found
