"""ILSVRC's own layout: ``Data/CLS-LOC/{train,val}`` with boxes in ``Annotations/CLS-LOC/val/*.xml``."""

from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse
from numpy.typing import NDArray

from ...errors import UserError
from ..index import ImageIndex, class_folders, images_by_class, images_in, no_boxes

IMAGES = Path("Data/CLS-LOC")
ANNOTATIONS = Path("Annotations/CLS-LOC")


def recognizes(root: Path) -> bool:
    """Whether `root` looks like this layout."""
    return (root / IMAGES / "train").is_dir()


def read_train(root: Path) -> ImageIndex:
    """Index ``Data/CLS-LOC/train/<wnid>/*``; labels are the places of the sorted WordNet ids."""
    folder = root / IMAGES / "train"
    classes = class_folders(folder)
    paths, labels = images_by_class(root, folder, classes)
    return ImageIndex(root, classes, paths, labels, no_boxes(len(paths)))


def read_val(root: Path) -> ImageIndex:
    """Index ``Data/CLS-LOC/val/*`` with class and boxes from each image's XML."""
    classes = class_folders(root / IMAGES / "train")
    label_of = {name: label for label, name in enumerate(classes)}
    folder = root / IMAGES / "val"
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; the ILSVRC layout keeps its validation images there")
    names = images_in(folder)
    labels: list[int] = []
    boxes: list[NDArray[np.float32]] = []
    for name in names:
        annotation = root / ANNOTATIONS / "val" / f"{Path(name).stem}.xml"
        wnid, found = read_annotation(annotation)
        if wnid not in label_of:
            raise UserError(f"{annotation}: class {wnid} has no folder under {root / IMAGES / 'train'}")
        labels.append(label_of[wnid])
        boxes.append(found)
    paths = tuple((IMAGES / "val" / name).as_posix() for name in names)
    return ImageIndex(root, classes, paths, np.asarray(labels, np.int64), tuple(boxes))


def read_annotation(path: Path) -> tuple[str, NDArray[np.float32]]:
    """WordNet id and boxes [b, 4] of one annotation file; entities and external references are refused."""
    try:
        root: Element = parse(path, forbid_dtd=True).getroot()
        objects = root.findall("object")
        boxes = [[_number(o, f"bndbox/{k}") for k in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
        names = [o.findtext("name", "").strip() for o in objects]
    except FileNotFoundError:
        raise UserError(f"{path} is missing; every validation image needs its annotation") from None
    except (ParseError, DefusedXmlException, ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable annotation: {error}") from None
    if not objects:
        raise UserError(f"{path} names no object; without one the image has no class")
    return names[0], np.asarray(boxes, np.float32)


def _number(element: Element, tag: str) -> float:
    text = element.findtext(tag)
    if text is None:
        raise ValueError(f"an object has no {tag}")
    return float(text)
