"""Processes that tests start. Importing the package takes seconds, so they fork from a server that has done it once."""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch.multiprocessing

from i2c_fast.cli import main

PRELOADED = ["i2c_fast.cli", "i2c_fast.commands.evaluate", "torch._inductor", "tests.training.ranks", "tests.tiny"]


def server() -> ForkServerContext:
    """The server, started; what it has imported is settled by the first who asks for it."""
    forkserver.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


def start_ranks(function: Callable[..., None], ranks: int, *arguments: Any) -> None:
    """Call ``function(rank, *arguments)`` in as many processes, and wait for them."""
    server()
    torch.multiprocessing.start_processes(function, arguments, nprocs=ranks, start_method="forkserver")


class Command:
    """`i2c-fast` with `arguments`, started in a process of its own.

    Args:
        folder: existing; what the process prints goes to files there.
        before: called in the process before anything else.
    """

    def __init__(self, folder: Path, arguments: Sequence[str], before: Callable[[], None] | None = None) -> None:
        self.output, self.errors = folder / "stdout", folder / "stderr"
        self.process = server().Process(target=_run, args=(self.output, self.errors, arguments, before))
        self.process.start()

    def wait(self) -> int:
        """Its exit status; minus the number of a signal that ended it."""
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode

    @property
    def stderr(self) -> str:
        """What it has written so far."""
        return self.errors.read_text()


def _run(output: Path, errors: Path, arguments: Sequence[str], before: Callable[[], None] | None) -> None:
    for descriptor, path in ((1, output), (2, errors)):
        with path.open("w") as file:
            os.dup2(file.fileno(), descriptor)
    try:
        if before is not None:
            before()
        main(list(arguments))
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
