"""What stands in the terminal when a run or a sweep has ended? One table that fits 80 columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.report.finished_run import SETTINGS, Estimate, FinishedRun, ReportError
from iclgd.report.runs_frame import read_run, read_runs
from iclgd.report.settings import Group, group
from iclgd.report.summary import zero_shot_notes
from iclgd.shown import printable

if TYPE_CHECKING:
    from rich.table import Table

UNDEFINED = "\N{EN DASH}"
_MOST_COLUMNS = 5  # more groups than this become rows


def run_table(folder: Path) -> Table:
    """One run: its scores with 95 % intervals, then its accuracies.

    Raises:
        BrokenRun: the run is not finished or cannot be read.
    """
    run = read_run(folder)
    return _scores_down([run], group([run]), f"{printable(run.task)} · {printable(run.model)}")


def sweep_table(folders: Sequence[Path]) -> Table:
    """All finished runs in or below the folders: scores down and variants across, or, if those are many, the reverse.

    Cells give the mean with its 95 % interval over queries, or over several seeds mean ± standard deviation.

    Raises:
        ReportError: a folder does not exist, or no run has finished.
    """
    found = read_runs(folders)
    runs = list(found.finished)
    if not runs:
        where = ", ".join(str(folder) for folder in folders)
        raise ReportError(f"no finished run in {where}: {len(found.left_out)} others there (see iclgd-status)")
    groups = group(runs)
    where = " · ".join(
        dict.fromkeys(printable(part) for part in (*_only(runs, "task"), *_only(runs, "model")))
    )  # what all runs share is said once
    table = _scores_down if len(groups) <= _MOST_COLUMNS else _groups_down
    return table(runs, groups, where)


def cell(estimates: Sequence[Estimate], percent: bool = False) -> str:
    """A number as tables show it: `0.12 [0.10, 0.14]` for one run, `0.12 ± 0.01` over seeds, a dash where undefined."""
    means = [estimate.mean for estimate in estimates if not math.isnan(estimate.mean)]
    if not means:
        return UNDEFINED
    show = "{:.1%}".format if percent else "{:.3f}".format
    mean = math.fsum(means) / len(means)
    if len(means) > 1:
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in means) / (len(means) - 1))
        return f"{show(mean)} ± {show(spread)}"
    low, high = next((e.low, e.high) for e in estimates if not math.isnan(e.mean))
    return show(mean) if math.isnan(low) else f"{show(mean)} [{show(low).rstrip('%')}, {show(high).rstrip('%')}]"


def _only(runs: Sequence[FinishedRun], name: str) -> list[str]:
    values = {getattr(run, name) for run in runs}
    return [values.pop()] if len(values) == 1 else []


def _table(title: str, caption: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title, style="bold"),
        caption=Text("\n".join(caption), style="dim", justify="left"),
        caption_justify="left",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        min_width=64,
        pad_edge=False,
    )
    return table


def _scores_down(runs: Sequence[FinishedRun], groups: Sequence[Group], title: str) -> Table:
    from rich.text import Text

    names = list(dict.fromkeys(name for run in runs for name in run.score_names()))
    table = _table(title, _notes(runs, groups, names))
    table.add_column("score")
    for column in groups:
        header = [printable(column.runs[0].variant)]
        header += [f"lr {lr:g}" for lr in sorted({run.lr for run in column.runs})[:1]]
        header += [
            f"{_short(key)} {printable(value, 20)}"
            for key, value in column.settings.items()
            if key not in ("finetune.name", "finetune.lr")
        ]
        table.add_column(Text("\n".join(header)), justify="right", no_wrap=True)
    for name in names:
        cells = [cell([run.estimate(name) for run in column.runs]) for column in groups]
        table.add_row(Text(printable(runs[0].label(name), 24)), *cells)
    table.add_section()
    for setting in SETTINGS:
        cells = [cell([run.estimate(f"accuracy/{setting}") for run in column.runs], percent=True) for column in groups]
        if any(text != UNDEFINED for text in cells):
            table.add_row(f"accuracy {setting}", *cells)
    return table


def _groups_down(runs: Sequence[FinishedRun], groups: Sequence[Group], title: str) -> Table:
    from rich.text import Text

    measured = list(dict.fromkeys(name for run in runs for name in run.score_names()))
    preferred = [name for name in ("sim_aou", "sim_am_delta") if name in measured] or measured[:2]
    table = _table(title, _notes(runs, groups, preferred))
    keys = list(dict.fromkeys(key for row in groups for key in row.settings))
    for key in keys:
        table.add_column(Text(_short(key)), no_wrap=True)
    for name in preferred:
        table.add_column(Text(printable(runs[0].label(name), 24)), justify="right")
    table.add_column("icl", justify="right")
    table.add_column("ft", justify="right")
    for row in groups:
        shown: list[Any] = [Text(printable(row.settings.get(key, ""), 20)) for key in keys]
        shown += [cell([run.estimate(name) for run in row.runs]) for name in preferred]
        for setting in ("icl", "ft"):
            shown.append(cell([run.estimate(f"accuracy/{setting}") for run in row.runs], percent=True).split(" ")[0])
        table.add_row(*shown)
    return table


def _short(key: str) -> str:
    return {"finetune.name": "variant"}.get(key, key.rpartition(".")[2] if key.endswith((".lr", ".shots")) else key)


def _notes(runs: Sequence[FinishedRun], groups: Sequence[Group], names: Sequence[str]) -> list[str]:
    most = max(len(column.runs) for column in groups)
    notes = ["[ ]: 95 % interval over queries" if most == 1 else f"±: standard deviation over up to {most} seeds"]
    for name in names:
        counts: dict[str, int] = {}
        for run in runs:
            undefined = run.estimate(name).undefined
            if undefined and not run.diverged:
                variant = printable(run.variant)
                counts[variant] = counts.get(variant, 0) + undefined
        if counts:
            said = ", ".join(f"{undefined:,} ({variant})" for variant, undefined in counts.items())
            notes.append(f"{printable(runs[0].label(name))}: values left out as undefined: {said}")
    diverged = [run for run in runs if run.diverged]
    if diverged:
        notes.append(f"diverged: {len(diverged)} of {len(runs)} runs; their scores are undefined")
    said = [printable(note, 200) for note in zero_shot_notes(runs)]
    notes += said[:4] + ([f"and the same for {len(said) - 4} more"] if len(said) > 4 else [])
    return notes
