"""Scale on paper: the arithmetic against numbers worked out by hand, and the bytes against what the code sends."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner
from torch import Tensor

from benchmarks import scaling
from i2c_fast.kernels._pairs import new_rows
from i2c_fast.models import build_localizer
from i2c_fast.ranks import RankExchange

# 2 GPUs a node at 100 GB/s and 1 µs, nodes at 10 GB/s and 5 µs; 20 ms for 10 images of 1 GFLOP.
MACHINE = scaling.Machine(2, 100e9, 10e9, 1e-6, 5e-6, 50e-6, 1.0, 1e12, 0.5, 1e5, 10)
MODEL = scaling.Model("toy", (1000, 300_000, 10), row=12, classes=100, flops=1e9, norms=())


def test_a_step_of_four_ranks_on_two_nodes_is_as_worked_out_by_hand() -> None:
    assert scaling.buckets(MODEL.sizes) == [1_200_040, 4000]
    row = scaling.row_of(MODEL, 4, 10, MACHINE)
    ring, hierarchical = row["ways"]["ring"], row["ways"]["hierarchical"]
    # 6·(1,200,040/40e9 + 5e-6) + 6·(4000/40e9 + 5e-6), and 3·(480/10e9 + 5e-6) for rows of 480 bytes a rank.
    assert ring["gradients_ms"] == pytest.approx(0.210006 + 0.0306)
    assert ring["objective_ms"] == pytest.approx(0.015144)
    # Inside a node 2·(S/200e9 + 1e-6), between nodes 2·(S/20e9 + 5e-6).
    assert hierarchical["gradients_ms"] == pytest.approx(0.0140004 + 0.130004 + 0.00204 + 0.0104)
    assert hierarchical["objective_ms"] == pytest.approx(0.005096 + 0.0010096)
    terms = 2 * (24 / 200e9 + 1e-6) + 2 * (24 / 20e9 + 5e-6)
    assert hierarchical["terms_ms"] == pytest.approx(terms * 1e3)
    # Two rings of 3 hops of 50 µs, every 10 steps.
    assert row["objects_ms"] == pytest.approx(0.03) and row["compute_ms"] == pytest.approx(20)
    whole = 20 + 0.03 + terms * 1e3 + 0.0061056 + 0.1564444
    assert hierarchical["step_ms"] == pytest.approx(whole)
    # Backward takes 13 ms: all gradients but the last bucket's travel meanwhile.
    assert hierarchical["overlapped_step_ms"] == pytest.approx(whole - 0.1440044)
    assert hierarchical["overlapped_efficiency"] == pytest.approx(20 / (whole - 0.1440044))
    assert row["images_per_s"] == pytest.approx(40 / (whole - 0.1440044) * 1e3)
    assert row["read_bytes_per_s"] == pytest.approx(row["images_per_s"] * 1e5)


def test_synchronized_batch_norm_gathers_and_reduces_for_each_layer() -> None:
    row = scaling.row_of(replace(MODEL, norms=(100, 100)), 4, 10, MACHINE)["ways"]["ring"]
    # Each 3·(800/10e9 + 5e-6) forward and 6·(800/40e9 + 5e-6) backward.
    assert row["bn_sync_ms"] == pytest.approx(2 * (0.01524 + 0.03012))


def test_what_backward_is_too_short_for_is_waited_for() -> None:
    row = scaling.row_of(replace(MODEL, flops=1e6), 4, 10, MACHINE)["ways"]["ring"]
    hidden = 0.02 * 2 / 3  # ms
    assert row["step_ms"] - row["overlapped_step_ms"] == pytest.approx(hidden)


def test_micro_batches_exchange_gradients_once_and_rows_each_time() -> None:
    one, four = (scaling.row_of(MODEL, 4, 10, replace(MACHINE, micro_batches=m))["ways"]["ring"] for m in (1, 4))
    assert four["gradients_ms"] == one["gradients_ms"] and four["terms_ms"] == one["terms_ms"]
    assert four["objective_ms"] == pytest.approx(4 * one["objective_ms"])


@pytest.mark.parametrize(("ranks", "images", "kind"), [(5, 20, "rows"), (5, 22, "table")])
def test_the_objective_exchanges_as_many_bytes_as_the_code_does(
    ranks: int, images: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    monkeypatch.setattr(dist, "get_world_size", lambda group: ranks)
    monkeypatch.setattr(dist, "all_reduce", lambda table, group: sent.append(("table", table.nbytes, table.nbytes)))

    def all_gather_into_tensor(everyone: Tensor, own: Tensor, group: object) -> None:
        sent.append(("rows", own.nbytes, everyone.nbytes))

    monkeypatch.setattr(dist, "all_gather_into_tensor", all_gather_into_tensor)
    rows = new_rows(torch.zeros(0), images, 64, 3, "squared_l2").zero_()
    RankExchange(None, 100)(rows, 64, 3, "squared_l2")  # type: ignore[arg-type]
    assert sent == [scaling.exchanged_rows(replace(MODEL, row=rows.shape[1]), ranks, images)]
    assert sent[0][0] == kind


def test_buckets_are_torchs() -> None:
    with torch.device("meta"):
        parameters = list(build_localizer("resnet18", 1000, head_width=2048).parameters())[::-1]
    parameters = [torch.zeros(1).expand(parameter.shape) for parameter in parameters]
    found, _ = dist._compute_bucket_assignment_by_size(parameters, [scaling.FIRST_BUCKET, scaling.BUCKET])
    expected = [sum(parameters[i].numel() * 4 for i in bucket) for bucket in found]
    assert scaling.buckets([parameter.numel() for parameter in reversed(parameters)]) == expected
    assert len(expected) > 3 and dist._DEFAULT_FIRST_BUCKET_BYTES == scaling.FIRST_BUCKET


def test_the_first_number_of_ranks_below_the_limit_is_named() -> None:
    def row(ranks: int, *efficiencies: float) -> scaling.Row:
        both = dict(zip(("efficiency", "overlapped_efficiency"), efficiencies, strict=True))
        return {"ranks": ranks, "ways": {way: both for way in scaling.WAYS}}

    found = scaling.stops_paying([row(8, 0.9, 0.95), row(16, 0.79, 0.9), row(32, 0.6, 0.85)])
    assert found["ring"] == 16 and found["ring, overlapped"] is None


def test_the_command_writes_what_it_computed_and_that_nothing_was_measured(tmp_path: Path) -> None:
    arguments = [
        "--backbone",
        "resnet18",
        "--ranks",
        "8",
        "--ranks",
        "16",
        "--slots",
        "4",
        "--output",
        str(tmp_path / "s"),
    ]
    result = CliRunner().invoke(scaling.main, arguments)
    assert result.exit_code == 0 and "computed, not measured" in result.output
    report = json.loads((tmp_path / "s").read_text())
    found = report["backbones"]["resnet18"]
    assert [row["images"] for row in found["weak"]] == [64, 128]
    assert [row["ranks"] for row in found["strong"]] == [1, 2, 4]
    parameters = sum(parameter.numel() for parameter in build_localizer("resnet18", 1000).parameters())
    assert found["momentum_bytes"] == found["weak"][0]["gradient_bytes"] == 4 * parameters
    assert report["measured"].startswith("nothing")
