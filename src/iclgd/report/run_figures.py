"""What does one run look like? Scores by layer, gradient norms and accuracies, drawn at the end of every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.report import style
from iclgd.report.runs_frame import LABELS, SETTINGS

if TYPE_CHECKING:
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
    title = style.figure_text(
        f"{config['finetune']['name']} · {config['task']['name']} · "
        f"{str(config['model']['name']).rstrip('/').rsplit('/', 1)[-1]} · lr {float(config['finetune']['lr']):g}"
    )
    chosen = (config.get("metric") or {}).get("scores") or {}
    labels = LABELS | {name: str(entry["label"]) for name, entry in chosen.items() if (entry or {}).get("label")}
    written = []
    with style.print_style():
        written += _scores_by_layer(scores, values, labels, title, out)
        written += _gradient_norms(gradient_norms, title, out)
        written += _accuracies(scores.get("accuracy") or {}, title, out)
    return written


def mean_band(values: pd.DataFrame) -> pd.DataFrame:
    """Mean over examples in each layer of one score, with a 95 % band: 1.96 standard errors to each side.

    Returns:
        A frame indexed by layer: mean, low, high. NaN values are left out; a lone value has no band.
    """
    band = values.groupby("layer").agg(mean=("value", "mean"), error=("value", "sem"))
    return band.assign(low=band["mean"] - 1.96 * band["error"], high=band["mean"] + 1.96 * band["error"])


def _scores_by_layer(
    scores: Mapping[str, Any], values: pd.DataFrame, labels: Mapping[str, str], title: str, out: Path
) -> list[Path]:
    layered = [
        name
        for name, entry in scores.items()
        if name != "accuracy" and any(value is not None for value in entry.get("layers") or [])
    ]
    families = [[name for name in family if name in layered] for family in FAMILIES]
    families += [[name] for name in layered if not any(name in family for family in FAMILIES)]
    families = [family for family in families if family][:_MOST_PANELS]
    if not families:
        return []
    figure, axes = style.panels(len(families))
    by_score = dict(list(values.groupby("score")))
    for axis, family in zip(axes, families, strict=True):
        lines = (("-", style.BLUE), ("--", style.ORANGE), (":", style.GREY))
        for name, (dashes, color) in zip(family, lines, strict=False):
            band = mean_band(by_score[name])
            axis.plot(
                band.index, band["mean"], dashes, color=color, label=style.figure_text(labels.get(name, name), 24)
            )
            axis.fill_between(band.index, band["low"], band["high"], color=color, alpha=0.2, linewidth=0)
        axis.set_xlabel("layer")
        axis.axhline(0, color="black", linewidth=0.6)
        integer_ticks(axis)
        style.legend_above(axis)
    figure.suptitle(title + " · mean over examples, 95 % band", fontsize=8.5)
    return style.save(figure, out / "scores_by_layer")


def _gradient_norms(gradient_norms: pd.DataFrame, title: str, out: Path) -> list[Path]:
    grid = gradient_norms.pivot(index="layer", columns="demonstration", values="value")
    if not (grid.to_numpy() > 0).any():
        return []
    figure, (axis,) = style.panels(1, height=2.6)
    figure.set_figwidth(4.2)
    image = heat_map(axis, grid.to_numpy(dtype=float))
    axis.set_title(title)
    figure.colorbar(image, ax=axis, label="gradient norm")
    return style.save(figure, out / "gradient_norms")


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


def _accuracies(accuracy: Mapping[str, Any], title: str, out: Path) -> list[Path]:
    shown: Sequence[str] = [setting for setting in SETTINGS if accuracy.get(setting) is not None]
    if not shown:
        return []
    figure, (axis,) = style.panels(1)
    figure.set_figwidth(3.4)
    colors = {"zsl": style.GREY, "icl": style.GREEN, "ft": style.BLUE}
    for place, setting in enumerate(shown):
        mean = float(accuracy[setting])
        low, high = (accuracy.get("ci") or {}).get(setting) or (mean, mean)
        error = [[max(mean - (mean if low is None else low), 0)], [max((mean if high is None else high) - mean, 0)]]
        axis.bar(place, mean, width=0.6, color=colors[setting])
        axis.errorbar(place, mean, yerr=error, color="black", capsize=3, linewidth=1)
        axis.annotate(f"{mean:.1%}", (place, 0), (0, 4), textcoords="offset points", ha="center", color="white")
    axis.set_xticks(range(len(shown)), shown)
    axis.set_ylim(0, 1)
    axis.set_ylabel("accuracy")
    axis.grid(visible=False, axis="x")
    axis.set_title(title)
    return style.save(figure, out / "accuracies")
