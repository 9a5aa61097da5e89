"""Is layer causality the cause? Every variant between its floor and its ceiling, by task and weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iclgd.report import style
from iclgd.report.runs_frame import FinishedRun
from iclgd.report.settings import Group, group
from iclgd.report.summary import Summary, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLOORS = ("none", "random_direction")
CEILINGS = ("activation_match", "replay")
RIVALS = ("lcgd_norm_matched", "gd_norm_matched", "label_shuffled", "other_task", "full_batch", "adam")
CONTROLS = (*FLOORS, *RIVALS, *CEILINGS)
_ORDER = (
    "none", "random_direction", "other_task", "label_shuffled", "gd", "gd_norm_matched", "lcgd_norm_matched", "lcgd",
    "full_batch", "adam", "activation_match", "replay",
)  # fmt: skip
SCORES = ("sim_aou", "sim_am_delta")


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
    groups = group(runs)
    places = list(dict.fromkeys((e.runs[0].task, e.runs[0].model, e.runs[0].weights) for e in groups))
    scores = [name for name in SCORES if any(name in run.entries for run in runs)]
    cells = [(place, name) for place in places for name in scores][:16]
    if not cells:
        return []
    most = max(sum(_place(entry) == place for entry in groups) for place in places)
    figure, axes = style.panels(len(cells), columns=min(2, len(scores)), height=0.2 * most + 0.7)
    figure.set_figwidth(3.4 * min(2, len(scores)))
    for axis, (place, name) in zip(axes, cells, strict=True):
        chosen = ordered([entry for entry in groups if _place(entry) == place])
        draw_panel(axis, chosen, name)
        task, model, weights = place
        axis.set_title(style.figure_text(f"{task} · {model}" + ("" if weights == "pretrained" else f" · {weights}")))
        axis.set_xlabel(style.figure_text(chosen[0].runs[0].label(name), 24))
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
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
            axis.annotate(_why_undefined(found), (0, row), fontsize=6.5, va="center", color=style.GREY)
            continue
        error = [[max(found.mean - found.low, 0)], [max(found.high - found.mean, 0)]]
        control = entry.runs[0].variant in (*FLOORS, *CEILINGS)
        axis.errorbar(
            found.mean, row, xerr=None if math.isnan(found.low) else error, fmt=look.marker, capsize=2,
            color=style.GREY if control else look.color, markersize=4,
        )  # fmt: skip
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set_yticks(range(len(entries)), [style.figure_text(row_name(entry), 40) for entry in entries])
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


def row_name(entry: Group) -> str:
    """A variant with whatever else tells its row from the others of its panel."""
    extra = [
        f"{key.rpartition('.')[2]} {text}"
        for key, text in entry.settings.items()
        if key not in ("task.name", "model.name", "model.weights", "finetune.name")
    ]
    return " · ".join([entry.runs[0].variant, *extra])


def _why_undefined(found: Summary) -> str:
    return "diverged" if found.diverged else "undefined (no update)"


def _place(entry: Group) -> tuple[str, str, str]:
    return entry.runs[0].task, entry.runs[0].model, entry.runs[0].weights


def ordered(groups: Sequence[Group]) -> list[Group]:
    """Floors first, ceilings last, what is to be explained between them."""

    def rank(entry: Group) -> tuple[int, str, float]:
        variant = entry.runs[0].variant
        at = _ORDER.index(variant) if variant in _ORDER else _ORDER.index("lcgd")
        return at, variant, entry.runs[0].lr

    return sorted(groups, key=rank)
