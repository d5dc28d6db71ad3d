"""Print scores as tables."""

from typing import Any

from rich.console import Console
from rich.table import Column, Table

from ..evaluation import accuracies


def print_scores(console: Console, rows: dict[str, dict[str, Any]]) -> None:
    """Print a table of errors, a row for each named summary, and below it the accuracies that summaries have."""
    columns = ("cls top-1", "cls top-5", "loc top-1", "loc top-5", "gt-known", "threshold")
    table = Table(Column("error %", overflow="fold"), *columns, box=None)
    for name, summary in rows.items():
        if "images_with_boxes" not in summary:  # PxAP of saved maps, nothing else
            continue
        cells = [f"{summary[top]:.2f}" if top in summary else "unknown" for top in ("cls_top1", "cls_top5")]
        for metric in ("loc_top1", "loc_top5", "gt_known"):
            missing = "unknown" if summary["images_with_boxes"] else "no boxes"
            cells.append(f"{summary[metric]['error']:.2f}" if metric in summary else missing)
        cells.append(str(summary["gt_known"]["threshold"]) if "gt_known" in summary else "")
        table.add_row(name, *cells)
    if table.row_count:
        console.print(table)
    if any("cls_top1" not in summary for summary in rows.values() if "images_with_boxes" in summary):
        console.print("unknown: give class predictions with --predictions", highlight=False)
    for name, summary in rows.items():
        line = accuracies(summary)
        if line:
            console.print(f"{name}: {line}" if len(rows) > 1 else line, highlight=False)


def print_centered_box(console: Console, error: float) -> None:
    """Print the baseline to compare errors with."""
    console.print(f"One centered box for all images, looking at none: gt-known {error:.2f}", highlight=False)


def print_differences(console: Console, title: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print a table of error differences with their intervals."""
    table = Table(Column(title, overflow="fold"), "difference", "95 % interval", box=None)
    for metric, row in rows.items():
        low, high = row["interval_95"]
        table.add_row(metric, f"{row['difference']:+.2f}", f"{low:+.2f} … {high:+.2f}")
    console.print(table)
