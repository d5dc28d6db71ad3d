"""Ranks that die, stop or hang: the others end by themselves and name them, and the run goes on as if undisturbed."""

import signal
from pathlib import Path

import pytest

from .ranks import agent_store, ended, forked, run_forked, torchrun, train_job, write_set
from .test_run import assert_same_run

RANDOM = ("model.dropout=0.5", "stage1.epochs=2", "run.checkpoint_every=2")
THREE = (*RANDOM, "batch.classes=3")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("failures") / "set")


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_forked(folder, [train_job(folder, "run", data, *RANDOM)], 2)
    return folder / "run"


def test_a_killed_rank_is_started_anew_by_torchrun_and_the_run_ends_as_if_undisturbed(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    job = train_job(tmp_path, "run", data, *RANDOM, fault=("SIGKILL", 1, 9))
    with torchrun(tmp_path, [job], ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]) as process:
        assert process.wait() == 0, (tmp_path / "torchrun.log").read_text()
    assert "continuing after step 8 of 15" in (tmp_path / "run.0.out").read_text()
    assert_same_run(undisturbed, tmp_path / "run")


def test_ranks_started_anew_join_though_the_nodes_count_starts_apart(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The store of the first start is still there; the node of the rank that lived knows of no restart."""
    first, again = (train_job(tmp_path, "run", data, *RANDOM, fault=fault) for fault in (("SIGKILL", 0, 7), ("", 0, 0)))
    with agent_store() as agent:
        with forked(tmp_path, [first], 2, agent) as processes:
            processes[0].join()
            assert processes[0].exitcode == -signal.SIGKILL
        with forked(tmp_path, [again], 2, agent | {"TORCHELASTIC_RESTART_COUNT": "1"}, agent) as processes:
            for process in processes:
                process.join()
    assert ended(tmp_path, "run", 2).codes == [0, 0]
    assert_same_run(undisturbed, tmp_path / "run")


def test_a_signal_to_one_rank_stops_all_and_the_run_ends_as_if_undisturbed(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    stopping = train_job(tmp_path, "run", data, *RANDOM, fault=("SIGTERM", 1, 8))
    run_forked(tmp_path, [stopping], 2)
    stopped = ended(tmp_path, "run", 2)
    assert stopped.codes == [75, 75]
    assert stopped.told == ["i2c-fast: stopped by SIGTERM after step 10; continue with --resume"]
    assert (tmp_path / "run" / "stopped").read_text() == "SIGTERM after step 10\n"
    run_forked(tmp_path, [train_job(tmp_path, "run", data, *RANDOM, "--resume")], 2)
    assert ended(tmp_path, "run", 2).codes == [0, 0]
    assert not (tmp_path / "run" / "stopped").exists()
    assert_same_run(undisturbed, tmp_path / "run")


@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_end_and_name_a_rank_that_died(data: Path, tmp_path: Path, victim: int) -> None:
    """Without torchrun, which would end them; rank 0 holds what they find each other by."""
    job = train_job(tmp_path, "run", data, *THREE, fault=("SIGKILL", victim, 6))
    with forked(tmp_path, [job], 3) as processes:
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [
            -signal.SIGKILL if rank == victim else 2 for rank in range(3)
        ]
    told = ended(tmp_path, "run", 3).told
    line = f"i2c-fast: rank {victim} stopped or does not answer; continue from the newest checkpoint with --resume"
    # Where the store went with rank 0, nobody knows whether another has told it.
    assert told == [line] if victim else set(told) == {line}


def test_the_others_end_within_the_timeout_and_name_a_rank_that_hangs(data: Path, tmp_path: Path) -> None:
    job = train_job(tmp_path, "run", data, *THREE, "run.rank_timeout=15", fault=("SIGSTOP", 1, 6))
    with forked(tmp_path, [job], 3) as processes:
        for rank in (0, 2):
            processes[rank].join()
            assert processes[rank].exitcode == 2
        assert processes[1].is_alive()
    assert ended(tmp_path, "run", 3).told == [
        "i2c-fast: rank 1 stopped or does not answer; continue from the newest checkpoint with --resume"
    ]
