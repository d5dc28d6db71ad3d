"""Pictures of localizations: heat map over the image, predicted box green, ground-truth boxes red (Fig. 3)."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..data.images import Image
from ..errors import UserError
from ..evaluation.boxes import Gray
from ..files import write_bytes

GREEN, RED = (0, 220, 0), (230, 0, 0)
MAX_SIDE = 4096  # beyond, a small image is not enlarged: a long strip would not fit in memory
INK, PAPER = (20, 20, 20), (255, 255, 255)


def draw_overlay(
    image: Image,
    gray: Gray | None = None,
    box: Sequence[int] | None = None,
    gt_boxes: NDArray[np.float32] | None = None,
    side: int = 0,
) -> Image:
    """Lay a class map and boxes over an image; what is None is left out.

    Args:
        image: uint8 RGB [H, W, 3]. gray: uint8 [H, W] normalized map in the same frame.
        box: predicted x0, y0, x1, y1, inclusive, drawn green; an empty one (x1 < x0) is left out too.
        gt_boxes: [B, 4] ground-truth boxes, drawn red.
        side: enlarge so that the shorter side has at least this many pixels, for lines that can be seen.

    Returns:
        uint8 RGB [h, w, 3].
    """
    if gray is not None:
        heat = cv2.cvtColor(cv2.applyColorMap(gray, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
        image = cv2.addWeighted(image, 0.55, heat, 0.45, 0).astype(np.uint8)
    scale = max(1, min(-(-side // min(image.shape[:2])), MAX_SIDE // max(image.shape[:2])))
    picture = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    width = max(1, min(picture.shape[:2]) // 90)
    for gt_box in () if gt_boxes is None else gt_boxes:
        _rectangle(picture, gt_box, scale, RED, width)
    if box is not None and box[2] >= box[0]:
        _rectangle(picture, box, scale, GREEN, width)
    return picture


def _rectangle(
    picture: Image, box: Sequence[float] | NDArray[np.float32], scale: int, color: tuple[int, int, int], width: int
) -> None:
    # An inclusive bound ends at its pixel's far edge.
    start = int(box[0] * scale), int(box[1] * scale)
    end = int((box[2] + 1) * scale) - 1, int((box[3] + 1) * scale) - 1
    cv2.rectangle(picture, start, end, color, width)


def contact_sheet(rows: Sequence[Sequence[Image]], names: Sequence[str], title: str) -> Image:
    """Pictures of equal size in labelled rows, under a title.

    Args:
        rows: each a sequence of uint8 RGB pictures. names: a label for each row. title: one or several lines.
    """
    gap, line = 6, 22
    height, width = rows[0][0].shape[:2]
    lines = title.splitlines()
    text_width = max(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)[0][0] for text in (*lines, *names))
    sheet_width = max(gap + max(map(len, rows)) * (width + gap), text_width + 2 * gap)
    sheet_height = line * len(lines) + gap + len(rows) * (line + height + gap)
    sheet = np.full((sheet_height, sheet_width, 3), PAPER, np.uint8)
    for i, text in enumerate(lines):
        _write(sheet, text, gap, line * i + 16)
    top = line * len(lines) + gap
    for name, row in zip(names, rows, strict=True):
        _write(sheet, name, gap, top + 15)
        for column, picture in enumerate(row):
            left = gap + column * (width + gap)
            sheet[top + line : top + line + height, left : left + width] = picture
        top += line + height + gap
    return sheet


def _write(sheet: Image, text: str, x: int, y: int) -> None:
    cv2.putText(sheet, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)


def save_picture(path: Path, picture: Image) -> None:
    """Write an RGB picture; the suffix chooses the format.

    Raises:
        UserError: the file cannot be written, or the suffix names no picture format.
    """
    if not cv2.haveImageWriter(f"picture{path.suffix}"):
        raise UserError(f"cannot write {path}: {path.suffix or 'no suffix'} names no picture format; use .png")
    encoded, data = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not encoded:
        size = f"{picture.shape[1]} x {picture.shape[0]}"
        raise UserError(f"cannot write {path}: a picture of {size} pixels is too large for its format; use .png")
    write_bytes(path, data.tobytes())
