"""``i2c-fast validate-data``: validate both splits of a data set image by image."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from ..config import DataConfig
from ..data import ImageIndex, MaskPaths, recognize
from ..data.validate import Finding, ValidationReport, validate, write_blacklist
from ..errors import UserError
from ..evaluation import read_mask
from ..evaluation.pixels import OBJECT
from ..files import write_json
from ..training import open_split
from ..training.logs import Meter

# Findings of one kind shown on the screen; the JSON file has them all.
SHOWN = 20


def validate_data_set(data: DataConfig, blacklist: Path | None, output: Path | None, console: Console) -> int:
    """Validate the training and validation images of a data set and print what was found.

    Args:
        data: as a run is configured; its blacklist is honored, so that a second look finds nothing broken.
        blacklist: where to write the broken images. output: where to write all findings as JSON.

    Returns:
        How many images are broken or have a wrong mask.

    Raises:
        UserError: the data set cannot be indexed, or a file not written.
    """
    layout = recognize(data.root, data.metadata) if data.layout == "auto" else data.layout
    console.print(f"{layout} layout under {data.root}", highlight=False)
    reports: dict[str, ValidationReport] = {}
    for split in ("train", "val"):
        index = open_split(data, split)
        with Meter(console, f"decoding {split}", len(index)) as meter:
            reports[split] = validate(
                index,
                expect_boxes=split == "val" and index.masks is None,
                workers=data.workers,
                progress=lambda images, meter=meter: meter.advance(images, images),  # type: ignore[misc]
            )
        reports[split].masks = _wrong_masks(index)
        _print(split, reports[split], console)
    if blacklist is not None:
        write_blacklist(blacklist, *reports.values())
        console.print(f"train without them: data.blacklist={blacklist}", highlight=False)
    if output is not None:
        write_json(output, {split: asdict(report) for split, report in reports.items()})
    return sum(len(report.broken) + len(report.masks) for report in reports.values())


def _wrong_masks(index: ImageIndex) -> list[Finding]:
    """Images whose masks do not decode, or show no object at 224 x 224."""

    def look(paths: MaskPaths) -> str:
        try:
            return "" if (read_mask(index.mask_root or index.root, paths) == OBJECT).any() else "shows no object"
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        reasons = list(pool.map(look, index.masks or ()))
    return [Finding(path, reason) for path, reason in zip(index.paths, reasons, strict=False) if reason]


def _print(split: str, report: ValidationReport, console: Console) -> None:
    console.print(
        f"{split}: {report.images} images, {len(report.broken)} broken, {len(report.odd)} odd, "
        f"{len(report.outside)} with a box outside, {len(report.boxless)} without a box"
        + (f", {len(report.masks)} with a wrong mask" if report.masks else ""),
        highlight=False,
    )
    kinds: dict[str, list[Finding]] = {
        "broken": report.broken,
        "odd": report.odd,
        "box": report.outside,
        "mask": report.masks,
        "no box": [Finding(path, "has no box; it counts for classification only") for path in report.boxless],
    }
    for kind, findings in kinds.items():
        for finding in findings[:SHOWN]:
            console.print(f"  {kind}: {finding.path}: {finding.reason}", highlight=False, markup=False)
        if len(findings) > SHOWN:
            console.print(f"  … and {len(findings) - SHOWN} more (--output lists them all)", highlight=False)
