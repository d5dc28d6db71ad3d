"""What an experiment's runs came to: JSON with errors, differences and diagnostics, and a table with the paper's."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.plan import Experiment, Row
from benchmarks.paper.runs import Evaluated, Runs
from i2c_fast.config import as_dict
from i2c_fast.evaluation import PaperProtocol, Scores, centered_box_error, paired_difference
from i2c_fast.report.training_log import read_log

# Errors in per cent, and the protocol of each. MaxBoxAccV2's is 100 minus that accuracy.
METRICS = {
    "cls_top1": "paper", "loc_top1": "paper", "gt_known": "paper", "max_box_acc_v2": "wsolevaluation",
}  # fmt: skip
HEADINGS = {"cls_top1": "Top-1 Cls", "loc_top1": "Top-1 Loc", "gt_known": "Gt-known", "max_box_acc_v2": "V2"}
DELTA = 0.7  # δ of the paper, for counting map pixels
TERMS = ("ce", "sc", "gc", "seed_pixels", "accuracy")


def collect(experiment: Experiment, runs: Runs) -> dict[str, Any]:
    """Results of the runs that are there; a row is compared by the seeds that it and its baseline both have."""
    rows: list[dict[str, Any]] = []
    groups = dict.fromkeys((row.recipe, row.size) for row in runs.rows)
    for group in groups:
        members = [row for row in runs.rows if (row.recipe, row.size) == group]
        starts = {seed: run for seed in runs.setting.seeds if (run := runs.done(members[0], seed, start=True))}
        if starts:
            rows.append(_entry(Row("start", "stage 0, the start of all", (), *group), starts, {}, runs))
        base = next((row for row in members if row.name == experiment.baseline), None)
        baseline = _seeds(base, runs) if base else {}
        for row in members:
            found = _seeds(row, runs)
            if found:
                rows.append(_entry(row, found, {} if row is base else baseline, runs))
    return {
        "experiment": experiment.title,
        "setting": {
            "seeds": list(runs.setting.seeds), "budget": runs.setting.budget,
            "keys": [re.sub("=.*/", "=", key) for key in runs.setting.overrides],  # folders are of this machine
        },
        "centered_box_gt_known_error": centered_box_error(runs.index(runs.rows[0]), PaperProtocol()),
        "rows": rows,
        "paper": experiment.paper,
        "notes": list(experiment.notes),
    }  # fmt: skip


def _seeds(row: Row, runs: Runs) -> dict[int, Evaluated]:
    return {seed: run for seed in runs.setting.seeds if (run := runs.done(row, seed))}


def _entry(row: Row, found: dict[int, Evaluated], baseline: dict[int, Evaluated], runs: Runs) -> dict[str, Any]:
    per_seed = {metric: [_error(run, metric) for run in found.values()] for metric in METRICS}
    config = runs.config(row, next(iter(found)))
    common = [seed for seed in found if seed in baseline]
    minus = {
        metric: paired_difference(
            [baseline[seed].scores[protocol] for seed in common],
            [found[seed].scores[protocol] for seed in common],
            metric,
        )
        for metric, protocol in METRICS.items()
        if common
    }
    return {
        "name": row.name,
        "title": row.title,
        "recipe": Path(row.recipe).name,
        "image_size": config.data.image_size,
        "keys": list(row.keys),
        "images": len(next(iter(found.values())).ranks),
        "seeds": list(found),
        "errors": {metric: {"mean": float(np.mean(errors)), "seeds": errors} for metric, errors in per_seed.items()},
        "minus_baseline": {"seeds": common, **minus} if common else None,
        "paper": row.paper,
        "diagnostics": {
            **diagnose(list(found.values()), as_dict(config).get("i2c", {})),
            "map_change": [_map_change(baseline[seed], found[seed]) for seed in common],
        },
    }


def _map_change(first: Evaluated, second: Evaluated) -> float:
    """Mean absolute difference of two runs' raw maps, relative to the standard deviation of the first's."""
    return float(np.abs(second.maps - first.maps).mean() / first.maps.std())


def _error(run: Evaluated, metric: str) -> float:
    scores = run.scores[METRICS[metric]]
    if metric == "cls_top1":
        return scores.classification_error(1)
    if metric == "max_box_acc_v2":
        return 100 - float(scores.summary()["max_box_acc_v2"]["accuracy"])
    return float(scores.summary()[metric]["error"])


def diagnose(found: Sequence[Evaluated], options: dict[str, Any]) -> dict[str, Any]:
    """Why a row came out as it did, means over seeds.

    The terms of training over its first and last fifth, before their weights; what the weighted terms are, relative to
    the cross-entropy; and of the validation maps the fraction of pixels above δ, and the best gray level.
    """
    above, best = [], []
    for run in found:
        low, high = run.maps.min((1, 2), keepdims=True), run.maps.max((1, 2), keepdims=True)
        above.append(float((run.maps > low + DELTA * (high - low)).mean()))
        best.append(run.scores["paper"].best_threshold("gt_known"))
    result: dict[str, Any] = {"fraction_above_delta": float(np.mean(above)), "best_gray_levels": best}
    logs = [read_log(run.folder / "log.jsonl") for run in found]
    result["steps"] = len(logs[0].steps)
    fifth = max(1, len(logs[0].steps) // 5)
    for part, chosen in (("first_fifth", slice(None, fifth)), ("last_fifth", slice(-fifth, None))):
        known = [term for term in TERMS if all(term in log.series for log in logs)]
        terms = {term: float(np.mean([log.series[term][chosen].mean() for log in logs])) for term in known}
        if "sc" in terms:
            terms["weighted_sc_over_ce"] = options["sc_weight"] * terms["sc"] / terms["ce"]
            terms["weighted_gc_over_ce"] = options["gc_weight"] * terms["gc"] / terms["ce"]
        result[part] = terms
    return result


def choose(experiment: Experiment, runs: Runs) -> list[dict[str, Any]]:
    """For each sweep, the value with the least Gt-known error on every second validation image, judged on the rest."""
    base = next((row for row in runs.rows if row.name == experiment.baseline), None)
    baseline = _seeds(base, runs) if base else {}
    found: dict[str, dict[Row, dict[int, Evaluated]]] = {}
    for row in runs.rows:
        members = {seed: run for seed, run in _seeds(row, runs).items() if seed in baseline}
        if row is not base and members:
            found.setdefault(row.name.rpartition("-")[0], {})[row] = members
    result = []
    for sweep, rows in found.items():
        on_half: dict[str, float] = {}
        for row, members in rows.items():
            errors = [_half(run, "paper", 0).summary()["gt_known"]["error"] for run in members.values()]
            on_half[row.name] = float(np.mean(errors))
        best = min(rows, key=lambda row: on_half[row.name])
        rest = {
            metric: paired_difference(
                [_half(baseline[seed], protocol, 1) for seed in rows[best]],
                [_half(run, protocol, 1) for run in rows[best].values()],
                metric,
            )
            for metric, protocol in METRICS.items()
        }
        result.append(
            {"sweep": sweep, "gt_known_on_half": on_half, "chosen": best.name, "minus_baseline_on_rest": rest}
        )
    return result


def _half(run: Evaluated, protocol: str, which: int) -> Scores:
    """The scores of every second image, from the first or the second on."""
    scores, part = run.scores[protocol], slice(which, None, 2)
    arrays = ("ranks", "boxed", "hits", "contour_hits", "indices")
    kept = {name: value[part] for name in arrays if (value := getattr(scores, name)) is not None}
    return replace(scores, **kept)


def as_markdown(results: dict[str, Any]) -> str:
    """The table, each error as a mean over seeds, with the difference from the baseline and the paper's error."""
    heads = ["", "seeds", *HEADINGS.values(), *(f"{HEADINGS[key]} − plain’s" for key in ("loc_top1", "gt_known"))]
    known = any(row["paper"] for row in results["rows"])
    heads += [f"the paper’s, {results['paper']}"] if known else []
    lines = [f"**{results['experiment']}.** {_conditions(results)}", "", _line(heads), _line(["---"] * len(heads))]
    several = len({(row["recipe"], row["image_size"]) for row in results["rows"]}) > 1
    for row in results["rows"]:
        title = f"{row['title']} ({row['recipe']}, {row['image_size']} px)" if several else row["title"]
        cells = [str(len(row["seeds"])), *(f"{row['errors'][metric]['mean']:.1f}" for metric in METRICS)]
        minus = row["minus_baseline"]
        cells += [_difference(minus[metric]) if minus else "" for metric in ("loc_top1", "gt_known")]
        if known:
            cells.append(", ".join(f"{HEADINGS.get(key, key)} {value:.2f}" for key, value in row["paper"].items()))
        lines.append(_line([title, *cells]))
    return "\n".join([*lines, "", *results["notes"], ""])


def _conditions(results: dict[str, Any]) -> str:
    row = results["rows"][0]
    return (
        f"Errors in per cent, lower is better (V2: 100 − MaxBoxAccV2), of {row['images']:,} images, means over "
        f"training seeds; differences over the seeds that both rows have, with their 95 % interval. One centered box "
        f"for all images: Gt-known {results['centered_box_gt_known_error']:.1f}."
    )


def _difference(found: dict[str, Any]) -> str:
    low, high = found["interval_95"]
    return f"{found['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
