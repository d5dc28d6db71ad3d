"""Find every region at every threshold in one compiled union–find sweep over a gray map.

Pixels enter from the brightest to the darkest. Each either starts a region, or joins one, or joins several together. So
the regions of all 255 masks ``gray > t`` come out of one pass: what a region is between two changes is a *state*, with
the thresholds at which it lasts. One compiled call turns a map into boxes and releases the interpreter lock.

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

# The eight neighbors of a pixel as (dx, dy), once around; bit i of a neighborhood says that neighbor i is already in.
RING = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))
EAST, SOUTH, WEST, NORTH = 0b1000_0011, 0b0000_1110, 0b0011_1000, 0b1110_0000  # three neighbors on a side

# Columns of a state. Box and first pixel are in the frame of the padded map: one pixel more to the left and the top.
X0, Y0, X1, Y1, SIZE, FIRST = 0, 1, 2, 3, 4, 5
LOW, HIGH = 6, 7  # the thresholds at which it lasts, inclusive
# A region that still grows has in those columns the gray level of its last change, and its parent in the union–find.
SINCE, PARENT = 6, 7


def _around(neighborhood: int) -> list[int]:
    return [i for i in range(8) if neighborhood >> i & 1]


def _joined(neighborhood: int, connectivity: int) -> list[int]:
    """One neighbor of each group that is connected even without the pixel in the middle."""
    groups: list[set[int]] = []
    for i in _around(neighborhood):
        x, y = RING[i]
        steps = [(j, abs(x - RING[j][0]), abs(y - RING[j][1])) for j in _around(neighborhood)]
        near = {j for j, dx, dy in steps if (max(dx, dy) if connectivity == 8 else dx + dy) <= 1}
        touched = [group for group in groups if group & near]
        groups = [group for group in groups if not group & near] + [near.union(*touched)]
    touching = set(range(0, 8, 1 if connectivity == 8 else 2))
    return [min(group & touching) for group in groups if group & touching]


def _joined_table(connectivity: int) -> Bytes:
    table = np.zeros((256, 5), np.uint8)
    for neighborhood in range(256):
        joined = _joined(neighborhood, connectivity)
        table[neighborhood, : len(joined) + 1] = len(joined), *joined
    return table


def _quads_filled(neighborhood: int) -> int:
    """Of the four 2 x 2 quads at a pixel, those that it makes three or four pixels full."""
    quads = ({0, 1, 2}, {2, 3, 4}, {4, 5, 6}, {6, 7, 0})
    return sum(len(quad & set(_around(neighborhood))) >= 2 for quad in quads)


# By neighborhood: how many groups a pixel joins, then a neighbor of each.
EIGHT, FOUR = _joined_table(8), _joined_table(4)
# By neighborhood: what a pixel adds to a region's size. The polygon through the outermost pixels of a region without
# holes covers its full quads, and half of those with three pixels: in halves, one for the third pixel, one more for the
# fourth.
PIXELS = np.ones(256, np.int32)
POLYGON = np.array([_quads_filled(neighborhood) for neighborhood in range(256)], np.int32)


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
def _padded(gray: Bytes, inverted: bool) -> Bytes:
    """Zeros around a map, or around 255 − map."""
    height, width = gray.shape
    padded = np.zeros((height + 2, width + 2), np.uint8)
    for y in range(height):
        for x in range(width):
            padded[y + 1, x + 1] = np.uint8(255) - gray[y, x] if inverted else gray[y, x]
    return padded


@numba.njit
def _neighborhoods(padded: Bytes, frame: bool) -> Bytes:
    """uint8 [H + 2, W + 2]: which neighbors enter before each pixel; equally bright ones enter in row-major order."""
    height, width = padded.shape[0] - 2, padded.shape[1] - 2
    found = np.zeros(padded.shape, np.uint8)
    for y in range(1, height + 1):
        up, row, down, out = padded[y - 1], padded[y], padded[y + 1], found[y]
        for x in range(1, width + 1):  # in this form LLVM does 32 pixels at a time
            value = row[x]
            out[x] = (
                np.uint8(row[x + 1] > value)
                | np.uint8(down[x + 1] > value) << 1
                | np.uint8(down[x] > value) << 2
                | np.uint8(down[x - 1] > value) << 3
                | np.uint8(row[x - 1] >= value) << 4
                | np.uint8(up[x - 1] >= value) << 5
                | np.uint8(up[x] >= value) << 6
                | np.uint8(up[x + 1] >= value) << 7
            )
    if frame:
        for x in range(1, width + 1):
            found[1, x] |= np.uint8(NORTH)
            found[height, x] |= np.uint8(SOUTH)
        for y in range(1, height + 1):
            found[y, 1] |= np.uint8(WEST)
            found[y, width] |= np.uint8(EAST)
    return found


@numba.njit
def _brightest_first(padded: Bytes) -> tuple[Ints, Ints]:
    """Pixels by falling value and row-major order, and the end of each value's run among them, int32 [256]."""
    height, width = padded.shape[0] - 2, padded.shape[1] - 2
    ends = np.zeros(256, np.int32)
    for y in range(1, height + 1):
        for x in range(1, width + 1):
            ends[padded[y, x]] += 1
    total = 0
    for value in range(255, -1, -1):
        total, ends[value] = total + ends[value], total
    order = np.empty(total, np.int32)
    for y in range(1, height + 1):
        for x in range(1, width + 1):
            value = padded[y, x]
            order[ends[value]] = y * (width + 2) + x
            ends[value] += 1
    return order, ends


@numba.njit
def _root(regions: Ints, region: int) -> int:
    while regions[region, PARENT] != region:
        regions[region, PARENT] = regions[regions[region, PARENT], PARENT]
        region = regions[region, PARENT]
    return region


@numba.njit(inline="always")  # left to LLVM it stays a call, and the sweep takes three times as long
def _close_state(regions: Ints, region: int, value: int, states: Ints, count: int) -> int:
    """Write down what a region was down to `value`; returns the count of states."""
    since = regions[region, SINCE]
    if since <= value:
        return count
    for column in (X0, Y0, X1, Y1, SIZE, FIRST):
        states[count, column] = regions[region, column]
    states[count, LOW], states[count, HIGH] = value, since - 1
    regions[region, SINCE] = value
    return count + 1


@numba.njit
def _grow(regions: Ints, region: int, x0: int, y0: int, x1: int, y1: int, size: int, first: int) -> None:
    regions[region, X0] = min(regions[region, X0], x0)
    regions[region, Y0] = min(regions[region, Y0], y0)
    regions[region, X1] = max(regions[region, X1], x1)
    regions[region, Y1] = max(regions[region, Y1], y1)
    regions[region, SIZE] += size
    regions[region, FIRST] = min(regions[region, FIRST], first)


@numba.njit
def _sweep(padded: Bytes, joined: Bytes, sizes: Ints, frame: bool) -> tuple[Ints, Ints, Ints]:
    """States of all regions of ``padded > t`` for t in 0…254.

    Args:
        padded: uint8 [H + 2, W + 2], zeros around the map.
        joined: `EIGHT` or `FOUR`, the connectivity. sizes: `PIXELS` or `POLYGON`, what a region's size is.
        frame: whether the padding is a region of its own, number 0, that is there from the start.

    Returns:
        states int32 [S, 8]; the number of the region that each pixel entered, int32 [(H + 2)·(W + 2)]; and each merger
        in its order, int32 [M, 3]: the region that ended, the one that went on (always the frame, if it is one of
        them), and the gray level.
    """
    height, width = padded.shape[0] - 2, padded.shape[1] - 2
    stride = np.int32(width + 2)
    steps = np.array([dy * (width + 2) + dx for dx, dy in RING], np.int32)
    neighborhoods = _neighborhoods(padded, frame).ravel()
    order, ends = _brightest_first(padded)
    entered = np.zeros(padded.size, np.int32)
    # No two regions start side by side, and each state starts with a pixel; memory never written to costs nothing.
    regions = np.empty((height * width // 2 + 2, 8), np.int32)
    states = np.empty((height * width + 1, 8), np.int32)
    mergers = np.empty((height * width // 2 + 2, 3), np.int32)
    region_count = state_count = merger_count = 0
    if frame:
        regions[0, :] = 0
        regions[0, X1], regions[0, Y1], regions[0, SINCE] = width + 1, height + 1, 255
        region_count = 1
    at = 0
    for value in range(255, 0, -1):
        while at < ends[value]:
            pixel = order[at]
            at += 1
            neighborhood = neighborhoods[pixel]
            y = pixel // stride
            x = pixel - y * stride
            size = sizes[neighborhood]
            groups = joined[neighborhood, 0]
            if groups == 0:
                region = region_count
                regions[region, X0] = regions[region, X1] = x
                regions[region, Y0] = regions[region, Y1] = y
                regions[region, SIZE], regions[region, FIRST] = size, pixel
                regions[region, SINCE], regions[region, PARENT] = value, region
                region_count += 1
            else:
                region = _root(regions, entered[pixel + steps[joined[neighborhood, 1]]])
                state_count = _close_state(regions, region, value, states, state_count)
                for group in range(2, groups + 1):
                    other = _root(regions, entered[pixel + steps[joined[neighborhood, group]]])
                    if other == region:
                        continue
                    state_count = _close_state(regions, other, value, states, state_count)
                    region, other = min(region, other), max(region, other)
                    regions[other, PARENT] = region
                    mergers[merger_count, 0], mergers[merger_count, 1] = other, region
                    mergers[merger_count, 2] = value
                    merger_count += 1
                    x0, y0, x1, y1, other_size, first = regions[other, :SINCE]
                    _grow(regions, region, x0, y0, x1, y1, other_size, first)
                _grow(regions, region, x, y, x, y, size, pixel)
            entered[pixel] = region
    for region in range(region_count):
        if regions[region, PARENT] == region:
            state_count = _close_state(regions, region, 0, states, state_count)
    return states[:state_count], entered, mergers[:merger_count]


@numba.njit
def _filled(padded: Bytes, entered: Ints, mergers: Ints) -> Bytes:
    """Lower every pixel to the brightest level at which it is connected to the frame; the rest becomes 0.

    Args:
        padded: the map of a sweep with a frame. entered, mergers: its results.

    Returns:
        uint8, padded as the map.
    """
    reach = np.zeros(padded.size // 2, np.uint8)  # of each region, as many as there can be
    reach[0] = 255
    # The last mergers first: when a region's own merger comes up, it is known how the one that went on fares.
    for i in range(len(mergers) - 1, -1, -1):
        ended, survivor, value = mergers[i]
        reach[ended] = value if survivor == 0 else reach[survivor]
    height, width = padded.shape
    filled = np.zeros((height, width), np.uint8)
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            filled[y, x] = min(padded[y, x], reach[entered[y * width + x]])
    return filled


@numba.njit
def _largest(states: Ints, first_wins: bool) -> Ints:
    """Box of the largest region at each threshold, int32 [255, 4]; `EMPTY_BOX` where there is none."""
    boxes = np.empty((255, 4), np.int32)
    boxes[:, :2], boxes[:, 2:] = 0, -1
    sizes, firsts = np.full(255, -1, np.int32), np.zeros(255, np.int32)
    for state in states:
        for threshold in range(state[LOW], state[HIGH] + 1):
            size, first = sizes[threshold], firsts[threshold]
            earlier = state[FIRST] < first
            if state[SIZE] > size or (state[SIZE] == size and earlier == first_wins):
                sizes[threshold], firsts[threshold] = state[SIZE], state[FIRST]
                for side in range(4):
                    boxes[threshold, side] = state[side] - 1  # out of the padded map's frame
    return boxes


@numba.njit
def _outlines(regions: Ints, holes: Ints, height: int, width: int) -> Ints:
    """States of all contours: those of the regions, and those of the dark regions, swept as 255 − map, grown by one."""
    contours = np.empty((len(regions) + len(holes), 8), np.int32)
    count = 0
    for state in regions:
        contours[count] = state
        contours[count, :4] -= 1  # out of the padded map's frame
        count += 1
    for state in holes:
        if state[X0] > 1 and state[Y0] > 1 and state[X1] < width and state[Y1] < height:
            contours[count] = state
            contours[count, :2] -= 2
            # 255 − map > s is what map > 254 − s leaves out.
            contours[count, LOW], contours[count, HIGH] = 254 - state[HIGH], 254 - state[LOW]
            count += 1
    return contours[:count].copy()


@compiled("int32[:, ::1](uint8[:, :])")
def trace_regions(gray: Bytes) -> Ints:
    """Box of the largest region at each threshold, int32 [255, 4], of a uint8 [H, W] of any strides."""
    return _largest(_sweep(_padded(gray, False), EIGHT, PIXELS, False)[0], True)


@compiled("Tuple((int32[:, ::1], int32[:, ::1]))(uint8[:, :])")
def trace_contours(gray: Bytes) -> tuple[Ints, Ints]:
    """See `boxes.find_contours`: ``largest`` and ``states``.

    Holes are the 4-connected dark regions that do not reach the border; their contours' boxes are theirs, grown by a
    pixel. A contour's area is that of its region with all holes filled, and such regions lie side by side. So the
    largest is found in the map whose dark spots are filled up to the level at which they spill over the border, and of
    equal ones OpenCV, which lists siblings from the bottom to the top, meets the one that starts last.
    """
    height, width = gray.shape
    dark = _padded(gray, True)
    holes, entered, mergers = _sweep(dark, FOUR, PIXELS, True)
    shallow = _filled(dark, entered, mergers)
    solid = _padded(shallow[1:-1, 1:-1], True)
    largest = _largest(_sweep(solid, EIGHT, POLYGON, False)[0], False)
    regions = _sweep(_padded(gray, False), EIGHT, PIXELS, False)[0]
    return largest, _outlines(regions, holes, height, width)


@compiled("int32[::1](int32[:, ::1], float64[::1])")
def leaders(states: Ints, values: NDArray[np.float64]) -> Ints:
    """See `boxes.Contours.best`."""
    found = np.full(255, -1, np.int32)
    for i in range(len(states)):
        for threshold in range(states[i, LOW], states[i, HIGH] + 1):
            if found[threshold] < 0 or values[i] > values[found[threshold]]:
                found[threshold] = i
    return found


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
