"""What a run tells: a JSON line a step, TensorBoard, and a progress bar with images/s and time left."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from ..errors import UserError
from ..files import MIB, read_regular, write_bytes

# Of a log: some 50 million steps.
LARGEST = 16 * 1024 * MIB

# Seconds between progress lines where there is no terminal to draw a bar on.
PLAIN_INTERVAL = 15.0


class RunLog:
    """Writes ``log.jsonl`` and TensorBoard events of a run folder, while open as a context.

    Opened at a step, it first drops what a previous process logged at that step or later, so that a resumed run's log
    reads like an undisturbed one's.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """

    def __init__(self, run: Path, step: int) -> None:
        self.run, self.path, self.first = run, run / "log.jsonl", step

    def __enter__(self) -> Self:
        with self._disk_errors():
            lines = read_regular(self.path, LARGEST).splitlines(True) if self.path.exists() else []
            write_bytes(self.path, b"".join(line for line in lines if _before(line, self.first)))
            self.file = self.path.open("a", encoding="utf-8")
            self.board = SummaryWriter(str(self.run / "tensorboard"), purge_step=self.first)
        return self

    def __exit__(self, *_: object) -> None:
        # What could not be written was reported where it happened; here it must not hide that error.
        with suppress(OSError):
            self.file.close()
        with suppress(OSError):
            self.board.close()

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Log values of one step; ``kind`` is ``train`` or ``evaluation``."""
        with self._disk_errors():
            plain = {name: None if _is_not_finite(value) else value for name, value in values.items()}
            self.file.write(json.dumps({"kind": kind, "step": step, **plain}) + "\n")
            for name, value in _numbers(values).items():
                self.board.add_scalar(f"{kind}/{name}", value, step)

    def flush(self) -> None:
        """Hand everything logged so far to the operating system."""
        with self._disk_errors():
            self.file.flush()
            self.board.flush()

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write the logs in {self.run}: {error.strerror or error}") from None


class NoLog:
    """In place of `RunLog` on the ranks that keep none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""


def _before(line: bytes, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] < step)
    except (ValueError, LookupError, TypeError):
        return False  # the line a killed process was writing


def _is_not_finite(value: Any) -> bool:
    # JSON has no NaN or infinity; null is what other readers understand.
    return isinstance(value, float) and not math.isfinite(value)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{inner}": number for inner, number in _numbers(value).items()}
        elif isinstance(value, int | float):
            flat[name] = value
    return flat


class Meter:
    """A progress bar on a terminal; elsewhere a line now and then, also where many short meters follow each other."""

    printed: ClassVar[float] = 0.0  # when the last line was, of any of them

    def __init__(self, console: Console, title: str, total: int, done: int = 0, unit: str = "images/s") -> None:
        self.console, self.title, self.total, self.unit = console, title, total, unit
        self.done, self.started = done, time.monotonic()
        Meter.printed = Meter.printed or self.started
        self.steps = self.counted = 0  # steps and units since the start of this process
        self.note = ""
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task: TaskID = self.bar.add_task(title, total=total, completed=done, speed="", note="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, steps: int, units: int, note: str = "") -> None:
        """Count `steps` towards the total and `units` (images) towards the speed."""
        self.done, self.steps = self.done + steps, self.steps + steps
        self.counted, self.note = self.counted + units, note or self.note
        now = time.monotonic()
        speed = f"{self.counted / max(now - self.started, 1e-9):,.0f} {self.unit}"
        self.bar.update(self.task, advance=steps, speed=speed, note=self.note)
        if not self.console.is_terminal and now - self.printed > PLAIN_INTERVAL:
            Meter.printed = now
            left = (now - self.started) / self.steps * max(0, self.total - self.done)
            self.console.print(
                f"{self.title} {self.done}/{self.total}  {speed}  {left:.0f} s left  {self.note}", highlight=False
            )
