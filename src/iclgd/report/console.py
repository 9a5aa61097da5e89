"""The table in the terminal when a run or a sweep has ended; it fits 80 columns where it can."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from iclgd.common.printable import printable
from iclgd.report import formats
from iclgd.report.tables import SCORE, summary
from iclgd.results.findings import findings
from iclgd.results.frame import Results

_MOST_COLUMNS = 3  # more settings than this become rows, with means alone
_MOST_NOTES = 7
_SHARED = ("task.name", "model.name", "finetune.name", "finetune.lr")


def table(folders: Sequence[Path]) -> Table:
    """All finished runs in or below the folders: scores down and settings across, or, if those are many, the reverse.

    Raises:
        ReportError: a folder does not exist, or no run has finished.
    """
    results = Results.read(folders).required(folders)
    keys = results.shown or ["finetune.name"]
    many = len(results.settings[keys].drop_duplicates()) > _MOST_COLUMNS
    layout = (keys, [SCORE], _short_list(results)) if many else ([SCORE], keys, ())
    content = summary(results, *layout)
    first = results[0].settings
    shared = results.setting_text({key: first[key] for key in _SHARED if key not in keys})
    shown = Table(
        title=Text(printable(shared), style="bold"),
        caption=Text("\n".join(_notes(results, content.notes, many)), style="dim"),
        caption_justify="left",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0) if many else (0, 1),
        min_width=64,
        pad_edge=False,
    )
    typed = {label: name for name, label in results.labels.items()}  # variants by the names that one types
    columns = [at for at, name in enumerate(content.header) if name != "draws" or _differ(content, at)]
    for at in columns:
        head = typed.get(content.header[at], printable(content.header[at]))
        lines = head.replace(" " if many else " · ", "\n")
        shown.add_column(Text(lines), justify="left" if at < content.labels else "right", no_wrap=many)
    for row in content.rows:
        labels = {at: typed.get(row[at], row[at]) for at in range(content.labels)}
        shown.add_row(*(Text(printable(labels[at]) if at in labels else _shorter(row[at], many)) for at in columns))
    if many:  # wider than the terminal rather than cut
        shown.width = max(64, Console(width=1000).measure(shown).maximum)
    return shown


def _differ(content: formats.Table, column: int) -> bool:
    return len({row[column] for row in content.rows}) > 1


def _shorter(text: str, many: bool) -> str:
    """The mean alone where settings are many, else an interval over draws below it."""
    text = printable(text)
    if many:
        return text.partition(" ")[0]
    return text.replace(" [", "\n[") if "±" in text else text


def _short_list(results: Results) -> list[str]:
    """The headline scores, and two shares that say whether the model learned anything in context or by finetuning."""
    scores = results.scores.items()
    shares = [name for name, score in scores if score.share and (score.reads("icl") or score.reads("ft"))]
    return results.headline + [name for name in shares if name not in results.headline][:2]


def _notes(results: Results, notes: Sequence[str], many: bool) -> list[str]:
    notes = [f"{notes[0]} Only the means are shown; the report has the rest.", *notes[1:]] if many else notes
    shown = [printable(note, 240) for note in notes[:_MOST_NOTES]]
    shown += [f"and {len(notes) - _MOST_NOTES} more notes in the report"] * (len(notes) > _MOST_NOTES)
    return shown + [printable(text, 4000) for text in findings(results)]
