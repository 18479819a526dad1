"""What notebooks show of a run: a matrix with names, a picture, tables as HTML; no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.files import write_file
from avalanche_peftcl.registry.wording import did_you_mean, say, show
from avalanche_peftcl.runs.report import percent, spread
from avalanche_peftcl.runs.tables import Sheet
from avalanche_peftcl.runs.templates import render

_SHOWN = 20  # rows and columns that a repr has at most


@dataclass(frozen=True, eq=False)
class NamedMatrix:
    """An accuracy matrix whose rows and columns have the names of the experiences.

    NumPy takes it as an array; ``matrix["photo", "sketch"]`` is one accuracy, trained up to the
    first and tested on the second, and ``matrix[0, 1]`` what NumPy says.

    Args:
        values: ``(T, T)``, fractions, nan where nothing was evaluated.
        names: Of the experiences.

    Example:
        >>> matrix = NamedMatrix(np.array([[0.9, np.nan], [0.75, 0.5]]), ("photo", "sketch"))
        >>> matrix
                photo  sketch
        photo    90.0       -
        sketch   75.0    50.0
        >>> float(matrix["sketch", "photo"]), float(np.nanmax(matrix))
        (0.75, 0.9)
    """

    values: NDArray[np.float64]
    names: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """As of the array."""
        return self.values.shape

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.values, dtype=dtype)

    def __getitem__(self, key: Any) -> Any:
        parts = key if isinstance(key, tuple) else (key,)
        found = tuple(self._at(part) if isinstance(part, str) else part for part in parts)
        return self.values[found]

    def _at(self, name: str) -> int:
        if name not in self.names:
            near = did_you_mean(name, self.names)
            raise KeyError(f"no experience is called {name!r}{near}; they are {self.names}")
        return self.names.index(name)

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame``, rows ``trained up to``, columns ``tested on``.

        Raises:
            ConfigError: If pandas is not installed.
        """
        pandas = import_pandas()
        index = pandas.Index(self.names, name="trained up to")
        return pandas.DataFrame(
            self.values, index=index, columns=pandas.Index(self.names, name="tested on")
        )

    def sheet(self) -> Sheet:
        """Return it in percent; of a large one some rows and columns."""
        at = spread(len(self.names), _SHOWN)
        names = tuple(self.names[i] for i in at)
        rows = tuple(
            (self.names[t], *(percent(_known(self.values[t, i]), sign="") for i in at)) for t in at
        )
        return Sheet("accuracy in %; row: trained up to, column: tested on", ("", *names), rows)

    def __repr__(self) -> str:
        sheet = self.sheet()
        lines = [sheet.columns, *sheet.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )

    def _repr_html_(self) -> str:
        return html_table(self.sheet())


@dataclass(frozen=True, repr=False)
class Picture:
    """A picture that a notebook shows.

    Args:
        svg: The picture.
    """

    svg: str

    def save(self, path: str | Path) -> None:
        """Write it to a file in one step.

        Raises:
            ConfigError: If the file cannot be written, or its name ends in another form than SVG.
        """
        path = Path(path)
        if path.suffix.lower() != ".svg":
            raise ConfigError(f"the picture is SVG, and {show(str(path))} does not end in .svg")
        write_file(path, self.svg.encode(), parents=True)

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"Picture({len(self.svg)} letters of SVG; a notebook shows it, save(path) writes it)"


def html_table(sheet: Sheet, *, notes: bool = True) -> str:
    """Return a table as HTML that is part of a page; whatever is in it is escaped."""
    return render("sheet.html", {"sheet": sheet, "notes": notes})


def html_parts(title: str, parts: Sequence[str]) -> str:
    """Return a title and below it parts that are HTML already."""
    return render("shown.html", {"title": title, "parts": [Markup(part) for part in parts]})


def import_pandas() -> Any:
    """Return the library.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ConfigError(
            f"a table for pandas needs pandas, which cannot be imported ({say(error)}); "
            'pip install "avalanche-peftcl[notebook]"'
        ) from error
    return pandas


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
