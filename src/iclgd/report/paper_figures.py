"""The papers' figures from our runs: alpha by task, scores by layer, gradient norms; published curves beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from iclgd.report import published, style
from iclgd.report.finished_run import FinishedRun
from iclgd.report.run_figures import gradient_grid, heat_map, integer_ticks
from iclgd.report.settings import Group, group
from iclgd.report.summary import curve, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BY_LAYER = ("sim_aou", "sim_aou_norm", "sim_am_delta")
_MOST_TASKS, _MOST_VARIANTS = 6, 4


def draw_alpha(runs: Sequence[FinishedRun], out: Path) -> list[Path]:
    """Figure 2: alpha, the likeness of two finetuning variants' changes of attention, by task.

    Returns:
        `figure2.png` and `.pdf`; nothing where alpha was not measured.
    """
    measured = [entry for entry in group(runs) if summarise(entry.runs, "alpha").seeds]
    if not measured:
        return []
    tasks = list(dict.fromkeys(entry.runs[0].task for entry in measured))
    kinds = list(dict.fromkeys(_kind(entry) for entry in measured))
    chosen = style.looks(list(dict.fromkeys(entry.runs[0].variant for entry in measured)))
    figure, (axis,) = style.panels(1, height=2.2)
    figure.set_figwidth(max(3.2, 0.5 * len(tasks) + 1.8))
    for at, kind in enumerate(kinds):
        entries = [entry for entry in measured if _kind(entry) == kind]
        found = [summarise(entry.runs, "alpha") for entry in entries]
        nudge = (at - (len(kinds) - 1) / 2) * 0.6 / len(kinds)
        places = [tasks.index(entry.runs[0].task) + nudge for entry in entries]
        error = [[max(s.mean - s.low, 0) for s in found], [max(s.high - s.mean, 0) for s in found]]
        look = chosen[entries[0].runs[0].variant]
        axis.errorbar(
            places, [s.mean for s in found], yerr=np.nan_to_num(error), fmt=look.marker, color=look.color,
            capsize=2.5, label=style.figure_text(kind, 40),
        )  # fmt: skip
    if all(published.matches(run.settings) for entry in measured for run in entry.runs):
        low, high = published.published()["alpha"]
        axis.axhspan(low, high, color=style.GREY, alpha=0.2, linewidth=0, label="published, most tasks")
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set_xticks(range(len(tasks)), [style.figure_text(task, 16) for task in tasks])
    axis.set_xlim(-0.6, len(tasks) - 0.4)
    axis.set_ylabel("\N{GREEK SMALL LETTER ALPHA}")
    style.legend_above(axis, columns=1)
    return style.save(figure, out / "figure2", pdf=True)


def draw_by_layer(runs: Sequence[FinishedRun], out: Path) -> list[Path]:
    """Figure 3: scores by layer, tasks across, a line for each variant, the published curve where the run matches it.

    Error bars are the standard deviation over seeds, or for one seed 1.96 standard errors over queries. Of more than
    four variants only gd and lcgd are drawn, as in the paper.

    Returns:
        `figure3_MODEL_WEIGHTS.png` and `.pdf`; nothing for a model of which something other than task, variant and
        draw was varied, for there is no one curve for each variant then.
    """
    written = []
    for (model, weights), entries in _by_model(runs).items():
        tasks = list(dict.fromkeys(entry.runs[0].task for entry in entries))[:_MOST_TASKS]
        scores = [name for name in _BY_LAYER if any(run.layers(name) for entry in entries for run in entry.runs)]
        if not scores or len({(entry.runs[0].task, entry.runs[0].variant) for entry in entries}) < len(entries):
            continue
        variants = _few_variants(entries)
        chosen = style.looks(variants)
        figure, axes = style.panels(len(scores) * len(tasks), columns=len(tasks))
        for at, axis in enumerate(axes):
            name, task = scores[at // len(tasks)], tasks[at % len(tasks)]
            for entry in entries:
                if entry.runs[0].task == task and entry.runs[0].variant in variants:
                    _draw_curve(axis, entry, name, chosen[entry.runs[0].variant])
            axis.axhline(0, color="black", linewidth=0.6)
            integer_ticks(axis)
            if at < len(tasks):
                axis.set_title(style.figure_text(task, 20))
            if at % len(tasks) == 0:
                axis.set_ylabel(style.figure_text(entries[0].runs[0].label(name), 24))
            if at >= len(tasks) * (len(scores) - 1):
                axis.set_xlabel("layer")
        found = {
            label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=4)
        figure.suptitle(style.figure_text(f"{model} ({weights})"), fontsize=8.5)
        written += style.save(figure, out / f"figure3_{_file_name(model)}_{_file_name(weights)}", pdf=True)
    return written


def _draw_curve(axis: Axes, entry: Group, name: str, look: style.Look) -> None:
    mean, half = curve(entry.runs, name)
    at = np.arange(len(mean))
    variant = style.figure_text(entry.runs[0].variant, 24)
    axis.plot(at, mean, color=look.color, linestyle=look.dashes, label=variant)
    axis.errorbar(at, mean, yerr=np.nan_to_num(half), fmt=look.marker, color=look.color, markersize=2, elinewidth=0.7)
    theirs = published.layers(entry.runs[0].settings, name)
    if theirs is not None:
        axis.plot(range(len(theirs)), theirs, color=look.color, linestyle=":", alpha=0.7, label=f"{variant}, published")


def draw_gradient_norms(runs: Sequence[FinishedRun], out: Path) -> list[Path]:
    """Figure 4: gradient norms as layer x demonstration maps, variants across and tasks down, mean over seeds.

    Maps of one task share their colour scale. Of more than four variants only gd and lcgd are drawn.

    Returns:
        `figure4_MODEL_WEIGHTS.png` and `.pdf`; nothing where more than task, variant and draw was varied.
    """
    written = []
    for (model, weights), entries in _by_model(runs).items():
        variants, tasks = _few_variants(entries), list(dict.fromkeys(entry.runs[0].task for entry in entries))
        if len({(entry.runs[0].task, entry.runs[0].variant) for entry in entries}) < len(entries):
            continue
        grids = {(entry.runs[0].task, entry.runs[0].variant): _mean_grid(entry) for entry in entries}
        cells = [(task, variant) for task in tasks[:_MOST_TASKS] for variant in variants]
        if not any(grid is not None for grid in grids.values()):
            continue
        figure, axes = style.panels(len(cells), columns=len(variants), height=1.9)
        for axis, (task, variant) in zip(axes, cells, strict=True):
            row = [grid for other in variants if (grid := grids.get((task, other))) is not None]
            positive = np.concatenate([grid[grid > 0] for grid in row]) if row else np.array([])
            grid = grids.get((task, variant))
            axis.set_title(style.figure_text(f"{task} · {variant}", 36))
            if grid is None or not (grid > 0).any():
                axis.set_axis_off()
                continue
            image = heat_map(axis, grid, (float(positive.min()), float(positive.max())))
            figure.colorbar(image, ax=axis)
        figure.suptitle(style.figure_text(f"gradient norms · {model} ({weights})"), fontsize=8.5)
        written += style.save(figure, out / f"figure4_{_file_name(model)}_{_file_name(weights)}", pdf=True)
    return written


def _mean_grid(entry: Group) -> np.ndarray | None:
    tables = [table for run in entry.runs if not run.diverged and (table := run.table("gradient_norms")) is not None]
    grids = [grid for table in tables if (grid := gradient_grid(table)).size]
    alike = [grid for grid in grids if grid.shape == grids[0].shape]
    return np.mean(alike, axis=0) if alike else None


def _by_model(runs: Sequence[FinishedRun]) -> dict[tuple[str, str], list[Group]]:
    models: dict[tuple[str, str], list[Group]] = {}
    for entry in group(runs):
        models.setdefault((entry.runs[0].model, entry.runs[0].weights), []).append(entry)
    return models


def _few_variants(entries: Sequence[Group]) -> list[str]:
    variants = list(dict.fromkeys(entry.runs[0].variant for entry in entries))
    papers = [variant for variant in variants if variant in ("gd", "lcgd")]
    return variants if len(variants) <= _MOST_VARIANTS else papers or variants[:_MOST_VARIANTS]


def _kind(entry: Group) -> str:
    run = entry.runs[0]
    other = str((run.config.get("metric") or {}).get("compare_with") or "another")
    extra = [text for key, text in entry.settings.items() if key not in ("task.name", "finetune.name")]
    return " ".join([f"{run.variant} and {other}", *extra])


def _file_name(text: str) -> str:
    """Letters, digits, dots and dashes of a name; a model's name never leads out of the folder."""
    clean = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in text).strip(".-")
    return clean[:60] or "model"
