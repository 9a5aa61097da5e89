"""Is layer causality the cause? Every variant between its floor and its ceiling, by task and weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iclgd.report import style
from iclgd.report.controls import CEILINGS, CONTROLS, FLOORS, SCORES, Contender, bounds, contenders, has_controls
from iclgd.report.finished_run import FinishedRun
from iclgd.report.settings import Group, group, own_settings, place
from iclgd.report.summary import summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PLACES = 8


def draw_why_lcgd(runs: Sequence[FinishedRun], out: Path) -> list[Path]:
    """Every variant's scores with 95 % intervals, one panel for each score, task and kind of weights.

    Each variant stands there at its best and at the published learning rate (`controls.contenders`); what floor and
    ceilings are, `controls.bounds` says.

    Returns:
        `why_lcgd.png` and `.pdf`; nothing without controls.
    """
    if not has_controls(runs):
        return []
    from matplotlib.figure import Figure

    groups = group(runs)
    chosen = contenders(groups)
    controlled = [entry for entry in groups if entry.runs[0].variant in CONTROLS]
    places = list(dict.fromkeys(place(entry) for entry in controlled))[:_MOST_PLACES]
    scores = [name for name in SCORES if any(name in run.entries for run in runs)]
    if not scores:
        return []
    rows = [[contender for contender in chosen if place(contender.entry) == where] for where in places]
    heights = [0.2 * len(contenders) + 0.7 for contenders in rows]
    figure = Figure(figsize=(2.2 + 2.6 * len(scores), sum(heights) + 0.3), layout="constrained")
    grid = figure.subplots(len(places), len(scores), squeeze=False, height_ratios=heights)
    for where, shown, axes in zip(places, rows, grid, strict=True):
        everything = [entry for entry in groups if place(entry) == where]
        names = [_row_name(contender, shown) for contender in shown]
        for at, (axis, name) in enumerate(zip(axes, scores, strict=True)):
            draw_panel(axis, [contender.entry for contender in shown], everything, name)
            axis.set_yticks(range(len(shown)), names if at == 0 else [""] * len(names))
            axis.set_xlabel(style.figure_text(everything[0].runs[0].label(name), 24))
        task, model, weights = where
        title = f"{task} · {model}" + ("" if weights == "pretrained" else f" · {weights}")
        axes[0].set_title(style.figure_text(title), loc="left")
    found = {
        label: handle for axis in grid.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if found:
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=3)
    return style.save(figure, out / "why_lcgd", pdf=True)


def draw_panel(axis: Axes, entries: Sequence[Group], everything: Sequence[Group], name: str) -> None:
    """One score of all variants, one row each, from floor to ceiling (of everything measured in that place)."""
    lines = (("floor", style.GREY, ":"), ("ceiling", style.GREY, "--"), ("noise ceiling", style.PURPLE, "-."))
    for at, (label, color, dashes) in zip(bounds(everything, name), lines, strict=True):
        if not math.isnan(at):
            axis.axvline(at, color=color, linewidth=0.9, linestyle=dashes, label=label)
    chosen = style.looks([entry.runs[0].variant for entry in entries])
    for row, entry in enumerate(entries):
        found, look = summarise(entry.runs, name), chosen[entry.runs[0].variant]
        if math.isnan(found.mean):
            axis.annotate(_why_undefined(entry, name), (0, row), fontsize=6.5, va="center", color=style.GREY)
            continue
        error = [[max(found.mean - found.low, 0)], [max(found.high - found.mean, 0)]]
        control = entry.runs[0].variant in (*FLOORS, *CEILINGS)
        axis.errorbar(
            found.mean, row, xerr=None if math.isnan(found.low) else error, fmt=look.marker, capsize=2,
            color=style.GREY if control else look.color, markersize=4,
        )  # fmt: skip
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set_ylim(-0.6, len(entries) - 0.4)


def _row_name(contender: Contender, shown: Sequence[Contender]) -> str:
    entry = contender.entry
    parts = [entry.runs[0].variant, own_settings(entry, [other.entry for other in shown])]
    if contender.rate and not parts[1]:
        parts[1] = f"lr {entry.runs[0].lr:g}"
    return style.figure_text(" · ".join(filter(None, [*parts, contender.rate])), 60)


def _why_undefined(entry: Group, name: str) -> str:
    if any(run.diverged for run in entry.runs):
        return "diverged"
    return "undefined (no update)" if any(name in run.entries for run in entry.runs) else "not measured"
