"""The ILSVRC devkit's class ids and the field's labels.

Older lists number ILSVRC's classes by devkit id − 1; everyone else, and this package, by the index among the sorted
WordNet id. Both run from 0 to 999 and agree on no class, so a model trained with one and scored with the other is
always wrong, silently.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from .annotations import read_table

WNID = re.compile(r"n\d{8}")

# Higher ids are inner nodes of the hierarchy, not classes.
_CLASSES = 1000
_FILES = ("map_clsloc.txt", "data/map_clsloc.txt", "devkit/data/map_clsloc.txt")
_FORM = "'n02119789 1 kit_fox': WordNet id, devkit id, name"


@dataclass(frozen=True)
class Devkit:
    """The two orders of the classes, and the way from devkit ids to labels."""

    path: Path
    classes: tuple[str, ...]  # WordNet ids, sorted: position = label
    numbered: tuple[str, ...]  # WordNet ids by devkit id − 1
    to_label: NDArray[np.int64]  # [Y] label of devkit id − 1


def read_devkit(path: Path) -> Devkit:
    """Read ``map_clsloc.txt``, or any text whose lines begin with WordNet id and devkit id in either order.

    Args:
        path: that file, or a devkit's folder.

    Raises:
        UserError: no such file, a line of another form, or ids that are not 1, 2, ….
    """
    file = next((path / name for name in _FILES if (path / name).is_file()), None) if path.is_dir() else path
    if file is None:
        raise UserError(
            f"data.devkit: {path} has no map_clsloc.txt; give a text file with a line {_FORM} for each class"
        )
    wnids = {int(number): wnid for number, wnid in read_table(file, _FORM, _parse).items() if int(number) <= _CLASSES}
    if sorted(wnids) != list(range(1, len(wnids) + 1)) or len(set(wnids.values())) != len(wnids):
        raise UserError(f"{file} does not give each devkit id 1…{len(wnids)} a WordNet id of its own; mend it")
    numbered = tuple(wnids[number] for number in sorted(wnids))
    return Devkit(file, tuple(sorted(numbered)), numbered, np.argsort(np.argsort(np.array(numbered))))


def _parse(line: str) -> tuple[str, str]:
    first, second, *_ = line.replace(",", " ").split()
    wnid, number = (first, second) if WNID.fullmatch(first) else (second, first)
    if not WNID.fullmatch(wnid):
        raise ValueError
    return str(int(number)), wnid
