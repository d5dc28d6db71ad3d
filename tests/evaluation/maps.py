"""Gray maps that are hard for region finding, and maps as networks give them."""

import cv2
import numpy as np


def as_gray(values: np.ndarray) -> np.ndarray:
    """Any map → uint8 from 0 to 255."""
    span = np.ptp(values)
    return ((values - values.min()) / (span or 1) * 255).astype(np.uint8)


def cam(seed: int, cells: int = 14, side: int = 224, sigma: float = 1.5) -> np.ndarray:
    """A smooth float map like a class activation map."""
    coarse = cv2.GaussianBlur(np.random.default_rng(seed).random((cells, cells)), (0, 0), sigma)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def spiral(side: int) -> np.ndarray:
    """One arm, a pixel wide, that darkens inwards and touches itself nowhere."""
    gray = np.zeros((side, side), np.uint8)
    x = y = turn = 0
    bright = 255
    steps = [(1, 0), (0, 1), (-1, 0), (0, -1)]
    gray[0, 0] = bright

    def free(x: int, y: int) -> bool:
        return 0 <= x < side and 0 <= y < side and gray[y, x] == 0

    while True:
        dx, dy = steps[turn % 4]
        ahead, beyond = (x + dx, y + dy), (x + 2 * dx, y + 2 * dy)
        clear = free(*ahead) and (free(*beyond) or not (0 <= beyond[0] < side and 0 <= beyond[1] < side))
        if not clear:
            turn += 1
            dx, dy = steps[turn % 4]
            if not (free(x + dx, y + dy) and free(x + 2 * dx, y + 2 * dy)):
                return gray
            continue
        x, y = ahead
        bright = max(1, bright - 1)
        gray[y, x] = bright


def rings(side: int, width: int, falling: bool) -> np.ndarray:
    """Nested square rings, light and dark in turn, their brightness falling or rising inwards."""
    ys, xs = np.mgrid[:side, :side]
    depth = np.minimum.reduce([xs, ys, side - 1 - xs, side - 1 - ys]) // width
    light = 250 - 9 * depth if falling else 60 + 9 * depth
    return np.where(depth % 2 == 0, light, 5 + depth).astype(np.uint8)


def plateaus(seed: int) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 5, (6, 7)).astype(np.uint8) * 60
    return np.kron(blocks, np.ones((4, 3), np.uint8))


def touching_diagonally() -> np.ndarray:
    """Squares that touch at corners only, around holes that touch at corners only."""
    gray = np.kron(np.indices((8, 9)).sum(0) % 2, np.ones((3, 3), int)) * 90
    gray[gray == 0] = 30
    gray[4::6, 4::6] += 100
    return gray.astype(np.uint8)


ADVERSARIAL = {
    "checkerboard": (np.indices((11, 12)).sum(0) % 2 * 200).astype(np.uint8),
    "checkerboard of two lights": (np.indices((11, 12)).sum(0) % 2 * 100 + np.indices((11, 12))[0] % 2 * 50 + 3).astype(
        np.uint8
    ),
    "spiral": spiral(25),
    "spiral of darkness": 255 - spiral(25),
    "rings falling": rings(33, 2, True),
    "rings rising": rings(33, 2, False),
    "thin rings": rings(21, 1, True),
    "plateaus": plateaus(0),
    "diagonal touches": touching_diagonally(),
    "diagonals": ((np.indices((14, 14)).sum(0) % 3 == 0) * 120 + (np.eye(14) * 60)).astype(np.uint8),
    "ramp": np.tile(np.arange(256, dtype=np.uint8), (3, 1)),
    "stripes": (np.indices((9, 16))[1] % 2 * 255).astype(np.uint8),
    "noise": np.random.default_rng(0).integers(0, 256, (40, 37)).astype(np.uint8),
    "constant": np.full((6, 7), 100, np.uint8),
    "zeros": np.zeros((6, 7), np.uint8),
    "full": np.full((6, 7), 255, np.uint8),
    "one pixel": np.full((1, 1), 3, np.uint8),
    "one dark pixel": np.pad(np.zeros((1, 1), np.uint8), 2, constant_values=9),
    "one row": np.random.default_rng(1).integers(0, 256, (1, 50)).astype(np.uint8),
    "one column": np.random.default_rng(2).integers(0, 256, (50, 1)).astype(np.uint8),
    "smooth": as_gray(cam(3, cells=5, side=40)),
}


MAPS = ("noise", "few levels", "blurred noise", "enlarged cells")


def random_map(rng: np.random.Generator, kind: str, side: int) -> np.ndarray:
    """A uint8 map of a random size below `side`."""
    height, width = rng.integers(1, side, 2).tolist()
    if kind == "noise":
        return rng.integers(0, 256, (height, width)).astype(np.uint8)
    if kind == "few levels":
        return (rng.integers(0, rng.integers(2, 7), (height, width)) * 40).astype(np.uint8)
    if kind == "blurred noise":
        blurred = cv2.GaussianBlur(rng.random((height, width)), (0, 0), rng.uniform(0.3, 3))
    else:
        blurred = cv2.resize(rng.random(rng.integers(1, 8, 2).tolist()), (width, height), interpolation=cv2.INTER_CUBIC)
    return as_gray(blurred.reshape(height, width))
