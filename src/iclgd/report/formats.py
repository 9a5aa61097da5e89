"""Numbers as text, and tables as Markdown, LaTeX and CSV in which nothing can be taken for markup."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd

from iclgd.common.printable import printable

Row = tuple[str, ...]
Value = TypeVar("Value")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "Δ": r"$\Delta$", "\N{MINUS SIGN}": r"$-$",
    "\N{GREEK SMALL LETTER ALPHA}": r"$\alpha$", "τ": r"$\tau$", "\N{EN DASH}": "--",
}  # fmt: skip
_MARKDOWN = {"\\": "\\\\", "|": "\\|", "`": "\\`", "*": "\\*", "<": "&lt;", ">": "&gt;", "&": "&amp;", "~": "\\~"}
_LINK = re.compile(r"\]([(\[:])")  # what would make a bracketed text a link or an image
_PAGE, _NAME = 146, 24  # letters: a line of the page, and a name before it is broken
_NAN = math.nan
UNDEFINED = "\N{EN DASH}"


@dataclass(frozen=True)
class Table:
    """A table to be read, and the numbers behind it."""

    name: str  # its file's name
    title: str
    header: Row
    labels: int  # how many of the first columns name a row; the others hold values
    rows: tuple[Row, ...]  # text as people read it, not yet escaped
    notes: Row = ()  # lines below it
    records: tuple[Mapping[str, Any], ...] = ()  # the same unrounded, one mapping for each number

    def blocks(self) -> list[range]:
        """The columns with values, by number, in groups that fit the page beside the columns that name a row."""
        letters = [max(map(len, texts)) for texts in zip(*self.rows, strict=True)]
        # The page breaks names at spaces, and sets intervals below their means.
        room = _PAGE - sum(3 + min(most, _NAME) for most in letters[: self.labels])
        parts = [part for row in self.rows for text in row[self.labels :] for part in text.split(" [")]
        count = max(1, int(room / (3 + max(map(len, parts), default=1))))
        return [range(at, min(at + count, len(letters))) for at in range(self.labels, len(letters), count)]

    @classmethod
    def pivot(
        cls, name: str, title: str, labels: Row, cells: Iterable[tuple[Row, Row, str]], notes: Row, records: list[Any]
    ) -> Table:
        """A table of texts by row and column, its first columns headed `labels`."""
        columns, by_row = pivot(cells)
        rows = tuple((*row, *(texts.get(column, "") for column in columns)) for row, texts in by_row.items())
        header = (*labels, *map(" · ".join, columns))
        return cls(name, title, header, len(labels), rows, notes, tuple(records))


def pivot(cells: Iterable[tuple[Row, Row, Value]]) -> tuple[list[Row], dict[Row, dict[Row, Value]]]:
    """The columns, and the values by row and column, both in the order in which they first occur."""
    columns: dict[Row, None] = {}
    rows: dict[Row, dict[Row, Value]] = {}
    for row, column, value in cells:
        rows.setdefault(row, {})[column] = value
        columns[column] = None
    return list(columns), rows


def number(
    mean: float, low: float = _NAN, high: float = _NAN, std: float = _NAN, *, share: bool = False, digits: int = 3,
    sign: str = "",
) -> str:  # fmt: skip
    """`0.110 ± 0.010 [0.085, 0.135]` over draws, `0.110 [0.090, 0.130]` for one; shares in percent, a dash for NaN."""
    if math.isnan(mean):
        return UNDEFINED
    scale, digits, unit = (100, digits - 2, "%") if share else (1, digits, "")
    text = f"{scale * mean:{sign}z.{digits}f}{unit}"
    if not math.isnan(std):
        text += f" ± {scale * std:z.{digits}f}"
    return text if math.isnan(low) else f"{text} [{scale * low:z.{digits}f}, {scale * high:z.{digits}f}]"


def to_markdown(table: Table) -> str:
    """GitHub's Markdown; markup in the texts is escaped."""
    align = (":---",) * table.labels + ("---:",) * (len(table.header) - table.labels)
    rows = [" | ".join(_escaped(text, _MARKDOWN) for text in row) for row in (table.header, align, *table.rows)]
    notes = [f"\n{_escaped(note, _MARKDOWN, 4000)}" for note in table.notes]
    return "\n".join([f"### {_escaped(table.title, _MARKDOWN, 200)}\n", *(f"| {row} |" for row in rows), *notes, ""])


def to_latex(table: Table) -> str:
    """A `table` environment for the package booktabs; special characters in the texts are escaped."""
    head, *rows = (" & ".join(_escaped(text, _LATEX) for text in row) + r" \\" for row in (table.header, *table.rows))
    caption = ". ".join([_escaped(table.title, _LATEX, 200), " ".join(_escaped(n, _LATEX, 4000) for n in table.notes)])
    columns = "l" * table.labels + "r" * (len(table.header) - table.labels)
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule",
        r"\end{tabular}", r"\end{table}", "",
    ]  # fmt: skip
    return "\n".join(lines)


def to_csv(rows: Any) -> str:
    """A frame, or the records of a table, as CSV: unrounded, empty where undefined, without control characters."""
    frame: Any = pd.DataFrame(rows)
    texts = frame.select_dtypes(exclude="number").map(lambda cell: cell if pd.isna(cell) else printable(str(cell), 500))
    return frame.assign(**texts).to_csv(index=False, float_format="%.12g", lineterminator="\n")


def _escaped(text: str, escapes: Mapping[str, str], most: int = 80) -> str:
    escaped = "".join(escapes.get(character, character) for character in printable(text, most))
    return _LINK.sub(r"]\\\1", escaped) if escapes is _MARKDOWN else escaped
