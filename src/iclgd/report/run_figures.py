"""What does one run look like? Scores by layer, gradient norms and accuracies, drawn at the end of every run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.report import style
from iclgd.report.finished_run import Estimate, FinishedRun

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes

# Scores that are read against each other share a panel; the first of each is drawn boldest.
FAMILIES = (("sim_aou", "sim_aou_norm", "sim_aou_random"), ("sim_am_delta",), ("sim_am", "sim_am_zsl"))
_MOST_PANELS = 9


def draw_run_figures(
    scores: Mapping[str, Any],
    values: pd.DataFrame,
    gradient_norms: pd.DataFrame,
    config: Mapping[str, Any],
    out: Path,
) -> list[Path]:
    """Draw what a run found, as PNG files.

    Args:
        scores: the content of scores.json.
        values: the content of scores.parquet: score, example, layer, value.
        gradient_norms: the content of gradient_norms.parquet: demonstration, layer, value.
        config: the content of config.yaml.
        out: the folder to write into.

    Returns:
        The files written: scores_by_layer, gradient_norms and accuracies, as far as there is something to draw.
    """
    run = FinishedRun(out, config, {}, scores, {})
    title = style.figure_text(f"{run.variant} · {run.task} · {run.model} · lr {run.lr:g}")
    written = []
    with style.print_style():
        written += _scores_by_layer(run, values, title, out)
        written += _gradient_norms(gradient_norms, title, out)
        written += _accuracies(run.accuracies(), title, out)
    return written


def mean_band(values: pd.DataFrame) -> pd.DataFrame:
    """Mean over examples in each layer of one score, with a 95 % band: 1.96 standard errors to each side.

    Returns:
        A frame indexed by layer: mean, low, high. NaN values are left out; a lone value has no band.
    """
    band = values.groupby("layer").agg(mean=("value", "mean"), error=("value", "sem"))
    return band.assign(low=band["mean"] - 1.96 * band["error"], high=band["mean"] + 1.96 * band["error"])


def _scores_by_layer(run: FinishedRun, values: pd.DataFrame, title: str, out: Path) -> list[Path]:
    by_score = dict(list(values.dropna(subset="value").groupby("score")))
    layered = [name for name in run.entries if run.layers(name) and name in by_score]
    families = [[name for name in family if name in layered] for family in FAMILIES]
    families += [[name] for name in layered if not any(name in family for family in FAMILIES)]
    families = [family for family in families if family][:_MOST_PANELS]
    if not families:
        return []
    figure, axes = style.panels(len(families))
    for axis, family in zip(axes, families, strict=True):
        lines = (("-", style.BLUE), ("--", style.ORANGE), (":", style.GREY))
        for name, (dashes, color) in zip(family, lines, strict=False):
            band = mean_band(by_score[name])
            label = style.figure_text(run.label(name), 24)
            axis.plot(band.index, band["mean"], dashes, color=color, label=label)
            axis.fill_between(band.index, band["low"], band["high"], color=color, alpha=0.2, linewidth=0)
        axis.set_xlabel("layer")
        axis.axhline(0, color="black", linewidth=0.6)
        integer_ticks(axis)
        style.legend_above(axis)
    figure.suptitle(title + " · mean over examples, 95 % band", fontsize=8.5)
    return style.save(figure, out / "scores_by_layer")


def _gradient_norms(gradient_norms: pd.DataFrame, title: str, out: Path) -> list[Path]:
    grid = gradient_grid(gradient_norms)
    if not (grid > 0).any():
        return []
    figure, (axis,) = style.panels(1, height=2.6)
    figure.set_figwidth(4.2)
    image = heat_map(axis, grid)
    axis.set_title(title)
    figure.colorbar(image, ax=axis, label="gradient norm")
    return style.save(figure, out / "gradient_norms")


def gradient_grid(gradient_norms: pd.DataFrame) -> np.ndarray:
    """Gradient norms as [layer, demonstration], NaN in layers that were not trained; the mean over epochs."""
    grid = gradient_norms.pivot_table(
        index="layer", columns="demonstration", values="value", aggfunc="mean", dropna=False
    )
    depth = 1 + max(gradient_norms["layer"].tolist(), default=-1)
    return grid.reindex(range(depth)).to_numpy(dtype=float)


def heat_map(axis: Axes, grid: Any, limits: tuple[float, float] | None = None) -> Any:
    """Draw gradient norms, layers upwards and demonstrations to the right, on a logarithmic scale of one hue order."""
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    positive = grid[np.isfinite(grid) & (grid > 0)]
    low, high = limits or (float(positive.min()), float(positive.max()))
    norm = LogNorm(low, high if high > low else low * 10)
    shown = np.where(grid > 0, grid, np.nan)
    image = axis.imshow(shown, origin="lower", aspect="auto", cmap="cividis", norm=norm, interpolation="nearest")
    axis.grid(False)
    axis.set_xlabel("demonstration")
    axis.set_ylabel("layer")
    integer_ticks(axis)
    axis.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    return image


def integer_ticks(axis: Axes) -> None:
    """Layers and demonstrations are counted: no tick at 2.5."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))


def _accuracies(accuracies: Mapping[str, Estimate], title: str, out: Path) -> list[Path]:
    shown = {setting: found for setting, found in accuracies.items() if not math.isnan(found.mean)}
    if not shown:
        return []
    figure, (axis,) = style.panels(1)
    figure.set_figwidth(3.4)
    colors = {"zsl": style.GREY, "icl": style.GREEN, "ft": style.BLUE}
    for place, (setting, found) in enumerate(shown.items()):
        axis.bar(place, found.mean, width=0.6, color=colors[setting])
        if not math.isnan(found.low):
            error = [[max(found.mean - found.low, 0)], [max(found.high - found.mean, 0)]]
            axis.errorbar(place, found.mean, yerr=error, color="black", capsize=3, linewidth=1)
        axis.annotate(f"{found.mean:.1%}", (place, 0), (0, 4), textcoords="offset points", ha="center", color="white")
    axis.set_xticks(range(len(shown)), list(shown))
    axis.set_ylim(0, 1)
    axis.set_ylabel("accuracy")
    axis.grid(visible=False, axis="x")
    axis.set_title(title)
    return style.save(figure, out / "accuracies")
