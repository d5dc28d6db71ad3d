"""Run folders as training leaves them, made in an instant: a checkpoint of drawn weights, a log, an environment."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from i2c_fast.config import build_config
from i2c_fast.models import build_localizer
from i2c_fast.training import open_split
from i2c_fast.training.checkpoint import checkpoint_path, save_checkpoint

from ..checkpoints import whole_state
from ..conftest import TINY

ENVIRONMENT = {"torch": "2.13.0", "cpu": "A Processor", "gpu": "none that torch can use", "commit": "abc1234"}
VOID = frozenset({"meta", "img", "link", "br"})


def write_run(folder: Path, root: Path, *overrides: str, seed: int = 0, step: int = 8) -> Path:
    """A finished run on the data set under `root`."""
    config = build_config({}, "tests", (f"data.root={root}", *TINY, *overrides))
    classes = open_split(config.data, "val").classes
    torch.manual_seed(seed)
    model = build_localizer(config.model.backbone, len(classes))
    save_checkpoint(checkpoint_path(folder, step), whole_state(config, list(classes), model, step=step))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log_entries(step)))
    return folder


def log_entries(steps: int) -> list[dict[str, Any]]:
    """A log of two stages and one evaluation."""
    entries: list[dict[str, Any]] = []
    for step in range(steps):
        second = step >= steps // 2
        entries.append(
            {
                "kind": "train", "step": step, "stage": "stage1" if second else "stage0",
                "method": "i2c" if second else "cam", "lr": 0.01,
                "loss": 3.0 - step / steps, "ce": 2.0 - step / steps, "accuracy": step / steps,
                **({"sc": 5.0, "gc": 1.0, "seed_pixels": 3.5} if second else {}), "skipped": 0.0,
            }
        )  # fmt: skip
    scores = {"protocol": "paper", "cls_top1": 50.0, "gt_known": {"error": 40.0}, "loc_top1": {"error": 70.0}}
    return [*entries, {"kind": "evaluation", "step": steps - 1, "scores": scores}]


def write_folders(root: Path, classes: tuple[str, ...], images: tuple[str, ...]) -> Path:
    """A data set in the layout `folders` without boxes: the named images in each class of both splits."""
    for number, name in enumerate(classes):
        for split in ("train", "val"):
            (root / split / name).mkdir(parents=True)
            for image in images:
                pixels = np.random.default_rng(number).integers(0, 256, (32, 40, 3), np.uint8)
                _, data = cv2.imencode(".png", pixels)
                (root / split / name / image).write_bytes(data.tobytes())
    return root


class Page(HTMLParser):
    """What a browser would make of a page: elements, with their attributes, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def ids(self) -> list[str]:
        return [str(attributes["id"]) for _, attributes in self.elements if "id" in attributes]
