"""Class and boxes of ILSVRC's validation images: one XML each, or Kaggle's one CSV for all."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from ...errors import UserError
from ...files import MIB, read_regular
from ..index import Boxes
from .annotations import Box, Size, check_box, look_up, read_rows

XML_FOLDER = Path("Annotations/CLS-LOC/val")
SOLUTION = "LOC_val_solution.csv"


class Annotation(NamedTuple):
    """What is annotated of one image."""

    location: str  # where it stands: the XML, or file:line
    wnid: str
    boxes: Boxes  # [b, 4], b ≥ 1
    size: Size | None


def find_annotations(*folders: Path) -> Path | None:
    """The first of the folders' XML folders, else the first of their CSVs; None for neither."""
    candidates = [folder / XML_FOLDER for folder in folders] + [folder / SOLUTION for folder in folders]
    return next((path for path in candidates if path.exists()), None)


def read_annotations(path: Path, names: Sequence[str]) -> list[Annotation]:
    """What the folder or CSV `path` says of the images of these names, given without folder and suffix.

    Raises:
        UserError: an image that is not annotated, or an annotation that does not fit its form.
    """
    if path.is_dir():
        return [read_xml(path / f"{name}.xml") for name in names]
    solution = read_solution(path)
    return [look_up(solution, name, path) for name in names]


def read_xml(path: Path) -> Annotation:
    """One annotation file; document types, and with them entities, are refused.

    Raises:
        UserError: missing, not XML, or without what it should say.
    """
    try:
        root: Element = fromstring(read_regular(path, MIB), forbid_dtd=True)
        wnids = [o.findtext("name", "").strip() for o in root.findall("object")]
        boxes = [_box(o) for o in root.findall("object")]
        size = (int(root.findtext("size/width", "0")), int(root.findtext("size/height", "0")))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; every validation image needs its annotation") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise UserError(f"{path} is not a readable annotation: {error}") from None
    # Annotation tools write 0 for a size they did not look up.
    return _annotation(str(path), wnids, boxes, size if min(size) > 0 else None)


def read_solution(path: Path) -> dict[str, Annotation]:
    """Kaggle's ``LOC_val_solution.csv``: a line ``ImageId,wnid x0 y0 x1 y1 wnid x0 …`` for each image, and a header.

    Raises:
        UserError: a line of another form, or an image on two of them.
    """
    annotated: dict[str, Annotation] = {}
    for location, (image, wnids, boxes) in read_rows(path, "ImageId,wnid x0 y0 x1 y1 …", _parse, header="imageid,"):
        if image in annotated:
            raise UserError(f"{location}: {image} is listed twice; remove one of the lines")
        annotated[image] = _annotation(location, wnids, boxes, None)
    return annotated


def _parse(line: str) -> tuple[str, list[str], list[Box]]:
    image, objects = line.split(",")
    cells = objects.split()
    if len(cells) % 5:
        raise ValueError
    columns = zip(*(map(float, cells[i::5]) for i in range(1, 5)), strict=True)
    return image, cells[::5], [(x0, y0, x1, y1) for x0, y0, x1, y1 in columns]


def _annotation(location: str, wnids: list[str], boxes: list[Box], size: Size | None) -> Annotation:
    if len(set(wnids)) != 1:
        named = ", ".join(sorted(set(wnids))) or "no object"
        raise UserError(f"{location} names {named}; the objects of a validation image are all of its one class")
    for box in boxes:
        check_box(box, size, location)
    return Annotation(location, wnids[0], np.asarray(boxes, np.float32), size)


def _box(element: Element) -> Box:
    x0, y0, x1, y1 = (_number(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    return x0, y0, x1, y1


def _number(element: Element, tag: str) -> float:
    text = element.findtext(tag)
    if text is None:
        raise ValueError(f"an object has no {tag}")
    return float(text)
