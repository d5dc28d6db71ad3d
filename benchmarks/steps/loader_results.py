"""What the loader's benchmark has measured, as the training step's promise needs it."""

from typing import Any


def loader_rate(report: dict[str, Any] | None) -> float | None:
    """Images/s of the fastest of our loaders in a report of ``benchmarks/loader.py``; None without one."""
    ours = [row for row in report["rows"] if row["provider"] != "pil"] if report else []
    return max((row["images_per_second"]["median"] for row in ours), default=None)
