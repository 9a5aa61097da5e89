"""The table in the terminal when a run or a sweep has ended; it fits 80 columns where it can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.report.conclusions import zero_shot_notes
from iclgd.report.formats import UNDEFINED, number
from iclgd.report.reading import ReportError, read_run
from iclgd.report.results import Results, whole
from iclgd.runs import varied
from iclgd.shown import printable

if TYPE_CHECKING:
    from rich.table import Table

_MOST_COLUMNS = 4  # more settings than this become rows
_SHARED = ("task.name", "model.name", "finetune.name")
_Cells = Mapping[tuple[Any, ...], Mapping[str, Any]]


def run_table(folder: Path) -> Table:
    """One run: its scores with 95 % intervals over queries.

    Raises:
        BrokenRun: the run is not finished or cannot be read.
    """
    return _table(Results((read_run(folder),)))


def sweep_table(folders: Sequence[Path]) -> Table:
    """All finished runs in or below the folders: scores down and settings across, or, if those are many, the reverse.

    Raises:
        ReportError: a folder does not exist, or no run has finished.
    """
    results = Results.read(folders)
    if not results.runs:
        where = ", ".join(str(folder) for folder in folders)
        raise ReportError(f"no finished run in {where}: {len(results.left_out)} others there (see iclgd-status)")
    return _table(results)


def _table(results: Results) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    keys = results.shown or ["finetune.name"]
    summary = whole(results.summary)
    cells = {(*(row[key] for key in keys), row["score"]): row for row in summary.to_dict("records")}
    settings = list(dict.fromkeys(key[:-1] for key in cells))
    first = results.runs[0].settings
    shared = [_text(results, key, first[key]) for key in _SHARED if key not in keys]
    shared += [f"lr {_text(results, 'finetune.lr', first['finetune.lr'])}"] * ("finetune.lr" not in keys)
    wide = len(settings) > _MOST_COLUMNS
    scores = _short_list(results) if wide else list(results.scores)
    table = Table(
        title=Text(" · ".join(map(printable, shared)), style="bold"),
        caption=Text("\n".join(_notes(results, summary[summary["score"].isin(scores)], wide)), style="dim"),
        caption_justify="left",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        min_width=64,
        pad_edge=False,
    )
    (_settings_down if wide else _scores_down)(table, results, keys, settings, scores, cells)
    return table


def _scores_down(
    table: Any, results: Results, keys: Sequence[str], settings: Sequence[Any], scores: Sequence[str], cells: _Cells
) -> None:
    from rich.text import Text

    table.add_column("score")
    for setting in settings:
        lines = [
            printable(text if key == "finetune.name" else f"{varied.heading(key, keys)} {text}", 24)
            for key, text in zip(keys, map(_text, [results] * len(keys), keys, setting), strict=True)
        ]
        table.add_column(Text("\n".join(lines)), justify="right", no_wrap=True)
    for score in scores:
        shown = [_cell(results, cells.get((*setting, score)), short=False) for setting in settings]
        table.add_row(Text(printable(results.scores[score].label, 24)), *shown)


def _settings_down(
    table: Any, results: Results, keys: Sequence[str], settings: Sequence[Any], scores: Sequence[str], cells: _Cells
) -> None:
    from rich.text import Text

    for key in keys:
        table.add_column(Text(varied.heading(key, keys)), no_wrap=True)
    for score in scores:
        table.add_column(Text(printable(results.scores[score].label, 24)), justify="right")
    for setting in settings:
        names = [Text(printable(_text(results, key, value), 20)) for key, value in zip(keys, setting, strict=True)]
        table.add_row(*names, *(_cell(results, cells.get((*setting, score)), short=True) for score in scores))


def _text(results: Results, key: str, value: Any) -> str:
    """As one types it: a variant by its name."""
    return results.short_name(value) if key == "model.name" else varied.as_text(value)


def _short_list(results: Results) -> list[str]:
    """The headline scores, and the shares that say whether the model learned anything in context or by finetuning."""
    return (
        results.headline
        + [
            name
            for name, score in results.scores.items()
            if score.share
            and name not in results.headline
            and any(p.startswith(("icl.", "ft.")) for p in _paths(score))
        ][:2]
    )


def _paths(score: Any) -> list[str]:
    return list((score.inputs or {}).values())


def _cell(results: Results, row: Mapping[str, Any] | None, short: bool) -> str:
    if row is None:
        return ""
    if not row["draws"] and (row["diverged"] or row["unstable"]):
        return "diverged" if row["diverged"] else "unstable"
    share = results.scores[row["score"]].share
    if row["draws"] > 1:
        return number(row["mean"], std=row["std"], share=share)
    if short and share:
        return number(row["mean"], share=share)
    return number(row["mean"], row["low"], row["high"], share=share) if row["draws"] else UNDEFINED


def _notes(results: Results, summary: Any, wide: bool) -> list[str]:
    most = int(summary["draws"].max())
    notes = [f"±: standard deviation over up to {most} draws"] if most > 1 else ["[ ]: 95 % interval over queries"]
    undefined = summary[summary["undefined"] > 0].groupby("score", sort=False)["undefined"].sum()
    for score, count in undefined.items():
        notes.append(f"{printable(results.scores[score].label)}: {count:,} values left out as undefined")
    for kind in ("diverged", "unstable"):
        count = sum(run.state == kind for run in results.runs)
        if count:
            notes.append(f"{kind}: {count} of {len(results.runs)} runs, left out of the means")
    if wide:
        notes.append("all scores: iclgd-report FOLDER")
    said = [printable(note, 200) for note in zero_shot_notes(results)]
    return notes + said[:4] + ([f"and the same for {len(said) - 4} more"] if len(said) > 4 else [])
