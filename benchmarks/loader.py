#!/usr/bin/env python3
"""Images a second of the training loaders, over generated JPEGs of 500 × 375 pixels: DALI, OpenCV and plain Pillow.

`pil` is a plain torch DataLoader whose data set opens, resizes, cuts and normalizes one image after another by Pillow,
as the authors' release loads: fp32 images. The others give uint8, which the model normalizes. All cut the same pixels
of the same files, which is checked before anything is timed.

The loaders take turns in each round; a turn begins when what was made ahead is used up. Beside images a second stand
images a core-second: over the processor time that all processes and threads of the loader took, which other work on the
machine changes little. Only ratios within one run mean something: they hold for the machine in the file.
"""

# ruff: noqa: E402

import sys
from pathlib import Path

# Started as a script, its own folder heads the path, where the standard library's `profile` would be `profile.py`.
ROOT = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(ROOT)] if sys.path[0] == str(ROOT / "benchmarks") else [sys.path[0]]

import io
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import click
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from i2c_fast.data import (
    ClassPairedSampler,
    Flavor,
    ImageIndex,
    Loading,
    TrainBatches,
    dali_problem,
    read_split,
    train_loader,
)
from i2c_fast.environment import environment
from i2c_fast.files import write_json

SIZE = (500, 375)  # of the files, as most of ILSVRC's
CLASSES = 10
BASELINE = "pil"
QUALITY = 95
# Mean differences of 255 from the OpenCV loader's batches that are allowed: of rounding, and of a GPU's JPEG decoder.
TOLERANCE, GPU_TOLERANCE = 0.5, 3.0
MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Contestant(NamedTuple):
    """A loader and a flavor of resizing, ready to be asked for batches of an endless row."""

    provider: str  # dali gpu, dali cpu, opencv, pil
    flavor: Flavor
    batches: Callable[[], Iterator[Tensor]]  # images

    @property
    def name(self) -> str:
        return f"{self.provider}, {self.flavor}"


class PillowImages(Dataset[tuple[Tensor, int]]):
    """The images of the first batches over and over, one by one, as fp32 [3, S, S], normalized."""

    def __init__(self, batches: TrainBatches) -> None:
        self.index, self.short_side, self.size = batches.index, batches.short_side, batches.image_size
        self.plans = [batches.sampler.plan(0, step) for step in range(64)]

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        step, i = divmod(number, len(self.plans[0].indices))
        plan = self.plans[step % len(self.plans)]
        with Pillow.open(self.index.file(int(plan.indices[i]))) as file:
            image = file.convert("RGB")
        scale = self.short_side / min(image.size)
        width, height = (max(self.size, int(side * scale + 0.5)) for side in image.size)
        image = image.resize((width, height), Pillow.Resampling.BILINEAR)
        x, y = (int(plan.crops[i, axis] * (side - self.size + 1)) for axis, side in enumerate((width, height)))
        image = image.crop((x, y, x + self.size, y + self.size))
        if plan.flips[i]:
            image = image.transpose(Pillow.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
        return pixels.sub_(MEAN[:, None, None]).div_(DEVIATION[:, None, None]), int(plan.labels[i])


def picture(seed: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Discs that hide each other, of radii r with density r⁻³, as edges of photographs lie, with texture of 1/f."""
    rng = np.random.default_rng(seed)
    width, height = size
    canvas = np.zeros((height, width, 3), np.uint8)
    for radius in np.sort(4 / np.sqrt(rng.random(1500)))[::-1].clip(4, width / 2):
        x, y = (int(length * place) for length, place in zip(size, rng.random(2), strict=True))
        cv2.circle(canvas, (x, y), int(radius), rng.integers(20, 235, 3).tolist(), -1, cv2.LINE_AA)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)).clip(1 / width)
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / frequency, (height, width))
    textured = canvas + 12 * (noise / noise.std())[..., None] + 3 * rng.standard_normal((height, width, 3))
    return np.clip(textured, 0, 255).astype(np.uint8)


def write_pictures(root: Path, images: int) -> tuple[ImageIndex, float]:
    """A data set of them; its training split, and the mean size of a file in bytes."""
    sizes = []
    for i in range(images):
        buffer = io.BytesIO()
        Pillow.fromarray(picture(i)).save(buffer, "JPEG", quality=QUALITY)
        for split in ("train", "val") if i < CLASSES else ("train",):
            file = root / split / f"class{i % CLASSES}" / f"{i:06d}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(buffer.getvalue())
        sizes.append(len(buffer.getvalue()))
    return read_split(root, "train", "folders"), float(np.mean(sizes))


def contestants(index: ImageIndex, size: int, short_side: int, batch: int, threads: int) -> list[Contestant]:
    """What there is here to be measured."""
    devices = {"dali gpu": "cuda", "dali cpu": "cpu"} if torch.cuda.is_available() else {"dali cpu": "cpu"}
    providers = {name: Loading("dali", device=torch.device(device)) for name, device in devices.items()}
    providers = {**({} if dali_problem() else providers), "opencv": Loading()}
    sampler = ClassPairedSampler(index.labels, batch // 2, 2, seed=0)
    found = []
    for provider, loading in providers.items():
        for flavor in ("linear", "antialias"):
            batches = TrainBatches(index, sampler, size, short_side, flavor)
            found.append(Contestant(provider, flavor, partial(_images, batches, threads, loading)))
    pillow = DataLoader(
        PillowImages(TrainBatches(index, sampler, size, short_side)),
        batch,
        num_workers=threads,
        pin_memory=torch.cuda.is_available(),
    )
    return [*found, Contestant(BASELINE, "antialias", lambda: (images for images, _ in pillow))]


def _images(batches: TrainBatches, threads: int, loading: Loading) -> Iterator[Tensor]:
    positions = ((0, step) for step in range(2**31))
    return (batch.images for batch in train_loader(batches, positions, threads, loading))


def check(found: list[Contestant]) -> dict[str, float]:
    """Mean difference of a pixel of each one's first batch from the OpenCV loader's of its flavor."""
    first = {one.name: next(one.batches()).cpu() for one in found}
    differences = {}
    for one in found:
        images = first[one.name]
        if images.is_floating_point():
            images = images.mul(DEVIATION[:, None, None]).add(MEAN[:, None, None]).mul(255).round()
        expected = first[f"opencv, {one.flavor}"].float()
        differences[one.name] = float((images.float() - expected).abs().mean())
        if not differences[one.name] <= (GPU_TOLERANCE if one.provider == "dali gpu" else TOLERANCE):
            raise click.ClickException(f"{one.name} differs from opencv's batch by {differences[one.name]:.2f} of 255")
    return differences


def processor_seconds() -> float:
    """Of this process and of the processes it started that still run (those on Linux)."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        stat = Path(f"/proc/{child.pid}/stat")
        if stat.exists():
            fields = stat.read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def measure(contestant: Contestant, seconds: float, ahead: int) -> tuple[float, float]:
    """Images a second and images a core-second, after `ahead` batches."""
    batches = contestant.batches()
    for _ in range(ahead):
        next(batches)
    images, start, busy = 0, time.perf_counter(), processor_seconds()
    while time.perf_counter() - start < seconds:
        images += len(next(batches))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return images / (time.perf_counter() - start), images / (processor_seconds() - busy)


def rows_of(found: list[Contestant], rates: dict[str, list[tuple[float, float]]]) -> list[dict[str, Any]]:
    """Medians over rounds, with ratios to Pillow's of the same round."""
    rows = []
    for one in found:
        row: dict[str, Any] = {"provider": one.provider, "flavor": one.flavor}
        for column, unit in enumerate(("images_per_second", "images_per_core_second")):
            mine, base = (np.array(rates[name])[:, column] for name in (one.name, f"{BASELINE}, antialias"))
            row[unit] = {"median": float(np.median(mine)), "least": float(mine.min()), "most": float(mine.max())}
            row[f"{unit}_over_pil"] = float(np.median(mine / base))
        rows.append(row)
    return rows


def plot(report: dict[str, Any], path: Path) -> str:
    """Bars of images a core-second; returns what was done."""
    try:
        import matplotlib  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return "no picture: matplotlib is not installed (pip install matplotlib, or this clone with -e .[bench])"
    matplotlib.use("Agg")
    from matplotlib import pyplot  # type: ignore[import-not-found,unused-ignore]

    names = [f"{row['provider']}, {row['flavor']}" for row in report["rows"]]
    figure, axis = pyplot.subplots(figsize=(8, 0.4 * len(names) + 1.4), layout="constrained")
    axis.barh(names, [row["images_per_core_second"]["median"] for row in report["rows"]], color="#0072b2")
    axis.invert_yaxis()
    axis.set_xlabel(f"images a core-second, {report['environment']['cpu'].partition(',')[0]}")
    figure.savefig(path, dpi=150)
    return f"drawn to {path}"


@click.command()
@click.option("--threads", default=2, show_default=True, help="Loader processes, or threads of DALI.")
@click.option("--images", default=400, show_default=True, help="Files to generate.")
@click.option("--seconds", default=4.0, show_default=True, help="Of each turn.")
@click.option("--rounds", default=5, show_default=True, help="Rounds in which the loaders take turns.")
@click.option("--size", default=224, show_default=True, help="Side of the crops, pixels.")
@click.option("--short-side", default=256, show_default=True, help="Shorter side before the crop, pixels.")
@click.option("--batch", default=80, show_default=True, help="Images a batch.")
@click.option("--output", type=click.Path(path_type=Path), help="[default: benchmarks/results/loader_<gpu>.json]")
@click.option("--picture", "drawing", type=click.Path(path_type=Path), help="Also draw the result here.")
def main(
    threads: int, images: int, seconds: float, rounds: int, size: int, short_side: int, batch: int,
    output: Path | None, drawing: Path | None,
) -> None:  # fmt: skip
    """Measure the training loaders."""
    torch.set_num_threads(1)
    console = Console()
    gpu = re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower() if torch.cuda.is_available() else "none"
    output = output or Path(__file__).parent / "results" / f"loader_{gpu}.json"
    with tempfile.TemporaryDirectory() as folder:
        index, file_bytes = write_pictures(Path(folder), images)
        found = contestants(index, size, short_side, batch, threads)
        differences = check(found)
        if problem := dali_problem():
            console.print(f"{problem}: not measured", highlight=False)
        rates: dict[str, list[tuple[float, float]]] = {one.name: [] for one in found}
        for number in range(rounds):
            for one in found[:: 1 if number % 2 else -1]:
                rates[one.name].append(measure(one, seconds, 2 * threads + 2))
    rows = rows_of(found, rates)
    settings = {"threads": threads, "images": images, "seconds": seconds, "rounds": rounds, "size": size}
    report = {
        "benchmark": "loader",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "settings": {**settings, "short_side": short_side, "batch": batch},
        "files": {"size": SIZE, "kind": f"generated JPEG of quality {QUALITY}", "mean_bytes": file_bytes},
        "mean_difference_of_255_from_opencv": differences,
        "rows": rows,
    }
    write_json(output, report)
    table = Table("loader", "resize", "images/s", "over pil", "images/core-second", "over pil", box=None)
    for row in rows:
        rates_of = [(row[unit]["median"], row[f"{unit}_over_pil"]) for unit in list(row)[2::2]]
        table.add_row(
            row["provider"],
            row["flavor"],
            *(f"{x:.{digits}f}" for pair in rates_of for x, digits in zip(pair, (0, 2), strict=True)),
        )
    console.print(table)
    if drawing is not None:
        console.print(plot(report, drawing), highlight=False)


if __name__ == "__main__":
    main()
