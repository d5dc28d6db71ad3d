"""One small data set, written in every layout and variant of a layout that is read."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

WIDTH, HEIGHT = 20, 16
CLASSES = ("n01440764", "n02102040", "n02979186")
# The devkit counts these classes in another order, from 1.
DEVKIT = ("n02102040", "n02979186", "n01440764")

Box = tuple[int, int, int, int]
Options = dict[str, Any]  # arguments of read_split


class Item(NamedTuple):
    name: str
    label: int
    boxes: list[Box]

    @property
    def wnid(self) -> str:
        return CLASSES[self.label]


TRAIN = [Item(f"{wnid}_{number}.JPEG", label, []) for label, wnid in enumerate(CLASSES) for number in (1, 2)]
# Boxes that touch both ends, one of a single pixel, and images with several; labels in no order.
VAL = [
    Item("ILSVRC2012_val_00000001.JPEG", 2, [(1, 2, 10, 12)]),
    Item("ILSVRC2012_val_00000002.JPEG", 0, [(0, 0, WIDTH, HEIGHT), (3, 4, 5, 6), (7, 7, 7, 7)]),
    Item("ILSVRC2012_val_00000003.JPEG", 2, [(4, 0, WIDTH, 9)]),
    Item("ILSVRC2012_val_00000004.JPEG", 1, [(2, 2, 8, 8), (0, 9, 3, HEIGHT)]),
]


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), "teal").save(buffer, "JPEG")
    return buffer.getvalue()


def write_images(folder: Path, paths: Iterable[str]) -> None:
    data = picture()
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def write_lines(path: Path, lines: Iterable[str], end: str = "\n", last: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((end.join(lines) + last).encode())


def xml(item: Item, wnid: str | None = None) -> str:
    objects = "".join(
        f"<object><name>{wnid or item.wnid}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>"
        for x0, y0, x1, y1 in item.boxes
    )
    return f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>{objects}</annotation>"


def write_xml(folder: Path) -> None:
    for item in VAL:
        write_lines(folder / "Annotations/CLS-LOC/val" / item.name.replace(".JPEG", ".xml"), [xml(item)])


def solution() -> list[str]:
    lines = ["ImageId,PredictionString"]
    for item in reversed(VAL):
        objects = " ".join(f"{item.wnid} {x0} {y0} {x1} {y1}" for x0, y0, x1, y1 in item.boxes)
        lines.append(f"{item.name.removesuffix('.JPEG')},{objects} ")  # Kaggle's lines end with a space
    return lines


def write_tree(folder: Path, class_folders: bool = False) -> None:
    write_images(folder / "train", [f"{item.wnid}/{item.name}" for item in TRAIN])
    write_images(folder / "val", [f"{item.wnid}/{item.name}" if class_folders else item.name for item in VAL])


def ilsvrc(root: Path) -> Options:
    write_tree(root / "Data/CLS-LOC")
    write_xml(root)
    return {"root": root}


def ilsvrc_class_folders(root: Path) -> Options:
    write_tree(root / "Data/CLS-LOC", class_folders=True)
    write_xml(root)
    return {"root": root}


def ilsvrc_class_folders_csv(root: Path) -> Options:
    write_tree(root / "Data/CLS-LOC", class_folders=True)
    write_lines(root / "LOC_val_solution.csv", solution())
    return {"root": root}


def kaggle(root: Path) -> Options:
    write_tree(root / "ILSVRC/Data/CLS-LOC")
    write_lines(root / "LOC_val_solution.csv", solution(), "\r\n", "\r\n\r\n")
    return {"root": root}


def kaggle_inside(root: Path) -> Options:
    return {"root": kaggle(root)["root"] / "ILSVRC"}


def kaggle_with_xml(root: Path) -> Options:
    write_tree(root / "ILSVRC/Data/CLS-LOC")
    write_xml(root / "ILSVRC")
    return {"root": root}


def plain_xml(root: Path) -> Options:
    write_tree(root, class_folders=True)
    write_xml(root)
    return {"root": root}


def plain_csv(root: Path) -> Options:
    write_tree(root, class_folders=True)
    write_lines(root / "LOC_val_solution.csv", solution()[1:])  # without its header
    return {"root": root}


def plain_flat(root: Path) -> Options:
    write_tree(root)
    write_xml(root)
    return {"root": root}


def folders(root: Path, end: str = "\n", last: str = "") -> Options:
    write_tree(root, class_folders=True)
    lines = [f"val/{item.wnid}/{item.name},{','.join(map(str, box))}" for item in VAL for box in item.boxes]
    write_lines(root / "boxes.csv", lines, end, last)
    return {"root": root}


def folders_windows(root: Path) -> Options:
    options = folders(root, "\r\n", "\r\n\r\n")
    table = (root / "boxes.csv").read_bytes()
    (root / "boxes.csv").write_bytes(b"\xef\xbb\xbfPath,x0,y0,x1,y1\r\n" + table)
    return options


def cub(root: Path, end: str = "\n", last: str = "\n") -> Options:
    items = [(item, 0) for item in VAL] + [(item, 1) for item in TRAIN]
    write_images(root / "images", [f"{item.wnid}/{item.name}" for item, _ in items])
    # Ids out of order, as nothing promises any.
    numbered = [(3 * i % (len(items) + 1), *pair) for i, pair in enumerate(items, 1)]
    tables = {
        "images.txt": [f"{i} {item.wnid}/{item.name}" for i, item, _ in numbered],
        "image_class_labels.txt": [f"{i} {item.label + 1}" for i, item, _ in reversed(numbered)],
        "train_test_split.txt": [f"{i} {split}" for i, _, split in numbered],
        "classes.txt": [f"{label} {wnid}" for label, wnid in enumerate(CLASSES, 1)],
        "bounding_boxes.txt": [
            f"{i} {x0:.1f} {y0:.1f} {x1 - x0:.1f} {y1 - y0:.1f}"
            for i, item, _ in numbered
            for x0, y0, x1, y1 in item.boxes or [(0, 0, 5, 5)]
        ],
    }
    for name, lines in tables.items():
        write_lines(root / name, lines, end, last)
    return {"root": root}


def cub_archive(root: Path) -> Options:
    cub(root / "CUB_200_2011", "\r\n", "\r\n\r\n")
    return {"root": root}


def wsolevaluation(
    root: Path, number: Callable[[Item], int] = lambda item: item.label, end: str = "\n", test: str = "test"
) -> Options:
    write_tree(root / "images")
    metadata = root / "metadata"
    train = [(f"train/{item.wnid}/{item.name}", item) for item in TRAIN]
    val = [(f"val/{item.name}", item) for item in VAL]
    for split, listed in (("train", train), (test, val)):
        tables = {
            "image_ids.txt": [path for path, _ in listed],
            "class_labels.txt": [f"{path},{number(item)}" for path, item in listed],
            "image_sizes.txt": [f"{path},{WIDTH},{HEIGHT}" for path, _ in listed],
            "localization.txt": [f"{p},{','.join(map(str, box))}" for p, item in listed for box in item.boxes],
        }
        for name, lines in tables.items():
            write_lines(metadata / split / name, lines, end)
    return {"root": root / "images", "metadata": metadata}


def wsolevaluation_val_only(root: Path) -> Options:
    return wsolevaluation(root, end="\r\n", test="val")


def wsolevaluation_all_sets(root: Path) -> Options:
    options = wsolevaluation(root / "ILSVRC")
    (root / "ILSVRC/metadata").rename(root / "metadata_of_ilsvrc")
    (root / "metadata").mkdir()
    (root / "metadata_of_ilsvrc").rename(root / "metadata/ILSVRC")
    return {**options, "metadata": root / "metadata"}


def wsolevaluation_devkit(root: Path) -> Options:
    options = wsolevaluation(root, number=lambda item: DEVKIT.index(item.wnid))
    write_lines(root / "devkit/data/map_clsloc.txt", [f"{w} {i} some_name" for i, w in enumerate(DEVKIT, 1)])
    return {**options, "devkit": root / "devkit"}


# Layout's name and writer of each variant.
VARIANTS: list[tuple[str, Callable[[Path], Options]]] = [
    ("ilsvrc", ilsvrc),
    ("ilsvrc", ilsvrc_class_folders),
    ("ilsvrc", ilsvrc_class_folders_csv),
    ("ilsvrc", kaggle),
    ("ilsvrc", kaggle_inside),
    ("ilsvrc", kaggle_with_xml),
    ("ilsvrc", plain_xml),
    ("ilsvrc", plain_csv),
    ("ilsvrc", plain_flat),
    ("folders", folders),
    ("folders", folders_windows),
    ("cub", cub),
    ("cub", cub_archive),
    ("wsolevaluation", wsolevaluation),
    ("wsolevaluation", wsolevaluation_val_only),
    ("wsolevaluation", wsolevaluation_all_sets),
    ("wsolevaluation", wsolevaluation_devkit),
]
