"""The table in the terminal when a run or a sweep has ended; it fits 80 columns where it can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from iclgd.common.printable import printable
from iclgd.report.formats import Row, pivot
from iclgd.report.tables import cell, undefined_notes
from iclgd.results.findings import findings
from iclgd.results.frame import Results, overall
from iclgd.results.remarks import remarks
from iclgd.runs import varying_keys

_MOST_COLUMNS = 3  # more settings than this become rows, with means alone
_SHARED = ("task.name", "model.name", "finetune.name")


def table(folders: Sequence[Path]) -> Table:
    """All finished runs in or below the folders: scores down and settings across, or, if those are many, the reverse.

    Raises:
        ReportError: a folder does not exist, or no run has finished.
    """
    results = Results.read(folders).required(folders)
    keys = results.shown or ["finetune.name"]
    records: list[dict[str, Any]] = overall(results.summary).to_dict("records")
    many = len({tuple(row[key] for key in keys) for row in records}) > _MOST_COLUMNS
    scores = _short_list(results) if many else list(results.scores)
    records = sorted((row for row in records if row["score"] in scores), key=lambda row: scores.index(row["score"]))
    names = [(printable(results.scores[row["score"]].label, 26),) for row in records]
    settings = [_setting(results, keys, row, not many) for row in records]
    cells = [cell(results, row, row["draws"] < 2) for row in records]
    if many:
        cells = [text.partition(" ")[0] for text in cells]
    down, across = (settings, names) if many else (names, settings)
    columns, rows = pivot(zip(down, across, cells, strict=True))
    heads = [varying_keys.heading(key, keys) for key in keys] if many else ["score"]
    table = Table(
        title=Text(_shared(results, keys), style="bold"),
        caption=Text("\n".join(_notes(results, records, many)), style="dim"),
        caption_justify="left",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0) if many else (0, 1),
        min_width=64,
        pad_edge=False,
    )
    for head in heads:
        table.add_column(Text(head), no_wrap=many)
    for column in columns:
        head = "\n".join(column)
        table.add_column(Text(head.replace(" ", "\n") if many else head), justify="right", no_wrap=many)
    for row, texts in rows.items():
        table.add_row(*map(Text, (*row, *(texts.get(column, "") for column in columns))))
    if many:  # wider than the terminal rather than cut
        table.width = max(64, Console(width=1000).measure(table).maximum)
    return table


def _shared(results: Results, keys: Sequence[str]) -> str:
    first = results[0].settings
    texts = [_text(results, key, first[key]) for key in _SHARED if key not in keys]
    texts += [f"lr {_text(results, 'finetune.lr', first['finetune.lr'])}"] * ("finetune.lr" not in keys)
    return " · ".join(map(printable, texts))


def _setting(results: Results, keys: Sequence[str], row: Mapping[str, Any], headed: bool) -> Row:
    """The values as one types them; each with its key where no heading has it."""
    heads = [f"{varying_keys.heading(key, keys)} " * (headed and key != "finetune.name") for key in keys]
    texts = [head + _text(results, key, row[key]) for head, key in zip(heads, keys, strict=True)]
    return tuple(printable(text, 24 if headed else 20) for text in texts)


def _text(results: Results, key: str, value: Any) -> str:
    return varying_keys.as_text(value) if key == "finetune.name" else results.text(key, value)


def _short_list(results: Results) -> list[str]:
    """The headline scores, and two shares that say whether the model learned anything in context or by finetuning."""
    scores = results.scores.items()
    shares = [name for name, score in scores if score.share and (score.reads("icl") or score.reads("ft"))]
    return results.headline + [name for name in shares if name not in results.headline][:2]


def _notes(results: Results, records: Sequence[Mapping[str, Any]], many: bool) -> list[str]:
    most = max(row["draws"] for row in records)
    if many:
        notes = [f"means over up to {most} draw{'s' * (most > 1)}; the report has their spread"]
    else:
        notes = [f"±: standard deviation over up to {most} draws" if most > 1 else "[ ]: 95 % interval over queries"]
    notes += undefined_notes(results, records)
    for kind in ("diverged", "unstable"):
        if count := sum(run.state == kind for run in results):
            notes.append(f"{kind}: {count} of {len(results)} runs, left out of the means")
    beside = [printable(note, 240) for note in remarks(results)]
    notes += beside[:4] + ([f"and the same for {len(beside) - 4} more"] if len(beside) > 4 else [])
    return notes + [printable(text, 4000) for text in findings(results)]
