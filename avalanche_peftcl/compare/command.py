"""What ``peftcl compare`` does: compare, write the files that were asked for, show the tables."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from avalanche_peftcl.compare.comparison import Comparison, SortBy, compare_runs
from avalanche_peftcl.compare.render import (
    csv_table,
    json_tables,
    latex_tables,
    markdown_tables,
    terminal_tables,
)
from avalanche_peftcl.console import plain, print_json
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.files import write_file


def _html(comparison: Comparison) -> str:
    from avalanche_peftcl.compare.html_report import html_report  # plotly takes a second

    return html_report(comparison)


WRITERS: dict[str, Callable[[Comparison], str]] = {
    "markdown": markdown_tables,
    "latex": latex_tables,
    "csv": csv_table,
    "html": _html,
}


def compare_and_show(
    folders: Sequence[Path],
    files: dict[str, Path | None],
    *,
    force: bool,
    published: bool,
    against: str | None = None,
    sort: SortBy | None = None,
    as_json: bool = False,
    console: Console,
) -> Comparison:
    """Compare the runs in ``folders``, show the tables and write them to files.

    Args:
        folders: Run records, or folders with run records at any depth below them.
        files: By format (``"markdown"``, ``"latex"``, ``"csv"``, ``"html"``) where to write it;
            ``None`` writes none. A file that is there is replaced in one step.
        force: Compare runs that do not share one protocol.
        published: Set published numbers of the same protocol beside them.
        against: The method that all others are tested against; see :func:`.compare_runs`.
        sort: The accuracy by which methods are sorted.
        as_json: Show JSON in the place of tables.
        console: Where the tables are shown.

    Returns:
        The comparison.

    Raises:
        ConfigError: As :func:`.compare_runs`; also for a file that is given twice or cannot be
            written, after the tables were shown.
        ProtocolError: As :func:`.compare_runs`.
    """
    wanted = {name: path for name, path in files.items() if path is not None}
    places = [path.resolve() for path in wanted.values()]
    for name, path in wanted.items():
        if places.count(path.resolve()) > 1:
            raise ConfigError(f"--{name} {path} is also the file of another format; give each one")
    comparison = compare_runs(folders, force=force, published=published, against=against, sort=sort)
    if as_json:
        print_json(console, json_tables(comparison))
    else:
        console.print(terminal_tables(comparison, width=console.width))
    for name, path in wanted.items():
        _replace(path, WRITERS[name](comparison))
        if not as_json:
            console.print(plain(f"{name}: {path}"))
    return comparison


def _replace(path: Path, text: str) -> None:
    """Write ``path`` in one step; whatever goes wrong, what was there stays."""
    if path.is_dir():
        raise ConfigError(f"cannot write {path}: it is a folder; name a file in it")
    write_file(path, text.encode(), parents=True)
