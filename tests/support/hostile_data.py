"""Data sets that a stranger might hand over, each a file of rows; written by code, small."""

from __future__ import annotations

import datetime
import gzip
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

GOOD = [{"text": f"thing number {index}", "label": index % 2} for index in range(6)]


@dataclass(frozen=True)
class Case:
    """One data set.

    Attributes:
        write: gets the path of the train split without its suffix.
        refused: a regular expression that the refusal matches; None where the rows are read.
        texts: what the demonstrations then hold, in any order; None where that is of no matter.
        task: settings of the task that differ.
    """

    write: Callable[[Path], Any]
    refused: str | None = None
    texts: tuple[str, ...] | None = None
    task: dict[str, Any] = field(default_factory=dict)


def raw(content: bytes, suffix: str = ".jsonl") -> Callable[[Path], Any]:
    return lambda place: place.with_suffix(suffix).write_bytes(content)


def lines(*rows: Any) -> Callable[[Path], Any]:
    """Good rows, and these after them."""
    return raw("".join(json.dumps(row) + "\n" for row in (*GOOD, *rows)).encode())


def bad_line(content: bytes) -> Callable[[Path], Any]:
    return raw(b"".join(json.dumps(row).encode() + b"\n" for row in GOOD) + content)


def table(names: list[str] | None = None, **columns: Any) -> Callable[[Path], Any]:
    """A parquet file of two rows, unless the columns say otherwise; `names` renames them."""
    whole = {"text": ["thing one", "thing two"], "label": [0, 1], **columns}

    def write(place: Path) -> None:
        made = pa.table({name: value for name, value in whole.items() if value is not None})
        pq.write_table(made.rename_columns(names) if names else made, place.with_suffix(".parquet"))

    return write


def cut(place: Path) -> None:
    table()(place)
    content = place.with_suffix(".parquet").read_bytes()
    place.with_suffix(".parquet").write_bytes(content[: len(content) // 2])


def flipped(place: Path) -> None:
    table(text=["thing one " * 50, "thing two " * 50])(place)
    content = bytearray(place.with_suffix(".parquet").read_bytes())
    content[20:60] = bytes(40)
    place.with_suffix(".parquet").write_bytes(content)


def many(place: Path) -> None:
    """Six million rows in some kilobytes."""
    zeros = pa.Array.from_buffers(pa.int8(), 6_000_000, [None, pa.py_buffer(bytes(6_000_000))])
    texts = pa.DictionaryArray.from_arrays(zeros, ["x"])
    pq.write_table(pa.table({"text": texts, "label": zeros}), place.with_suffix(".parquet"))


def folder(place: Path) -> None:
    place.with_suffix(".jsonl").mkdir()


def far(unit: str, value: int = 2**60) -> pa.Array:
    return pa.array([value, value], pa.int64()).cast(pa.timestamp(unit), safe=False)


OPTIONS = {"labels": [], "options_column": "choices"}
TEXTS = ("Thing: thing one Kind:", "Thing: thing two Kind:")

CASES: dict[str, Case] = {
    # lines
    "not UTF-8": Case(bad_line(b'{"text": "\xff"}'), "line 7: not UTF-8"),
    "UTF-16": Case(raw(json.dumps(GOOD[0]).encode("utf-16")), "line 1: not UTF-8"),
    "compressed": Case(raw(gzip.compress(b"{}")), "line 1: not"),
    "no bytes": Case(raw(b""), "is empty"),
    "blank lines": Case(raw(b"\n \r\n\n"), "is empty"),
    "an array": Case(bad_line(b"[1]"), "line 7: a JSON list"),
    "a text": Case(bad_line(b'"x"'), "line 7: a JSON str"),
    "half a row": Case(bad_line(b'{"text": "a'), "line 7: not JSON"),
    "two rows in a line": Case(bad_line(b"{} {}"), "line 7: not JSON"),
    "deep": Case(bad_line(b'{"a": ' + b"[" * 100_000), "line 7: not JSON"),
    "a number without end": Case(bad_line(b'{"a": ' + b"9" * 5000 + b"}"), "line 7: not JSON"),
    "a line of a megabyte": Case(lines({"text": "x" * 1_000_000, "label": 1, "more": 1})),
    "a pipe": Case(lambda place: os.mkfifo(place.with_suffix(".jsonl")), r"no train\.jsonl"),
    "a device": Case(lambda place: place.with_suffix(".jsonl").symlink_to("/dev/zero"), r"no train\.jsonl"),
    "a folder": Case(folder, r"no train\.jsonl"),
    "a link to nothing": Case(lambda place: place.with_suffix(".jsonl").symlink_to("gone"), r"no train\.jsonl"),
    # values
    "no text": Case(lines({"label": 1}), "line 7: no column 'text'"),
    "no label": Case(lines({"text": "a"}), "line 7: no column 'label'"),
    "a label of text": Case(lines({"text": "a", "label": "1"}), "line 7: label '1'"),
    "a label of a list": Case(lines({"text": "a", "label": [1]}), r"line 7: label \[1\]"),
    "a label beyond": Case(lines({"text": "a", "label": 10**300}), "line 7: label .* out of range"),
    "a label that is no number": Case(lines({"text": "a", "label": float("nan")}), "line 7: label nan"),
    "infinitely many": Case(lines({"text": "a", "label": float("inf")}), "line 7: label inf"),
    "true": Case(lines({"text": "a", "label": True}), "line 7: label True"),
    "text: NaN": Case(raw(b'{"text": NaN, "label": 0}\n' * 3), "line [123]: column 'text' holds nan"),
    "text: infinite": Case(raw(b'{"text": 1e999, "label": 0}\n' * 3), "line [123]: column 'text' holds inf"),
    "text: nothing": Case(raw(b'{"text": null, "label": 0}\n' * 3), "line [123]: column 'text' holds None"),
    "text: an object": Case(raw(b'{"text": {"a": 1}, "label": 0}\n' * 3), "line [123]: column 'text' holds"),
    "text: half a pair": Case(raw(b'{"text": "\\ud83d", "label": 0}\n' * 3), None, ("Thing: \ufffd Kind:",) * 2),
    "text: a template": Case(
        raw(b'{"text": "{{ 7*7 }}{% x %}{0}", "label": 0}\n' * 3), None, ("Thing: {{ 7*7 }}{% x %}{0} Kind:",) * 2
    ),
    "names of Python": Case(raw(b'{"text": "a", "label": 0, "__class__": 1, "self": 2, "range": 3}\n' * 3)),
    "options: NaN": Case(
        raw(b'{"text": "a", "choices": ["x", NaN], "label": 0}\n' * 3), "not a list of", None, OPTIONS
    ),
    "options: none": Case(raw(b'{"text": "a", "choices": [], "label": 0}\n' * 3), "too few or blank", None, OPTIONS),
    "options: a text": Case(raw(b'{"text": "a", "choices": "xy", "label": 0}\n' * 3), "not a list of", None, OPTIONS),
    # tables
    "table: noise": Case(raw(b"PAR1" + b"\xff" * 99 + b"PAR1", ".parquet"), "cannot be read as parquet"),
    "table: no bytes": Case(raw(b"", ".parquet"), "cannot be read as parquet"),
    "table: cut": Case(cut, "cannot be read as parquet"),
    "table: damaged inside": Case(flipped, r"train\.parquet"),
    "table: no rows": Case(table(text=pa.array([], pa.string()), label=pa.array([], pa.int64())), "is empty"),
    "table: too many rows": Case(many, "has 6,000,000 rows"),
    "table: two of one name": Case(table(["text", "label", "text"], other=[1, 2]), "several columns named 'text'"),
    "table: times beyond Python": Case(table(when=far("ms")), None, TEXTS),
    "table: times as labels": Case(table(label=far("ms")), "no column 'label'"),
    "table: days beyond Python": Case(table(day=pa.array([2**31 - 1] * 2, pa.int32()).cast(pa.date32())), None, TEXTS),
    "table: bytes for text": Case(table(text=[b"\xff", b"a"]), "column 'text' holds b'"),
    "table: dates for text": Case(table(text=[datetime.date(2000, 1, 1)] * 2), "column 'text' holds datetime"),
    "table: NaN for text": Case(table(text=[float("nan")] * 2), "column 'text' holds nan"),
    "table: nothing for labels": Case(table(label=pa.nulls(2)), "label None"),
    "table: floats for labels": Case(table(label=[0.0, 1.0]), "label 0.0"),
    "table: no columns that are asked for": Case(table(text=None), "no column 'text'"),
}
