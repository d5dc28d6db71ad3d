"""The ranks of a run: processes that divide each batch, one a GPU, as torchrun starts them on one node or on many."""

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import UserError

T = TypeVar("T")

# Seconds between a rank's signs of life, and without one until it is given up.
BEAT, SILENCE = 1.0, 5.0

# Seconds in which gloo's thread gets its turn.
PAUSE = 0.2

# What torchrun tells each process it starts.
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """This process among the ranks; alone by default, and then every call gives back what it is given."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on this node
    store: Any = None  # holds a few words of each rank

    @property
    def alone(self) -> bool:
        """Whether there is one rank."""
        return self.size == 1

    @property
    def group(self) -> dist.ProcessGroup | None:
        """All ranks, for torch's collectives; None if there is one."""
        return None if self.alone else dist.group.WORLD

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank; waits for all of them."""
        values = [value] * self.size
        if not self.alone:
            dist.all_gather_object(values, value)
        return values

    def mean_(self, values: Tensor) -> Tensor:
        """The mean over ranks in place, the same bits on each; the host does not wait where tensors lie on a GPU."""
        if not self.alone:
            dist.all_reduce(values)
            values /= self.size
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """All ranks leave the block, or none: where one raises a `UserError`, the others end as well.

        The block itself must not communicate.
        """
        error: UserError | None = None
        try:
            yield
        except UserError as raised:
            error = raised
        if any(self.gather(error is not None)):
            raise error or SystemExit(2)

    def check_alike(self, facts: Mapping[str, str]) -> None:
        """Compare facts that have to be equal on all ranks.

        Raises:
            UserError: that names the first difference, and who differs.
        """
        everyone = self.gather((dict(facts), socket.gethostname()))
        first, first_host = everyone[0]
        for rank, (others, host) in enumerate(everyone):
            for name, value in first.items():
                if others.get(name) != value:
                    raise UserError(
                        f"rank 0 on {first_host} has {name} {value}, rank {rank} on {host} has {others.get(name)}; "
                        "start all ranks with the same options, files and code"
                    )


ALONE = World()


@contextmanager
def open_world(device: str, timeout: float) -> Iterator[World]:
    """The ranks that torchrun started this process among; alone where it was started by itself.

    While open, an error that all ranks meet is told by the first of them, and a rank that stops or no longer answers is
    named by the others.

    Args:
        device: as ``run.device``; GPUs communicate by NCCL, processors by gloo.
        timeout: seconds that ranks wait for each other.

    Raises:
        UserError: a launcher's mistake, or another rank that stopped.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    world, heart, stop = _join(device, timeout)
    in_step = False  # whether all ranks come to the end
    try:
        yield world
        in_step = True
    except UserError as error:
        if not _first_to_tell(world, str(error)):
            raise SystemExit(2) from None
        raise
    except RuntimeError as error:  # torch's word for a collective that failed
        _leave(device, in_step)  # whoever waits for this rank sees it at once
        stopped = _silent(world)
        if not stopped:
            raise
        told = f"{' and '.join(stopped)} stopped or does not answer; continue from the newest checkpoint with --resume"
        first = _first_to_tell(world, told)
        if world.rank == 0 and "TORCHELASTIC_RUN_ID" not in os.environ:
            time.sleep(2 * SILENCE)  # the store is this process's: the others still ask it
        raise UserError(told) if first else SystemExit(2) from error
    finally:
        stop.set()
        heart.join()
        _leave(device, in_step)


def _leave(device: str, in_step: bool) -> None:
    # NCCL would wait for ranks that may be gone; it then ends with the process.
    if dist.is_initialized() and (in_step or device == "cpu" or not torch.cuda.is_available()):
        # gloo's thread frees the tensors of the last exchange, and needs Python's lock for it. Whoever drops the group
        # holds that lock and waits for the thread, for ever if it has not come so far.
        time.sleep(PAUSE)
        dist.destroy_process_group()


def _join(device: str, timeout: float) -> tuple[World, threading.Thread, threading.Event]:
    """The world, the thread that tells the others that this process lives, and what stops that."""
    missing = [name for name in LAUNCHED if name not in os.environ]
    if missing:
        raise UserError(f"WORLD_SIZE is set, {', '.join(missing)} not; start ranks by torchrun, or unset WORLD_SIZE")
    rank, size, local_rank, on_node = (int(os.environ[name]) for name in LAUNCHED[:4])
    on_gpus, mistake = device != "cpu" and torch.cuda.is_available(), ""
    if on_gpus and on_node > torch.cuda.device_count():
        mistake = (
            f"{on_node} ranks on this node of {torch.cuda.device_count()} GPUs; start as many ranks as GPUs by "
            f"torchrun --nproc-per-node={torch.cuda.device_count()}, or use processors by run.device=cpu"
        )
    elif device.startswith("cuda:"):
        mistake = f"run.device={device} names one GPU for all ranks; each takes its own with run.device=cuda"
    if mistake:  # the same for all ranks of the node: its first one tells it
        raise SystemExit(2) if local_rank else UserError(mistake)
    wait = timedelta(seconds=timeout)
    try:
        if on_gpus:
            torch.cuda.set_device(local_rank)
        # Objects travel by gloo also beside NCCL, which would make the GPU wait for them.
        backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
        with _fresh_store(rank, wait) as (name, store):
            store.set(f"beat {rank}", "0")
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)
        # A client of its own, for the other may wait.
        client = dist.PrefixStore(name, next(dist.rendezvous("env://", timeout=wait))[0])
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"rank {rank} cannot join the others at {address} ({_one_line(error)}); is the port in use, or closed to "
            "this node? torchrun --rdzv-endpoint=HOST:PORT names another"
        ) from None
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(client, rank, stop), daemon=True)
    heart.start()
    return World(rank, size, local_rank, store), heart, stop


@contextmanager
def _fresh_store(rank: int, wait: timedelta) -> Iterator[tuple[str, dist.Store]]:
    """A name, and the part of torchrun's store under it, which holds nothing of an earlier start.

    While it is open the other ranks can join.

    torchrun keeps one store when it starts ranks anew, with the addresses of those that died, and nodes do not count
    their restarts alike. So rank 0 draws a name for each start, and tells it to whoever asks.
    """
    store = next(dist.rendezvous("env://", timeout=wait))[0]
    me = uuid.uuid4().hex
    if rank:
        store.set(f"question {store.add('questions', 1)}", me)
        name = store.get(f"answer {me}").decode()
        yield name, dist.PrefixStore(name, store)
        return
    started = threading.Event()
    # A client of its own: one that waits for a key serves nobody else.
    client = next(dist.rendezvous("env://", timeout=wait))[0]
    listener = threading.Thread(target=_answer, args=(client, me, started), daemon=True)
    listener.start()
    try:
        yield me, dist.PrefixStore(me, store)
    finally:
        started.set()
        listener.join()


def _answer(store: dist.Store, name: str, started: threading.Event) -> None:
    answered = set()
    while not started.wait(0.02):
        for number in range(1, store.add("questions", 0) + 1):
            # Whoever died may have taken a number and asked nothing.
            if number not in answered and store.check([f"question {number}"]):
                store.set(f"answer {store.get(f'question {number}').decode()}", name)
                answered.add(number)


def _first_to_tell(world: World, message: str) -> bool:
    try:
        return int(world.store.add(f"told {message}", 1)) == 1
    except RuntimeError:  # the store went with the rank that held it
        return True


def _silent(world: World) -> list[str]:
    """Names of the ranks whose heart does not beat. It beats in one that waits for another, not in a stopped one."""
    try:
        before = [world.store.get(f"beat {rank}") for rank in range(world.size)]
        time.sleep(SILENCE)
        after = [world.store.get(f"beat {rank}") for rank in range(world.size)]
    except RuntimeError:
        return ["rank 0"]  # it holds the store
    return [f"rank {rank}" for rank in range(world.size) if before[rank] == after[rank]]


def _beat(store: dist.Store, rank: int, stop: threading.Event) -> None:
    beats = 0
    with suppress(RuntimeError):  # the store went with the rank that held it
        while not stop.wait(BEAT):
            beats += 1
            store.set(f"beat {rank}", str(beats))


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
