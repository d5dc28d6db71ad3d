"""Generated pictures for weakly supervised localization, written in ILSVRC's own layout.

These are drawings, not photographs. Every object is a large body, which only hints at its class, with a small mark,
which determines it. So a classifier looks at the mark while the box covers the whole object: the gap that localization
methods try to close. The set shows within minutes on a CPU that the pipeline runs end to end. It proves nothing about
the paper's figures, which are about photographs.
"""

import colorsys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from i2c_fast.errors import UserError

Array = NDArray[Any]

MIN_SIZE = 32  # below, a mark would be a pixel or two
_MARK_HUES = (0.0, 0.14, 0.36, 0.58, 0.84)  # red, yellow, green, blue, magenta
_MARK_SHAPES = ("disk", "triangle", "cross", "square")
MAX_CLASSES = len(_MARK_HUES) * len(_MARK_SHAPES)  # the counts are coprime: every class has a (hue, shape) of its own
_FAMILY_TEXTURES = ("noise", "stripes", "spots", "ramp", "noise")
_FAMILY_FRACTION = 0.8  # of the bodies look like their class's family; at 1 they would tell too much, at 0 nothing
_SUPERSAMPLE = 4  # a pixel's coverage is counted on 4 x 4 samples
_TURN = np.linspace(0, 2 * np.pi, 64, endpoint=False)  # outlines are given by their radius at these angles
_TRAIN, _VAL = 0, 1


@dataclass(frozen=True)
class Drawing:
    """One picture, `image` uint8 [S, S, 3] RGB, and the pixels that are at least half covered: by the whole object,
    `mask` bool [S, S], and by its class-defining part, `mark` bool [S, S] (a subset of `mask`)."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    mark: NDArray[np.bool_]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Tight box of `mask`: xmin, ymin, xmax, ymax in pixels counted from 0, bounds inclusive."""
        ys, xs = np.nonzero(self.mask)
        return int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())


def write_generated(
    root: Path, *, seed: int, classes: int = 10, train_images: int = 40, val_images: int = 20, size: int = 64
) -> None:
    """Write a generated set to the new or empty folder `root`, in the layout of ILSVRC 2012.

    `train_images` and `val_images` count per class; every image is `size` x `size`. Training images have no boxes, each
    validation image has one (`Drawing.box`). Every image comes from a random stream of its own, never shared between
    training and validation: the same arguments give byte-identical files, another `seed` gives other images of the same
    classes. Raises UserError if `root` is not empty or cannot be written, or if an argument is out of range.
    """
    bounds = {"seed": (seed, 0, None), "classes": (classes, 1, MAX_CLASSES), "size": (size, MIN_SIZE, None)}
    bounds |= {"train_images": (train_images, 1, None), "val_images": (val_images, 1, None)}
    for name, (value, least, most) in bounds.items():
        if value < least or (most is not None and value > most):
            wanted = f"at least {least}" if most is None else f"from {least} to {most}"
            raise UserError(f"generated set: {name} is {value}, give a number {wanted}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise UserError(f"{root} is not empty: name a new or empty folder for the generated set")
        _write_train(root, seed, classes, train_images, size)
        _write_val(root, seed, classes, val_images, size)
    except OSError as error:
        raise UserError(f"{root}: cannot write the generated set ({error.strerror}), name another folder") from error


def class_id(class_index: int) -> str:
    """WordNet-style id of a generated class. WordNet's own noun ids end at n15300051, so it is never a real one."""
    return f"n9{class_index + 1:07d}"


def _write_train(root: Path, seed: int, classes: int, images: int, size: int) -> None:
    for class_index in range(classes):
        wnid = class_id(class_index)
        folder = root / "Data/CLS-LOC/train" / wnid
        folder.mkdir(parents=True)
        for number in range(images):
            drawing = draw_object(_stream(seed, _TRAIN, class_index, number), class_index, size)
            (folder / f"{wnid}_{number + 1}.JPEG").write_bytes(_jpeg(drawing))


def _write_val(root: Path, seed: int, classes: int, images: int, size: int) -> None:
    pictures, annotations = root / "Data/CLS-LOC/val", root / "Annotations/CLS-LOC/val"
    pictures.mkdir(parents=True)
    annotations.mkdir(parents=True)
    for index in range(images * classes):
        number, class_index = divmod(index, classes)
        drawing = draw_object(_stream(seed, _VAL, class_index, number), class_index, size)
        name = f"ILSVRC2012_val_{index + 1:08d}"
        (pictures / f"{name}.JPEG").write_bytes(_jpeg(drawing))
        (annotations / f"{name}.xml").write_text(_annotation(name, class_id(class_index), drawing))


def _stream(seed: int, split: int, class_index: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, split, class_index, number])


def _jpeg(drawing: Drawing) -> bytes:
    # Full color resolution: at half of it, marks of a few pixels would fade.
    options = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", drawing.image[..., ::-1], options)[1].tobytes()


def _annotation(name: str, wnid: str, drawing: Drawing) -> str:
    height, width = drawing.mask.shape
    xmin, ymin, xmax, ymax = drawing.box
    return (
        f"<annotation><folder>val</folder><filename>{name}</filename><source><database>generated</database></source>"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size><segmented>0</segmented>"
        f"<object><name>{wnid}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
        f"<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"
        "</annotation>\n"
    )


def draw_object(rng: np.random.Generator, class_index: int, size: int) -> Drawing:
    """One object of class `class_index` (0 to MAX_CLASSES - 1) before clutter, in `size` x `size` pixels.

    The body spans 45-80 % of the image side; its hue and texture are in most objects those of a family of two or more
    classes, in the others any family's. The mark, about a fifth of the body across, sits on the body or across its
    edge; its hue and shape together are the class's own. Nothing else depends
    on the class.
    """
    if not 0 <= class_index < MAX_CLASSES or size < MIN_SIZE:
        raise ValueError(f"class_index {class_index}, size {size}: want 0 to {MAX_CLASSES - 1} and at least {MIN_SIZE}")
    image = _texture(rng, rng.choice(["ramp", "noise", "noise", "stripes"]), size, rng.random())
    for _ in range(rng.integers(2, 7)):
        clutter = _posed(rng, _outline(rng), rng.uniform(0.08, 0.3) * size) + rng.uniform(0, size, 2)
        image = _blend(image, _skin(rng, _any_family(rng), size), _coverage(size, clutter))

    extent = rng.uniform(0.45, 0.8) * size
    body = _posed(rng, _outline(rng), extent)
    anchor = body[rng.integers(len(body))] * rng.uniform(0.3, 1.0)
    mark = _mark_outline(class_index) @ _rotation(rng.normal(0, 0.2)) * (rng.uniform(0.18, 0.25) * extent / 2) + anchor
    points = np.concatenate([body, mark])
    offset = rng.uniform(1 - points.min(axis=0), size - 1 - points.max(axis=0))
    body, mark = body + offset, mark + offset

    family = class_index // 2 % len(_FAMILY_TEXTURES) if rng.random() < _FAMILY_FRACTION else _any_family(rng)
    image = _blend(image, _skin(rng, family, size), _coverage(size, body))
    hue = _MARK_HUES[class_index % len(_MARK_HUES)] + rng.normal(0, 0.01)
    mark_cover = _coverage(size, mark)
    image = _blend(image, _rgb(hue, rng.uniform(0.85, 1.0), rng.uniform(0.85, 1.0)), mark_cover)

    light = rng.uniform(0.75, 1.15) * rng.uniform(0.92, 1.08, 3) * (0.8 + 0.4 * _field(rng, "ramp", size))
    image = image * light + rng.normal(0, 0.02, image.shape)
    return Drawing(
        image=(image.clip(0, 1) * 255).round().astype(np.uint8),
        mask=_coverage(size, body, mark)[..., 0] >= 0.5,
        mark=mark_cover[..., 0] >= 0.5,
    )


def _outline(rng: np.random.Generator) -> Array:
    """[64, 2] points around the origin: an ellipse, a rounded box, a polygon or a blob."""
    kind = rng.integers(4)
    if kind == 0:
        radius = np.ones_like(_TURN)
    elif kind == 1:
        power = rng.uniform(3, 8)
        radius = (abs(np.cos(_TURN)) ** power + abs(np.sin(_TURN)) ** power) ** (-1 / power)
    elif kind == 2:
        side_angle = 2 * np.pi / rng.integers(3, 7)
        radius = 1 / np.cos(_TURN % side_angle - side_angle / 2)
    else:
        waves, swings, phases = np.arange(2, 6), rng.uniform(0, 0.18, 4), rng.uniform(0, 2 * np.pi, 4)
        radius = 1 + np.cos(_TURN[:, None] * waves + phases) @ swings
    return _around(radius)


def _mark_outline(class_index: int) -> Array:
    """[n, 2] points of the class's mark; corners reach beyond the disk's radius 1 so that areas are alike."""
    shape = _MARK_SHAPES[class_index % len(_MARK_SHAPES)]
    if shape == "disk":
        return _around(np.ones_like(_TURN))
    if shape == "triangle":
        return np.array([[0, -1.3], [1.2, 0.9], [-1.2, 0.9]])
    if shape == "square":
        return np.array([[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]])
    arm = np.array([[0.4, -1.2], [0.4, -0.4], [1.2, -0.4]])
    return np.concatenate([arm @ _rotation(turns * np.pi / 2) for turns in range(4)])


def _around(radius: Array) -> Array:
    return np.stack([radius * np.cos(_TURN), radius * np.sin(_TURN)], axis=1)


def _rotation(angle: float) -> Array:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _posed(rng: np.random.Generator, outline: Array, extent: float) -> Array:
    """The outline with a random aspect and rotation, its longer side `extent` pixels."""
    turned = outline * [1, rng.uniform(0.55, 1.0)] @ _rotation(rng.uniform(0, 2 * np.pi))
    return turned * (extent / np.ptp(turned, axis=0).max())


def _coverage(size: int, *polygons: Array) -> Array:
    """[S, S, 1] fraction of each pixel that the union of the polygons covers."""
    canvas = np.zeros((size * _SUPERSAMPLE, size * _SUPERSAMPLE), np.float32)
    for polygon in polygons:  # one call each: a single call would leave their overlap out (even-odd rule)
        cv2.fillPoly(canvas, [np.round(polygon * _SUPERSAMPLE - 0.5).astype(np.int32)], 1.0)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)[..., None]


def _any_family(rng: np.random.Generator) -> int:
    return int(rng.integers(len(_FAMILY_TEXTURES)))


def _skin(rng: np.random.Generator, family: int, size: int) -> Array:
    hue = family / len(_FAMILY_TEXTURES) + 0.07
    return (0.7 + 0.6 * _field(rng, "ramp", size)) * _texture(rng, _FAMILY_TEXTURES[family], size, hue)


def _texture(rng: np.random.Generator, kind: str, size: int, hue: float) -> Array:
    """[S, S, 3] mix of two dull colors of about the same hue; only marks are vivid."""
    one, other = (_rgb(hue + rng.normal(0, 0.04), rng.uniform(0.15, 0.6), rng.uniform(0.25, 0.9)) for _ in range(2))
    return one + _field(rng, kind, size) * (other - one)


def _field(rng: np.random.Generator, kind: str, size: int) -> Array:
    """[S, S, 1] values in [0, 1]."""
    if kind == "noise":
        grids = [rng.random((cells, cells), np.float32) / cells for cells in (3, 6, 12, 24)]
        total = np.sum([cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC) for grid in grids], axis=0)
        return ((total - total.min()) / np.ptp(total))[..., None]
    angle = rng.uniform(0, 2 * np.pi)
    ys, xs = np.mgrid[:size, :size, :1][:2] / size - 0.5
    along, across = xs * np.cos(angle) + ys * np.sin(angle), ys * np.cos(angle) - xs * np.sin(angle)
    if kind == "ramp":
        return 0.5 + along / np.sqrt(2)
    wave = 2 * np.pi * rng.uniform(5, 10)
    return 0.5 + 0.5 * np.sin(wave * along) * (np.sin(wave * across) if kind == "spots" else 1)


def _rgb(hue: float, saturation: float, value: float) -> Array:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _blend(image: Array, paint: Array, coverage: Array) -> Array:
    return image + coverage * (paint - image)
