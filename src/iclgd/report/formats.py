"""Numbers as text, and tables as Markdown, LaTeX and CSV in which nothing can be taken for markup."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iclgd.shown import printable

if TYPE_CHECKING:
    import pandas as pd

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "Δ": r"$\Delta$", "\N{MINUS SIGN}": r"$-$",
    "\N{GREEK SMALL LETTER ALPHA}": r"$\alpha$", "τ": r"$\tau$", "\N{EN DASH}": "--",
}  # fmt: skip
_MARKDOWN = {"\\": "\\\\", "|": "\\|", "`": "\\`", "*": "\\*", "<": "&lt;", ">": "&gt;", "&": "&amp;", "~": "\\~"}
_LINK = re.compile(r"\]([(\[:])")  # what would make a bracketed text a link or an image
UNDEFINED = "\N{EN DASH}"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Table:
    """A table to be read, and the numbers behind it.

    Attributes:
        name: its file's name.
        title: one line.
        header: column names.
        labels: how many of the first columns name a row; the others hold values.
        rows: text as people read it, not yet escaped for anything.
        notes: lines below it.
        records: the same unrounded, one mapping for each number.
    """

    name: str
    title: str
    header: tuple[str, ...]
    labels: int
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    records: tuple[Mapping[str, Any], ...]


def number(
    mean: float, low: float = math.nan, high: float = math.nan, std: float = math.nan, share: bool = False
) -> str:
    """`0.110 ± 0.010 [0.085, 0.135]` over draws, `0.110 [0.090, 0.130]` for one; shares in percent, a dash for NaN."""
    if math.isnan(mean):
        return UNDEFINED
    text = _digits(mean, share) + ("%" if share else "")
    if not math.isnan(std):
        text += f" ± {_digits(std, share)}"
    return text if math.isnan(low) else f"{text} [{_digits(low, share)}, {_digits(high, share)}]"


def signed(value: float) -> str:
    """A difference, with its sign."""
    return f"{value:+z.3f}"


def p_value(p: float) -> str:
    """Two digits, or below which bound it lies."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _digits(value: float, share: bool) -> str:
    return f"{100 * value:z.1f}" if share else f"{value:z.3f}"


def to_markdown(table: Table) -> str:
    """GitHub's Markdown; markup in the texts is escaped."""
    align = [":---"] * table.labels + ["---:"] * (len(table.header) - table.labels)
    lines = [_markdown_row(table.header), "| " + " | ".join(align) + " |", *map(_markdown_row, table.rows)]
    notes = [f"\n{_translated(note, _MARKDOWN, 4000)}" for note in table.notes]
    return "\n".join([f"### {_translated(table.title, _MARKDOWN, 200)}", "", *lines, *notes]) + "\n"


def to_latex(table: Table) -> str:
    """A `table` environment for the package booktabs; specials in the texts are escaped."""
    columns = "l" * table.labels + "r" * (len(table.header) - table.labels)
    rows = [" & ".join(_translated(text, _LATEX) for text in row) + r" \\" for row in (table.header, *table.rows)]
    notes = " ".join(_translated(note, _LATEX, 4000) for note in table.notes)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_translated(table.title, _LATEX, 200)}. {notes}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            rows[0],
            r"\midrule",
            *rows[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def to_csv(table: Table) -> str:
    """The unrounded numbers, one row each; empty where undefined. No cell starts a spreadsheet formula."""
    names = list(dict.fromkeys(name for record in table.records for name in record))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for record in table.records:
        writer.writerow([_csv_value(record.get(name)) for name in names])
    return out.getvalue()


def _csv_value(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, str):
        text = printable(value, 500)
        return f"'{text}" if text.startswith(_FORMULA) else text
    return value


def _markdown_row(row: tuple[str, ...]) -> str:
    return "| " + " | ".join(_translated(text, _MARKDOWN) for text in row) + " |"


def _translated(text: str, escapes: Mapping[str, str], most: int = 80) -> str:
    shown = "".join(escapes.get(character, character) for character in printable(text, most))
    return _LINK.sub(r"]\\\1", shown) if escapes is _MARKDOWN else shown


def frame_to_csv(frame: pd.DataFrame) -> str:
    """A frame as CSV in which no name and no cell starts a spreadsheet formula; NaN is empty."""
    import pandas as pd
    import pyarrow as pa
    from pyarrow import csv as arrow_csv  # a tenth of the time that pandas takes

    safe: dict[str, Any] = {}
    for name, column in frame.items():
        if not pd.api.types.is_numeric_dtype(column):
            codes, texts = pd.factorize(column, use_na_sentinel=False)
            column = pd.Series([str(_csv_value(None if pd.isna(text) else text)) for text in texts]).take(codes)
        safe[str(_csv_value(name))] = pa.array(column, from_pandas=True)
    out = pa.BufferOutputStream()
    options = arrow_csv.WriteOptions(include_header=True, quoting_style="needed")
    arrow_csv.write_csv(pa.table(safe), out, options)
    return out.getvalue().to_pybytes().decode("utf-8")
