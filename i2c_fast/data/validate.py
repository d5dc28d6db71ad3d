"""Validate a split: decode every image, in processes that a hostile file may kill."""

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

import cv2

from ..errors import UserError
from ..files import write_bytes
from .index import ImageIndex, inside
from .inspection import Look, inspect_image

# Seconds after which an image counts as broken; a large one takes one.
_TIME_LIMIT = 60.0
# Images between two reports of progress.
_CHUNK = 64


@dataclass(frozen=True)
class Finding:
    """An image, by its path in the index, and what is the matter with it."""

    path: str
    reason: str


@dataclass
class ValidationReport:
    """What a split's images are like, in index order."""

    images: int = 0
    broken: list[Finding] = field(default_factory=list)  # training cannot or should not read them
    odd: list[Finding] = field(default_factory=list)  # readable, but not the plain image one expects
    outside: list[Finding] = field(default_factory=list)  # with a box outside the decoded image
    boxless: list[str] = field(default_factory=list)  # without a box, where one is expected
    masks: list[Finding] = field(default_factory=list)  # with a mask that cannot be read or shows no object


def validate(
    index: ImageIndex,
    *,
    expect_boxes: bool,
    workers: int,
    progress: Callable[[int], None] = lambda images: None,
) -> ValidationReport:
    """Decode every image of a split and say what is wrong with any.

    Args:
        index: the split.
        expect_boxes: whether images should have boxes, as validation images should.
        workers: processes; at least one is used.
        progress: called with the number of images after every few.

    The processes start afresh and import the program's main module: in a script, call this below
    ``if __name__ == "__main__"``.
    """
    count = max(1, workers)
    boxless = [path for path, boxes in zip(index.paths, index.boxes, strict=True) if expect_boxes and not len(boxes)]
    report = ValidationReport(boxless=boxless)
    with ExitStack() as stack:
        free: SimpleQueue[_Inspector] = SimpleQueue()
        for _ in range(count):
            free.put(stack.enter_context(closing(_Inspector())))

        def look_at(start: int) -> list[Look]:
            inspector = free.get()
            try:
                return [inspector.look_at(index.file(i)) for i in range(start, min(start + _CHUNK, len(index)))]
            finally:
                free.put(inspector)

        # Each thread waits for one process.
        pool = stack.enter_context(ThreadPoolExecutor(count))
        for looks in pool.map(look_at, range(0, len(index), _CHUNK)):
            for look in looks:
                _note(report, index, look)
            progress(len(looks))
    return report


def _note(report: ValidationReport, index: ImageIndex, look: Look) -> None:
    i = report.images
    path = index.paths[i]
    report.images += 1
    if look.size is None:
        report.broken.append(Finding(path, look.broken))
        return
    report.odd += [Finding(path, reason) for reason in look.odd]
    width, height = look.size
    annotated = (0, 0) if index.sizes is None else tuple(index.sizes[i].tolist())
    if annotated not in ((0, 0), look.size):
        reason = f"is {width} × {height} pixels, annotated as {annotated[0]} × {annotated[1]}"
        report.odd.append(Finding(path, reason))
    for box in index.boxes[i]:
        if not inside(box.tolist(), look.size):
            x0, y0, x1, y1 = box
            reason = f"box {x0:g} {y0:g} {x1:g} {y1:g} does not lie in its {width} × {height} pixels"
            report.outside.append(Finding(path, reason))


class _Inspector:
    """A process that looks at files, one at a time; it is replaced when a file kills or stalls it."""

    def __init__(self) -> None:
        # Forking this process, with its threads, could copy a lock that is never released; the fork server has none.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([__name__])
        self.start()

    def start(self) -> None:
        self.pipe, theirs = self.context.Pipe()
        self.process = self.context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that its end is the pipe's end
        try:
            self.pipe.recv()
        except EOFError:
            raise RuntimeError(
                "a validation process could not start; call validate below `if __name__ == '__main__':`"
            ) from None

    def look_at(self, path: Path) -> Look:
        self.pipe.send(path)
        try:
            if self.pipe.poll(_TIME_LIMIT):
                return self.pipe.recv()
            broken = f"takes longer than {_TIME_LIMIT:g} s to decode"
        except (EOFError, ConnectionError):
            broken = "kills the process that decodes it"
        self.close()
        self.start()
        return Look(broken=broken)

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection) -> None:
    # Ctrl-C reaches all processes; the parent ends these.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    with tempfile.TemporaryFile() as log:
        # The JPEG library reports what it repaired on stderr alone.
        os.dup2(log.fileno(), 2)
        pipe.send("ready")
        while True:
            try:
                path = pipe.recv()
            except EOFError:
                return
            look = inspect_image(path)
            log.seek(0)
            complaint = log.read().decode(errors="replace").strip().partition("\n")[0]
            log.seek(0)
            log.truncate()
            pipe.send(look._replace(odd=(*look.odd, f"decoder: {complaint}")) if complaint else look)


def write_blacklist(path: Path, *reports: ValidationReport) -> None:
    """Write the broken images of the reports, and why, as a file for ``data.blacklist``.

    Raises:
        UserError: the file cannot be written, or a name cannot stand on a line of its own.
    """
    lines = ["# Unreadable images, which data.blacklist leaves out; paths are relative to the data root."]
    for report in reports:
        for finding in report.broken:
            if finding.path.startswith("#") or finding.path != finding.path.strip() or "\n" in finding.path:
                raise UserError(f"{finding.path!r} cannot stand on a line of {path}; rename the image")
            lines += [f"# {' '.join(finding.reason.split())}", finding.path]
    write_bytes(path, ("\n".join(lines) + "\n").encode(errors="surrogateescape"))
