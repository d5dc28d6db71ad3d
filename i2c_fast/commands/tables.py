"""Print scores as tables."""

from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from ..evaluation import accuracies


def print_scores(console: Console, rows: dict[str, dict[str, Any]]) -> None:
    """Print a table of errors, a row for each named summary, and below it the accuracies that summaries have."""
    columns = ("cls top-1", "cls top-5", "loc top-1", "loc top-5", "gt-known", "threshold")
    table = Table("error %", *columns, box=None)
    figures = sum(len(column) + 2 for column in columns)
    for label, summary in zip(_labels(console, list(rows), console.width - figures), rows.values(), strict=True):
        if "images_with_boxes" not in summary:  # PxAP of saved maps, nothing else
            continue
        cells = [f"{summary[top]:.2f}" if top in summary else "unknown" for top in ("cls_top1", "cls_top5")]
        for metric in ("loc_top1", "loc_top5", "gt_known"):
            missing = "unknown" if summary["images_with_boxes"] else "no boxes"
            cells.append(f"{summary[metric]['error']:.2f}" if metric in summary else missing)
        cells.append(str(summary["gt_known"]["threshold"]) if "gt_known" in summary else "")
        table.add_row(label, *cells)
    if table.row_count:
        console.print(table)
    if any("cls_top1" not in summary for summary in rows.values() if "images_with_boxes" in summary):
        console.print("unknown: give class predictions with --predictions", highlight=False)
    for name, summary in rows.items():
        line = accuracies(summary)
        if line:
            console.print(f"{name}: {line}" if len(rows) > 1 else line, highlight=False)


def _labels(console: Console, names: Sequence[str], room: int) -> Sequence[str]:
    """The names, if each has room in a table; else numbers, after a line with the whole name of each."""
    if all(cell_len(name) <= room for name in names):
        return names
    for number, name in enumerate(names, 1):
        console.print(f"{number}: {name}", highlight=False)
    return [str(number) for number in range(1, len(names) + 1)]


def print_centered_box(console: Console, error: float) -> None:
    """Print the baseline to compare errors with."""
    console.print(f"One centered box for all images, looking at none: gt-known {error:.2f}", highlight=False)


def print_differences(console: Console, title: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print a table of error differences with their intervals."""
    if cell_len(title) > console.width // 2:
        console.print(f"{title}:", highlight=False)
        title = "error %"
    table = Table(title, "difference", "95 % interval", box=None)
    for metric, row in rows.items():
        low, high = row["interval_95"]
        table.add_row(metric, f"{row['difference']:+.2f}", f"{low:+.2f} … {high:+.2f}")
    console.print(table)
