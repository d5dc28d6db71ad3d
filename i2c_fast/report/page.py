"""Write the report on runs as one self-contained HTML file."""

import base64
import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console

from ..environment import environment
from ..errors import UserError
from ..evaluation import FAILURES, PaperProtocol, centered_box_error
from ..files import write_bytes
from .collect import RunFacts, collect
from .figures import LETTERS, pixel_charts, threshold_charts, training_charts
from .galleries import SIDE, common_galleries, run_galleries
from .runs import open_runs
from .tables import about_rows, best_runs, difference_tables, error_groups, failure_rows, setting_rows


def write_report(
    runs: Sequence[Path], overrides: Sequence[str], output: Path, console: Console, date: str | None = None
) -> int:
    """Score the newest checkpoint of each run again and write what came out as one self-contained HTML page.

    Pictures take most of it: 10 to 25 KB each, so about 1 MB for each run. Equal input gives equal bytes
    where scoring does (``run.deterministic=true``).

    Args:
        runs: run folders or checkpoint files, all with the same validation split and protocol.
        overrides: ``key=value`` for the configuration of each, as ``data.root=FOLDER`` where the data has moved.
        output: the page. It is written once, at the end. date: of the report; default today (UTC).

    Returns:
        The size of the page in bytes.

    Raises:
        UserError: runs that cannot be scored or compared (see `open_runs`), or an output that cannot be written.
    """
    check_writable(output)
    opened = open_runs(runs, overrides, console)
    facts = [collect(run, console, tuple(overrides)) for run in opened]
    page = render(facts, date or datetime.now(UTC).date().isoformat())
    # File names that are not UTF-8 hold lone surrogates.
    data = page.encode(errors="backslashreplace")
    write_bytes(output, data)
    return len(data)


def render(facts: Sequence[RunFacts], date: str) -> str:
    """The page of scored runs as HTML."""
    templates = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,  # class names, paths and run names are untrusted text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = resources.files(__package__).joinpath("templates/style.css").read_text("utf-8")
    boxed = facts[0].threshold is not None
    baseline = centered_box_error(facts[0].run.index, PaperProtocol()) if boxed else None
    return templates.get_template("report.html.jinja").render(
        style=Markup(style),
        # For the page's content security policy.
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        runs=facts,
        letters=LETTERS,
        date=date,
        boxed=boxed,
        baseline=baseline,
        tiles=best_runs(facts),
        about=about_rows(facts),
        settings=setting_rows(facts),
        scored_on=environment(),
        error_groups=error_groups(facts),
        differences=difference_tables(facts),
        threshold_charts=threshold_charts(facts, baseline),
        training_charts=training_charts(facts),
        pixel_charts=pixel_charts(facts),
        failures=failure_rows(facts),
        definitions=FAILURES,
        common=common_galleries(facts),
        galleries=[run_galleries(run, position) for position, run in enumerate(facts)],
        side=SIDE,
    )


def check_writable(output: Path) -> None:
    """Refuse an output that cannot be written before anything is scored.

    Raises:
        UserError: a folder, or a path below a file or in a folder that is not writable.
    """
    try:
        if output.is_dir():
            raise UserError(f"--output {output} is a folder; name the page in it, as {output / 'report.html'}")
        above = next(parent for parent in output.absolute().parents if parent.exists())
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from None
    if not above.is_dir():
        raise UserError(f"--output {output} lies below {above}, which is a file; choose another --output")
    if not os.access(above, os.W_OK):
        raise UserError(f"--output {output}: {above} is not writable; choose another --output")
