"""A small set of saved maps and wsolevaluation's lists of it, and what `BoxEvaluator` is to be given for it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .maps import cam

COUNT, SIDE = 6, 12
CLASSES = 7


class Saved(NamedTuple):
    maps: Path
    metadata: Path  # the folder that holds test and val

    def lists(self, split: str = "test") -> Path:
        return self.metadata / split

    def file(self, i: int, split: str = "test") -> Path:
        return self.maps / f"{image_id(split, i)}.npy"


def image_id(split: str, i: int) -> str:
    return f"{split}/class {i % 2}/{i}.JPEG"


def raw_map(split: str, i: int, side: int = SIDE) -> np.ndarray:
    return cam(i + (50 if split == "val" else 0), cells=side, side=side, sigma=1.5).astype(np.float32)


def size_of(i: int) -> tuple[int, int]:
    return 40 + 7 * i, 60 - 5 * i


def boxes_of(split: str, i: int) -> list[list[int]]:
    (width, height), rng = size_of(i), np.random.default_rng([i, len(split)])
    found = []
    for _ in range(1 + i % 3):
        x0, y0 = (int(rng.integers(0, n // 3)) for n in (width, height))
        found.append([x0, y0, int(rng.integers(x0 + width // 3, width)), int(rng.integers(y0 + height // 3, height))])
    return found


def label_of(i: int) -> int:
    return 3 * i % CLASSES


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


def write_saved(
    root: Path, raw: Callable[[str, int], np.ndarray] = raw_map, splits: tuple[str, ...] = ("test", "val")
) -> Saved:
    saved = Saved(root / "maps", root / "metadata")
    for split in splits:
        ids = [image_id(split, i) for i in range(COUNT)]
        for i in range(COUNT):
            saved.file(i, split).parent.mkdir(parents=True, exist_ok=True)
            np.save(saved.file(i, split), raw(split, i))
        objects = [(ids[i], box) for i in range(COUNT) for box in boxes_of(split, i)]
        folder = saved.lists(split)
        write_lines(folder / "image_ids.txt", *ids)
        write_lines(folder / "class_labels.txt", *(f"{ids[i]},{label_of(i)}" for i in range(COUNT)))
        write_lines(folder / "image_sizes.txt", *(f"{ids[i]},{size_of(i)[0]},{size_of(i)[1]}" for i in range(COUNT)))
        write_lines(folder / "localization.txt", *(f"{image},{','.join(map(str, box))}" for image, box in objects))
    return saved
