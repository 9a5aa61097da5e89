"""What does a sweep look like? One line plot for each numeric axis, and a map where single layers were trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.config import ConfigError, parse_layers
from iclgd.report import style
from iclgd.report.run_figures import integer_ticks
from iclgd.report.runs_frame import FinishedRun
from iclgd.report.settings import Group, as_text, group, numeric_axes
from iclgd.report.summary import Summary, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PANELS = 12
_FIRST = ("sim_aou", "sim_am_delta", "sim_aou_random", "sim_am", "accuracy/icl", "accuracy/ft")


def draw_axes(runs: Sequence[FinishedRun], out: Path) -> list[Path]:
    """For every numeric key that was varied, each score along it, a line for each variant with its 95 % interval.

    Where further keys were varied, each of their settings is a thin line and the thick one is the mean over them.
    Diverged runs are crosses at the bottom of the panel, not values.

    Returns:
        The files written, `axis_KEY.png` and `.pdf` for each key.
    """
    groups = group(runs)
    return [path for key in numeric_axes(runs) for path in _draw_axis(runs, groups, key, out)]


def _draw_axis(runs: Sequence[FinishedRun], groups: Sequence[Group], key: str, out: Path) -> list[Path]:
    measured = {name for run in runs for name in [*run.score_names(), *(f"accuracy/{s}" for s in run.accuracies())]}
    wanted = [name for name in _FIRST if name in measured]
    wheres = list(dict.fromkeys(_where(entry) for entry in groups))
    cells = [(where, name) for where in wheres for name in wanted][:_MOST_PANELS]
    variants = style.looks(list(dict.fromkeys(entry.runs[0].variant for entry in groups)))
    values = sorted({float(entry.values[key]) for entry in groups})
    logarithmic = values[0] > 0 and values[-1] / values[0] >= 30
    figure, axes = style.panels(len(cells), columns=min(4, len(wanted)))
    for axis, (where, name) in zip(axes, cells, strict=True):
        for variant, look in variants.items():
            chosen = [entry for entry in groups if _where(entry) == where and entry.runs[0].variant == variant]
            _draw_lines(axis, chosen, key, name, variant, look)
        axis.set_xscale("log" if logarithmic else "linear")
        if not logarithmic and all(value.is_integer() for value in values):
            integer_ticks(axis)
        axis.set_xlabel(style.figure_text(key))
        label = f"accuracy {name.partition('/')[2]}" if name.startswith("accuracy/") else runs[0].label(name)
        axis.set_ylabel(style.figure_text(label, 24))
        axis.set_title(style.figure_text(where))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, max(1, len(labels))))
    return style.save(figure, out / f"axis_{key.replace('.', '_')}", pdf=True)


def _draw_lines(axis: Axes, groups: Sequence[Group], key: str, name: str, variant: str, look: style.Look) -> None:
    lines: dict[tuple[str, ...], list[tuple[float, Summary]]] = {}
    for entry in groups:
        others = tuple(text for other, text in entry.settings.items() if other != key)
        lines.setdefault(others, []).append((float(entry.values[key]), summarise(entry.runs, name)))
    label = style.figure_text(variant)
    if len(lines) > 1:
        for points in lines.values():
            axis.plot(*_columns(points)[:2], color=look.color, linewidth=0.5, alpha=0.4)
        at = sorted({x for points in lines.values() for x, _ in points})
        means = [_mean([s.mean for points in lines.values() for x, s in points if x == value]) for value in at]
        axis.plot(
            at, means, color=look.color, marker=look.marker, linestyle=look.dashes, label=f"{label} (mean of lines)"
        )
    for points in lines.values():
        x, mean, low, high = _columns(points)
        if len(lines) == 1:
            axis.plot(x, mean, color=look.color, marker=look.marker, linestyle=look.dashes, label=label)
            axis.fill_between(x, low, high, color=look.color, alpha=0.18, linewidth=0)
        lost = [value for value, summary in points if summary.diverged]
        if lost and name != "accuracy/icl":
            axis.plot(
                lost, [0.03] * len(lost), "x", color=look.color, markersize=5, clip_on=False,
                transform=axis.get_xaxis_transform(), label="_diverged",
            )  # fmt: skip
            axis.annotate("diverged", (lost[0], 0.07), xycoords=axis.get_xaxis_transform(), fontsize=6, ha="center")


def _columns(points: Sequence[tuple[float, Summary]]) -> tuple[list[float], list[float], list[float], list[float]]:
    points = sorted(points, key=lambda point: point[0])
    return (
        [x for x, _ in points],
        [summary.mean for _, summary in points],
        [summary.low for _, summary in points],
        [summary.high for _, summary in points],
    )


def _where(entry: Group) -> str:
    run = entry.runs[0]
    return " · ".join(
        as_text(entry.values[key]) if key != "model.name" else run.model
        for key in ("task.name", "model.name", "model.weights")
        if key in entry.values
    )


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
