"""Results of the training step's benchmark for the eye: tables, and a picture where matplotlib is installed."""

from pathlib import Path
from typing import Any

from rich.table import Table

from .phases import PHASES

Row = dict[str, Any]
NOT_MEASURED = "not measured"


def _table(title: str, headings: tuple[str, ...]) -> Table:
    out = Table(title=title, title_justify="left")
    for heading in headings:
        out.add_column(heading, justify="left" if heading == "provider" else "right")
    return out


def table(title: str, rows: list[Row]) -> Table:
    """One line a provider; without a GPU times are ratios."""
    headings = (
        "provider", "gradient error", "ms (middle half)", "images/s", "MFU", "host ms", "peak GB", "I²C µs",
        "I²C of step", "waits", "of the first"
    )  # fmt: skip
    out = _table(title, headings)
    for row in rows:
        if row["status"] != "ok":
            out.add_row(row["provider"], row["status"].partition(":")[0])
            continue
        i2c, cells = row["i2c"], [row["provider"], f"{row['error']:.1e}"]
        fraction = f"{i2c['fraction']['median']:.2%}" if i2c else ""
        ratio = f"{row['ratio']['median']:.2f}" if row["ratio"] else ""
        if row["step_ms"] is None:
            out.add_row(*cells, NOT_MEASURED, *[""] * 5, fraction, "", ratio)
            continue
        times, peak = row["step_ms"], row["peak_memory"]
        out.add_row(
            *cells, f"{times['median']:.2f} ({times['low']:.2f}–{times['high']:.2f})", f"{row['images_per_s']:.0f}",
            f"{row['mfu']:.1%}", f"{row['host_ms']:.1f}", "" if peak is None else f"{peak / 1e9:.2f}",
            f"{i2c['us']['median']:.0f}" if i2c else "", fraction, str(row["synchronizations"]), ratio,
        )  # fmt: skip
    return out


def shares_table(rows: list[Row]) -> Table:
    """Where a step's time goes."""
    out = _table("fractions of the step, in a pass with marks", ("provider", *PHASES))
    for row in rows:
        if row.get("shares"):
            out.add_row(row["provider"], *(f"{row['shares'][phase]:.1%}" for phase in PHASES))
    return out


def files_table(title: str, rows: list[Row]) -> Table:
    """Training from files."""
    out = _table(title, ("provider", "loader", "host waits", "lost to loading", "images/s"))
    for row in rows:
        if row["status"] != "ok":
            out.add_row(row["provider"], row["status"].partition(":")[0])
        else:
            rate = NOT_MEASURED if row["images_per_s"] is None else f"{row['images_per_s']:.0f}"
            out.add_row(row["provider"], row["loader"], f"{row['waiting']:.1%}", f"{row['lost']:.1%}", rate)
    return out


def plot(report: Row, path: Path) -> str:
    """Draw images/s over the batch, a line a provider, a panel a backbone; returns what was done."""
    try:
        import matplotlib  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return "no picture: matplotlib is not installed (pip install matplotlib, or this clone with -e .[bench])"
    rows = [row for row in report["rows"] if row.get("step_ms")]
    if not rows:
        return "no picture: nothing was measured"
    matplotlib.use("Agg")
    from matplotlib import pyplot  # type: ignore[import-not-found,unused-ignore]

    backbones = list(dict.fromkeys(row["backbone"] for row in rows))
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    figure, panels = pyplot.subplots(
        1, len(backbones), figsize=(4.6 * len(backbones) + 1, 4.4), layout="constrained", squeeze=False
    )
    for panel, backbone in zip(panels[0], backbones, strict=True):
        for number, provider in enumerate(providers):
            mine = [row for row in rows if (row["backbone"], row["provider"]) == (backbone, provider)]
            points = sorted((row["images"], row["images_per_s"]) for row in mine)
            if points:
                # Ours in full lines, others dashed; a marker each, for readers who see no colors.
                style = "-" if provider.startswith("ours") else "--"
                panel.plot(*zip(*points, strict=True), style, marker="osD^v<>*Pph"[number % 11], label=provider)
        panel.set_title(backbone)
        panel.set_xlabel("images a batch")
        panel.set_ylim(bottom=0)
        panel.grid(color="0.9")
    panels[0][0].set_ylabel("images/s, training")
    figure.suptitle(report["environment"]["gpu"], fontsize=11)
    handles = {
        label: handle for panel in panels[0] for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return f"drawn to {path}"
