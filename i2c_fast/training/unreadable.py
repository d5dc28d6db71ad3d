"""Training images that do not decode: each is named once, and too many stop the run."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from ..data import ImageIndex
from ..errors import UserError

# Names shown when a run stops; the file holds all of them.
SHOWN = 10


class UnreadableImages:
    """Keeps ``unreadable.txt`` of a run, a line ``path<TAB>reason`` for each image, over resumptions.

    Args:
        run: its folder. index: the training split. limit: how many different images may be unreadable.
        writes: False for a rank whose first one keeps the file.
    """

    def __init__(self, run: Path, index: ImageIndex, limit: int, console: Console, writes: bool = True) -> None:
        self.writes = writes
        self.path, self.index, self.limit, self.console = run / "unreadable.txt", index, limit, console
        lines = self.path.read_text("utf-8", "surrogateescape").splitlines() if self.path.is_file() else []
        self.known = {line.partition("\t")[0] for line in lines}

    def note(self, found: Iterable[tuple[int, str]]) -> None:
        """Take down the (image, reason) pairs that batches met, the same on all ranks.

        Raises:
            UserError: more than the limit.
        """
        for image, reason in found:
            name = self.index.paths[image]
            if name in self.known:
                continue
            self.known.add(name)
            if self.writes:
                with self.path.open("a", encoding="utf-8", errors="surrogateescape") as file:
                    file.write(f"{name}\t{reason}\n")
            printable = name.encode(errors="backslashreplace").decode()
            self.console.print(
                f"unreadable, replaced by others of its class: {printable} ({reason})", highlight=False, markup=False
            )
        if len(self.known) > self.limit:
            shown = ", ".join(sorted(self.known)[:SHOWN]) + (", …" if len(self.known) > SHOWN else "")
            raise UserError(
                f"{len(self.known)} training images are unreadable, data.max_unreadable is {self.limit}: {shown} "
                f"(all in {self.path}; `i2c-fast validate-data` finds the rest)"
            )
