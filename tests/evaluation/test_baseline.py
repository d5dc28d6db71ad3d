"""The score of looking at no image."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from i2c_fast.data import read_split
from i2c_fast.evaluation import PaperProtocol, centered_box_error


def test_centered_box_is_measured_at_its_best_fraction(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        for name in "012":
            cv2.imwrite(str(tmp_path / split / "a" / f"{name}.png"), np.zeros((40, 60, 3), np.uint8))
    # Two images hold a centered box of half their sides; the third one's lies in a corner.
    (tmp_path / "boxes.csv").write_text("val/a/0.png,15,10,44,29\nval/a/1.png,15,10,44,29\nval/a/2.png,0,0,5,5\n")
    assert centered_box_error(read_split(tmp_path, "val"), PaperProtocol()) == pytest.approx(100 / 3)
