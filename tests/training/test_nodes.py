"""Two nodes, each a network namespace of this machine, train what one process trains."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .ranks import difference, ended, run_forked, torchrun, train_job, write_set

NODES = tuple(f"i2c-{os.getpid()}-{number}" for number in range(2))
ADDRESSES = ("10.213.7.1", "10.213.7.2")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def nodes() -> Iterator[None]:
    """`NODES`, joined by a cable; removed with all that is in them."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the command ip")
    try:
        for node in NODES:
            ip("netns", "add", node)
        ip("link", "add", "cable", "netns", NODES[0], "type", "veth", "peer", "name", "cable", "netns", NODES[1])
        for node, address in zip(NODES, ADDRESSES, strict=True):
            ip("-n", node, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("cable", "lo"):
                ip("-n", node, "link", "set", device, "up")
        yield
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this sandbox allows no network namespaces: {error.stderr.decode().strip()}")
    finally:
        for node in NODES:
            subprocess.run(["ip", "netns", "delete", node], check=False, capture_output=True)


def test_two_nodes_train_what_one_process_trains(nodes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_set(tmp_path / "set")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "cable")
    with ExitStack() as stack:
        started = []
        for number, node in enumerate(NODES):
            options = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=3"]
            options += ["--rdzv-backend=c10d", "--rdzv-id=my-run", f"--rdzv-endpoint={ADDRESSES[0]}:29400"]
            # Names of hosts lead nowhere in there.
            options += [f"--local-addr={ADDRESSES[number]}", f"--rdzv-conf=is_host={number == 0}"]
            job = train_job(tmp_path, "two nodes", data)
            prefix = ["ip", "netns", "exec", node]
            started.append(stack.enter_context(torchrun(tmp_path, [job], options, prefix)))
        for process in started:
            assert process.wait() == 0, (tmp_path / "torchrun.log").read_text()
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    run_forked(tmp_path, [train_job(tmp_path, "one process", data)], 1)
    assert ended(tmp_path, "two nodes", 2).codes == [0, 0]
    assert difference(tmp_path / "one process", tmp_path / "two nodes") < 1e-10
