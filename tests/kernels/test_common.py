import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from i2c_fast.kernels import _common, center_loss, gather_pixels, label_cam, pooled_head

ROOT = Path(__file__).parents[2]

# Each call is made with values that are wrong only on the device, and prints what was said about it.
CALLS = """
import torch
from i2c_fast import InterImageLoss
from i2c_fast.kernels import center_loss, gather_pixels, label_cam, pooled_head
x, weight, right, wrong = torch.zeros(2, 3, 2, 2), torch.zeros(4, 3), torch.tensor([3, -100]), torch.tensor([3, 4])
pixels = torch.tensor([[0, 3], [1, -7]])
loss = InterImageLoss(4, 3)
for labels in (right, wrong):
    for call in (
        lambda: label_cam(x, weight, None, labels),
        lambda: label_cam(x, weight, None, labels[:, None].expand(2, 2)),
        lambda: pooled_head(x, weight, None, labels),
        lambda: center_loss(weight[:2], labels, weight),
        lambda: loss(x, x[:, 0], labels),
        lambda: gather_pixels(x, pixels.clamp(min=0) if labels is right else pixels),
    ):
        try:
            call()
            print("accepted")
        except ValueError as error:
            print(error)
"""


def test_debug_mode_names_the_label_and_the_index_out_of_range() -> None:
    environment = os.environ | {"I2C_FAST_DEBUG": "1", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", CALLS], env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:6] == ["accepted"] * 6
    assert lines[6:11] == ["label 4 is outside 0…3 (and not -100)"] * 5
    assert lines[11:] == ["index -7 is outside 0…3"]


@pytest.mark.skipif(_common.DEBUG, reason="I2C_FAST_DEBUG=1 is set")
def test_without_debug_mode_values_are_not_looked_at() -> None:
    x, weight, wrong = torch.zeros(2, 3, 2, 2), torch.zeros(4, 3), torch.tensor([3, 4])
    label_cam(x, weight, None, wrong)
    pooled_head(x, weight, None, wrong)
    center_loss(weight[:2], wrong, weight)
    gather_pixels(x, torch.tensor([[0], [-7]]))


def test_offset_distance_adds_one_millionth_to_each_difference() -> None:
    difference = torch.tensor([3.0 - 1e-6, 4.0 - 1e-6], dtype=torch.float64)
    assert _common.measure(difference, "l2").item() == pytest.approx(5.0, abs=1e-12)


def test_coincident_points_are_a_millionth_per_axis_apart() -> None:
    # ‖(1e-6, …)‖ over 4 axes: 2e-6
    assert _common.measure(torch.zeros(4, dtype=torch.float64), "l2").item() == pytest.approx(2e-6)
    assert _common.measure(torch.zeros(4), "squared_l2").item() == 0
