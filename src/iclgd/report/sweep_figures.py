"""What does a sweep look like? One line plot for each numeric axis, and a map where single layers were trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.config import ConfigError, parse_layers
from iclgd.report import style
from iclgd.report.finished_run import FinishedRun
from iclgd.report.run_figures import integer_ticks
from iclgd.report.settings import Group, group, numeric_axes, place
from iclgd.report.summary import Summary, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_Line = list[tuple[float, Summary]]  # values of the key with what was found there
_MOST_PANELS = 12
_FIRST = ("sim_aou", "sim_am_delta", "sim_aou_random", "sim_am", "accuracy/icl", "accuracy/ft")


def draw_axes(runs: Sequence[FinishedRun], out: Path) -> list[Path]:
    """For every numeric key that was varied, each score along it, a line for each variant with its 95 % interval.

    Where further keys were varied, each of their settings is a thin line and the thick one is the mean over them, drawn
    only where all of them have a value. Diverged runs are crosses at the bottom of the panel, not values.

    Returns:
        The files written, `axis_KEY.png` and `.pdf` for each key.
    """
    groups = group(runs)
    return [path for key in numeric_axes(runs) for path in _draw_axis(runs, groups, key, out)]


def _draw_axis(runs: Sequence[FinishedRun], groups: Sequence[Group], key: str, out: Path) -> list[Path]:
    measured = {name for run in runs for name in run.entries}
    wanted = [name for name in _FIRST if name in measured]
    panels = {
        (where, name): lines
        for where in dict.fromkeys(place(entry) for entry in groups)
        for name in wanted
        if (lines := _lines([entry for entry in groups if place(entry) == where], key, name))
    }
    panels = dict(list(panels.items())[:_MOST_PANELS])
    if not panels:
        return []
    variants = style.looks(list(dict.fromkeys(variant for lines in panels.values() for variant in lines)))
    values = sorted({x for lines in panels.values() for own in lines.values() for line in own for x, _ in line})
    logarithmic = values[0] > 0 and values[-1] / values[0] >= 30
    figure, axes = style.panels(len(panels), columns=min(4, len(wanted)))
    for axis, ((where, name), lines) in zip(axes, panels.items(), strict=True):
        for variant, own in lines.items():
            _draw_variant(axis, own, variant, variants[variant])
        axis.set_xscale("log" if logarithmic else "linear")
        if not logarithmic and all(value.is_integer() for value in values):
            integer_ticks(axis)
        axis.set_xlabel(style.figure_text(key))
        axis.set_ylabel(style.figure_text(next(run.label(name) for run in runs if name in run.entries), 24))
        if len({at for at, _ in panels}) > 1:
            axis.set_title(style.figure_text(" · ".join(where)))
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=min(6, max(1, len(found))))
    return style.save(figure, out / f"axis_{key.replace('.', '_')}", pdf=True)


def _lines(groups: Sequence[Group], key: str, name: str) -> dict[str, list[_Line]]:
    """By variant, a line for each setting of everything but the key; what has one point alone is no line."""
    found: dict[tuple[str, ...], _Line] = {}
    for entry in groups:
        summary = summarise(entry.runs, name)
        if summary.seeds or summary.diverged:
            others = tuple(text for other, text in entry.settings.items() if other != key)
            found.setdefault((entry.runs[0].variant, *others), []).append((float(entry.values[key]), summary))
    lines: dict[str, list[_Line]] = {}
    for (variant, *_), line in found.items():
        if len(line) > 1:
            lines.setdefault(variant, []).append(sorted(line, key=lambda point: point[0]))
    return lines


def _draw_variant(axis: Axes, lines: Sequence[_Line], variant: str, look: style.Look) -> None:
    label, drawn = style.figure_text(variant), {"color": look.color, "marker": look.marker, "linestyle": look.dashes}
    for line in lines:
        x, means = [x for x, _ in line], [summary.mean for _, summary in line]
        if len(lines) > 1:
            axis.plot(x, means, color=look.color, linewidth=0.6, alpha=0.45)
        else:
            axis.plot(x, means, label=label, **drawn)
            low, high = [summary.low for _, summary in line], [summary.high for _, summary in line]
            axis.fill_between(x, low, high, color=look.color, alpha=0.18, linewidth=0)
        lost = [x for x, summary in line if summary.diverged]
        if lost:
            axis.plot(
                lost, [0.03] * len(lost), "x", color=look.color, markersize=5, clip_on=False,
                transform=axis.get_xaxis_transform(), label="_diverged",
            )  # fmt: skip
            axis.annotate("diverged", (lost[0], 0.07), xycoords=axis.get_xaxis_transform(), fontsize=6, ha="center")
    if len(lines) > 1:
        by_value = [{x: summary.mean for x, summary in line} for line in lines]
        common = [x for x in sorted(by_value[0]) if all(x in line for line in by_value)]
        means = [math.fsum(line[x] for line in by_value) / len(by_value) for x in common]
        axis.plot(common, means, label=f"{label} (mean of lines)", **drawn)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else float("nan")


def draw_layer_map(runs: Sequence[FinishedRun], out: Path) -> list[Path]:
    """Where single layers were trained: how the score read at one layer depends on the layer that was trained.

    Returns:
        `layer_map.png` and `.pdf`; nothing where fewer than two single layers were trained.
    """
    import numpy as np

    single = [(layer, run) for run in runs if (layer := trained_layer(run)) is not None]
    if len({layer for layer, _ in single}) < 2:
        return []
    maps: list[tuple[str, Any]] = []
    for name in ("sim_aou", "sim_am_delta"):
        for where in dict.fromkeys((run.variant, run.task, run.model, run.weights) for _, run in single):
            rows: dict[int, list[list[float]]] = {}
            for layer, run in single:
                if (run.variant, run.task, run.model, run.weights) == where and run.layers(name):
                    rows.setdefault(layer, []).append(run.layers(name))
            if rows:
                grid = np.full((max(rows) + 1, max(len(curve) for curves in rows.values() for curve in curves)), np.nan)
                for layer, curves in rows.items():
                    for column, at in enumerate(zip(*curves, strict=True)):
                        grid[layer, column] = _mean(at)
                maps.append((f"{single[0][1].label(name)} · {where[0]} · {where[1]}", grid))
    if not maps:
        return []
    figure, axes = style.panels(len(maps), columns=2, height=2.3)
    most = max(float(np.nanmax(np.abs(grid))) if np.isfinite(grid).any() else 0.0 for _, grid in maps) or 1.0
    for axis, (title, grid) in zip(axes, maps, strict=True):
        image = axis.imshow(grid, origin="lower", cmap="PuOr_r", vmin=-most, vmax=most, interpolation="nearest")
        axis.grid(False)
        axis.set_title(style.figure_text(title))
        axis.set_xlabel("layer read")
        axis.set_ylabel("layer trained")
        integer_ticks(axis)
        figure.colorbar(image, ax=axis)
    return style.save(figure, out / "layer_map", pdf=True)


def trained_layer(run: FinishedRun) -> int | None:
    """The one layer that a run trained, or None where it trained more."""
    try:
        layers = parse_layers(run.config["finetune"].get("layers", "all"))
    except ConfigError:
        return None
    return layers[0] if layers is not None and len(layers) == 1 else None
