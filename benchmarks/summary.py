"""Results of the kernels' benchmark for the eye: a table, and a picture where matplotlib is installed."""

from pathlib import Path
from typing import Any

from rich.table import Table

NOT_MEASURED = "not measured"
HEADINGS = (
    "provider", "error", "phase", "µs (middle half)", "back to back", "host µs", "MB", "GB/s", "of read", "of copy",
    "kernels", "syncs", "peak MB",
)  # fmt: skip
# Marker and color of each in the picture: graphs are stars in their provider's color. The colors are told apart by
# color-blind readers too (Okabe and Ito).
PROVIDERS = {
    "loops": ("s", "#999999"),
    "eager": ("o", "#56b4e9"),
    "eager+graph": ("*", "#56b4e9"),
    "compile": ("D", "#0072b2"),
    "compile, reduce-overhead": ("*", "#0072b2"),
    "plain tap": ("v", "#009e73"),
    "plain tap+graph": ("*", "#009e73"),
    "fused": ("^", "#d55e00"),
    "fused+graph": ("*", "#d55e00"),
}


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    """One line a provider and phase."""
    out = Table(title=title, title_justify="left")
    for heading in HEADINGS:
        out.add_column(heading, justify="left" if heading in ("provider", "phase") else "right")
    for row in rows:
        if row["status"] != "ok":
            out.add_row(row["provider"], row["status"].partition(":")[0])
            continue
        error = f"{row['error']:.1e}"
        if not row["phases"]:
            out.add_row(row["provider"], error, "", NOT_MEASURED)
        for phase, times in row["phases"].items():
            whole = phase == list(row["phases"])[-1]
            peak = "" if row["peak_memory"] is None else f"{row['peak_memory'] / 1e6:.1f}"
            counts = [str(row["kernels"]), str(row["synchronizations"]), peak]
            out.add_row(
                row["provider"], error, phase,
                f"{times['median_us']:.1f} ({times['low_us']:.1f}–{times['high_us']:.1f})",
                "" if times["back_to_back_us"] is None else f"{times['back_to_back_us']:.1f}",
                f"{times['host_us']:.0f}", f"{row['bytes'][phase] / 1e6:.1f}", f"{times['GB_per_s']:.0f}",
                f"{times['fraction_of_read']:.0%}", f"{times['fraction_of_copy']:.0%}", *(counts if whole else []),
            )  # fmt: skip
    return out


def plot(report: dict[str, Any], path: Path) -> str:
    """Draw forward and backward together, or forward where that is all, of the usual batch; returns what was done."""
    try:
        import matplotlib  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return "no picture: matplotlib is not installed (pip install matplotlib, or this clone with -e .[bench])"
    rows = [row for row in report["rows"] if row["changes"] == "usual" and row["phases"]]
    if not rows:
        return "no picture: nothing was measured"
    matplotlib.use("Agg")
    from matplotlib import pyplot  # type: ignore[import-not-found,unused-ignore]

    ops = list(dict.fromkeys(row["op"] for row in rows))
    figure, axis = pyplot.subplots(figsize=(10, 0.42 * len(ops) + 1.8), layout="constrained")
    for provider, (marker, color) in PROVIDERS.items():
        mine = {row["op"]: list(row["phases"].values())[-1] for row in rows if row["provider"] == provider}
        positions = [position for position, op in enumerate(ops) if op in mine]
        keys = ("median_us", "low_us", "high_us")
        medians, low, high = ([mine[ops[position]][key] for position in positions] for key in keys)
        axis.hlines(positions, low, high, color=color, linewidth=2)
        axis.scatter(medians, positions, marker=marker, color=color, s=42, zorder=3, label=provider)
    # What a reduction that only reads as many bytes takes, and products if any: the same for all providers of an op.
    floors = {row["op"]: list(row["phases"].values())[-1] for row in rows}
    reads = [times["median_us"] * times["fraction_of_read"] for times in floors.values()]
    axis.scatter(
        reads, range(len(ops)), marker="|", color="black", s=160, label="reading as many bytes, and its products"
    )
    axis.set_yticks(range(len(ops)), ops)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    axis.set_xlabel("µs, median and middle half, cold cache: forward and backward")
    figure.suptitle(f"{report['environment']['gpu']}, N 80, 2048×28×28, K 3, bf16, channels last", fontsize=11)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return f"drawn to {path}"
