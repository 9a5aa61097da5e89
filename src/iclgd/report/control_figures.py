"""Is layer causality the cause? Every variant between its floor and its ceiling, by task and weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iclgd.report import style
from iclgd.report.finished_run import FinishedRun
from iclgd.report.settings import Group, group, own_settings, place
from iclgd.report.summary import summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLOORS = ("none", "random_direction")
CEILINGS = ("activation_match", "replay")
RIVALS = ("lcgd_norm_matched", "gd_norm_matched", "label_shuffled", "other_task", "full_batch", "adam", "low_rank")
CONTROLS = (*FLOORS, *RIVALS, *CEILINGS)
_ORDER = (
    "none", "random_direction", "other_task", "label_shuffled", "gd", "gd_norm_matched", "lcgd_norm_matched", "lcgd",
    "full_batch", "adam", "low_rank", "activation_match", "replay",
)  # fmt: skip
SCORES = ("sim_aou", "sim_am_delta")
_MOST_PLACES = 8


def has_controls(runs: Sequence[FinishedRun]) -> bool:
    """Whether any run is a control or a rival explanation."""
    return any(run.variant in CONTROLS for run in runs)


def draw_why_lcgd(runs: Sequence[FinishedRun], out: Path) -> list[Path]:
    """Every variant's scores with 95 % intervals, one panel for each score, task and kind of weights.

    The floor is the best of no update and random directions, the ceiling what training on ICL's own attention outputs
    reaches; the noise ceiling, where measured, is ICL against ICL with its demonstrations in another order.

    Returns:
        `why_lcgd.png` and `.pdf`; nothing without controls.
    """
    if not has_controls(runs):
        return []
    from matplotlib.figure import Figure

    groups = group(runs)
    controlled = [entry for entry in groups if entry.runs[0].variant in CONTROLS]
    places = list(dict.fromkeys(place(entry) for entry in controlled))[:_MOST_PLACES]
    scores = [name for name in SCORES if any(name in run.entries for run in runs)]
    rows = [ordered([entry for entry in groups if place(entry) == where]) for where in places]
    if not scores:
        return []
    heights = [0.2 * len(entries) + 0.7 for entries in rows]
    figure = Figure(figsize=(1.6 + 2.6 * len(scores), sum(heights) + 0.3), layout="constrained")
    grid = figure.subplots(len(places), len(scores), squeeze=False, height_ratios=heights)
    for where, entries, axes in zip(places, rows, grid, strict=True):
        names = [_row_name(entry, entries) for entry in entries]
        for at, (axis, name) in enumerate(zip(axes, scores, strict=True)):
            draw_panel(axis, entries, name)
            axis.set_yticks(range(len(entries)), names if at == 0 else [""] * len(names))
            axis.set_xlabel(style.figure_text(entries[0].runs[0].label(name), 24))
        task, model, weights = where
        title = f"{task} · {model}" + ("" if weights == "pretrained" else f" · {weights}")
        axes[0].set_title(style.figure_text(title), loc="left")
    found = {
        label: handle for axis in grid.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if found:
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=3)
    return style.save(figure, out / "why_lcgd", pdf=True)


def draw_panel(axis: Axes, entries: Sequence[Group], name: str) -> None:
    """One score of all variants, one row each, from floor to ceiling."""
    lines = (("floor", style.GREY, ":"), ("ceiling", style.GREY, "--"), ("noise ceiling", style.PURPLE, "-."))
    for at, (label, color, dashes) in zip(bounds(entries, name), lines, strict=True):
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


def bounds(entries: Sequence[Group], name: str) -> tuple[float, float, float]:
    """Floor, ceiling and noise ceiling of a score among variants on one task and model; NaN where not measured."""
    by_variant: dict[str, list[float]] = {}
    for entry in entries:
        by_variant.setdefault(entry.runs[0].variant, []).append(summarise(entry.runs, name).mean)
    floor = [mean for variant in FLOORS for mean in by_variant.get(variant, []) if not math.isnan(mean)]
    trained = by_variant.get("activation_match") or by_variant.get("replay") or []
    ceiling = [mean for mean in trained if not math.isnan(mean)]
    reordered = [summarise(entry.runs, f"{name}_reordered").mean for entry in entries]
    noise = [mean for mean in reordered if not math.isnan(mean)]
    nan = float("nan")
    return (
        max(floor) if floor else nan,
        max(ceiling) if ceiling else nan,
        math.fsum(noise) / len(noise) if noise else nan,
    )


def _row_name(entry: Group, entries: Sequence[Group]) -> str:
    return style.figure_text(" · ".join(filter(None, [entry.runs[0].variant, own_settings(entry, entries)])), 40)


def _why_undefined(entry: Group, name: str) -> str:
    if any(run.diverged for run in entry.runs):
        return "diverged"
    return "undefined (no update)" if any(name in run.entries for run in entry.runs) else "not measured"


def ordered(groups: Sequence[Group]) -> list[Group]:
    """Floors first, ceilings last, what is to be explained between them."""

    def rank(entry: Group) -> tuple[int, str, float]:
        variant = entry.runs[0].variant
        at = _ORDER.index(variant) if variant in _ORDER else _ORDER.index("lcgd")
        return at, variant, entry.runs[0].lr

    return sorted(groups, key=rank)
