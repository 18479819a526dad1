"""What Python gets of a comparison: the tables as text, for notebooks and for pandas."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from avalanche_peftcl.compare.command import WRITERS
from avalanche_peftcl.compare.comparison import Comparison, SortBy, compare_runs
from avalanche_peftcl.compare.render import csv_table, shown_sheets, terminal_tables
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.files import write_file
from avalanche_peftcl.registry.wording import join
from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.shown import html_parts, html_table, import_pandas

_FORMS = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".html": "html"}


@dataclass(frozen=True, repr=False)
class ComparisonResult:
    """Methods side by side.

    Args:
        comparison: Everything that is known.
    """

    comparison: Comparison

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame``, a row a method and quantity and one a paired test.

        Its columns are those of ``peftcl compare --csv``; accuracies are fractions.

        Raises:
            ConfigError: If pandas is not installed.
        """
        pandas = import_pandas()
        return pandas.read_csv(io.StringIO(csv_table(self.comparison)), dtype={"seeds": str})

    def save(self, path: str | Path) -> None:
        """Write a page (``.html``) or the tables (``.md``, ``.tex``, ``.csv``), in one step.

        Raises:
            ConfigError: If the name ends in none of these, or the file cannot be written.
        """
        path = Path(path)
        form = _FORMS.get(path.suffix.lower())
        if form is None:
            raise ConfigError(
                f"{path} must end in one of {join(_FORMS)}, which says what is written"
            )
        write_file(path, WRITERS[form](self.comparison).encode(), parents=True)

    def __repr__(self) -> str:
        console = Console(file=io.StringIO(), width=100)
        console.print(terminal_tables(self.comparison, width=console.width))
        text: str = console.file.getvalue()  # type: ignore[attr-defined] # it is a StringIO
        return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")

    def _repr_html_(self) -> str:
        tables = [html_table(sheet) for sheet in shown_sheets(self.comparison)]
        return html_parts("Runs side by side", tables)


def compare(
    *runs: str | Path | RunRecord,
    force: bool = False,
    published: bool = False,
    against: str | None = None,
    sort: SortBy | None = None,
) -> ComparisonResult:
    """Compare runs: mean and spread over the seeds, and tests between methods.

    Args:
        *runs: What :func:`~avalanche_peftcl.run` and :func:`~avalanche_peftcl.load_run` return, and
            folders with run records at any depth below them.
        force: Compare runs that do not share one protocol, instead of refusing.
        published: Set published numbers of the same protocol beside them.
        against: The method that all others are tested against, by its label or a part that only it
            has; ``None`` tests every pair.
        sort: ``"average"``, ``"last"`` or ``"forgetting"``: what methods are sorted by, the best
            first; ``None`` keeps the order of first runs.

    Returns:
        The comparison; a notebook shows its tables.

    Raises:
        ConfigError: Nothing to compare, or as :func:`.compare_runs`.
        ProtocolError: Runs that do not share one protocol, unless ``force``.
    """
    if not runs:
        raise ConfigError("give the runs to compare, or folders that contain them")
    folders = [run.folder if isinstance(run, RunRecord) else Path(run) for run in runs]
    return ComparisonResult(
        compare_runs(folders, force=force, published=published, against=against, sort=sort)
    )
