"""The figures: each is specified once here, in Altair, for the page, for files and for W&B."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from iclgd.config.bounds import parse_layers
from iclgd.report.chart import Figure
from iclgd.report.ladder import ladder
from iclgd.report.marks import LOG_RATIO, LOGARITHMIC, Measure, axis_title, measured, number_axis
from iclgd.report.panels import PLACE, Frame, free_keys, grid
from iclgd.report.plane import plane
from iclgd.report.planted_truths import planted_truths
from iclgd.report.shots import SHOTS, with_icl
from iclgd.results import published
from iclgd.results.catalogue import ScoreInfo
from iclgd.results.run_tables import mean_table

if TYPE_CHECKING:
    from iclgd.results.frame import Results
    from iclgd.results.reading import FinishedRun

_MAPS = (*PLACE, "variant")  # what has a map of its own
_RATE, _LAYERS = "finetune.lr", "finetune.layers"
_PUBLISHED = "Fine dots: published values (Deutch et al., 2024, figure 3)."
_MOST_LINES = 8  # of one figure; more variants are the rows of a map
_SUMMED_OVER_LAYERS = ("lcgd",)  # objectives whose loss is a sum over the trained layers


def figures(results: Results) -> list[Figure]:
    """Every figure that the results have the data for, in reading order; planted truths are in the first two."""
    of_icl = tuple(run for run in results if not run.planted)
    against_icl = replace(results, runs=of_icl) if of_icl else results
    makers = (plane, by_layer, along_keys, layer_maps, training, gradient_norms, by_head)
    all_figures = [*ladder(results), *planted_truths(results)]
    all_figures += [figure for make in makers for figure in make(against_icl)]
    with_headline = {figure.kind for figure in all_figures if figure.headline}
    return [f if f.kind in with_headline else replace(f, headline=True) for f in all_figures]


def by_layer(results: Results) -> Iterator[Figure]:
    """Each score by layer: a line for each variant with its interval, or a row of a map where variants are many."""
    for measure, rows in measured(results, layered=True):
        rows = rows.dropna(subset="mean").assign(x=rows["layer"], y=rows["variant"])
        if rows["x"].nunique() < 2:
            continue
        if rows["variant"].nunique() > _MOST_LINES:
            drawn = measure.heat_map(grid(results, rows), "layer", "", "by layer")
        else:
            rows["published"] = [published.of_layer(row) for row in rows.to_dict("records")]
            drawn = measure.curves(grid(results, rows), number_axis("layer", rows["x"]), "by layer", dots=_PUBLISHED)
        yield measure.figure("layers", "Scores by layer", *drawn)


def along_keys(results: Results) -> Iterator[Figure]:
    """Each score along each number, and each group of layers, that was swept over."""
    parts = {measure.info.name: (measure, rows) for measure, rows in measured(results, layered=False)}
    for key in results.varied:
        title = axis_title(results, key)
        for measure, rows in parts.values():
            dots = ""
            if key == SHOTS:
                measure, rows, dots = with_icl(measure, rows, parts)
            x = _axis(results, key, rows) if key in free_keys(results, rows) else None
            if x is not None and rows["x"].nunique() > 1:
                drawn = measure.curves(grid(results, rows, used=[key]), x, f"by {title}", dots=dots)
                yield measure.figure(f"along.{key}", f"Scores by {title}", *drawn)


def _axis(results: Results, key: str, rows: Frame) -> Any:
    """Set `x` to the key's values; their axis, or None where they have no order."""
    rows["x"] = pd.to_numeric(rows[key].astype(str), errors="coerce")  # as text, for True is not a number here
    if rows["x"].notna().all():
        log = key in LOGARITHMIC or bool(rows["x"].max() >= LOG_RATIO * rows["x"].min())
        return number_axis(axis_title(results, key), rows["x"], log)
    if key != _LAYERS:
        return None
    order = sorted(rows[key].unique(), key=lambda layers: (layers == "all", parse_layers(layers) or ()))
    rows["x"] = rows[key].map(lambda layers: results.text(key, layers))
    sort, axis = [results.text(key, layers) for layers in order], alt.Axis(labelAngle=0, labelOverlap=True)
    return alt.X("x", type="nominal", title=axis_title(results, key), sort=sort, axis=axis)


def layer_maps(results: Results) -> Iterator[Figure]:
    """How a score by layer depends on the learning rate: a map for each variant."""
    for measure, rows in measured(results, layered=True) if _RATE in free_keys(results, results.settings) else ():
        rows = rows.assign(x=rows["layer"], y=rows[_RATE].astype(float)).dropna(subset="mean")
        if rows["y"].nunique() > 1:
            split = grid(results, rows, _MAPS, used=[_RATE])
            drawn = measure.heat_map(split, "layer", "learning rate", "by layer and learning rate")
            yield measure.figure("rate_map", "Scores by layer and learning rate", *drawn)


def gradient_norms(results: Results) -> Iterator[Figure]:
    """Gradient norms by layer and demonstration, a map for each variant and place; the mean over a few draws."""
    rows: Frame = mean_table(results, lambda run: run.table("gradient_norms"), ["layer", "demonstration"])
    rows = rows[rows["mean"] > 0].rename(columns={"demonstration": "x", "layer": "y"})
    if len(rows):
        measure = Measure(results, ScoreInfo("gradient_norms", "Gradient norm", (0, np.inf)))
        about, split = "of each demonstration in each trained layer", grid(results, rows, _MAPS)
        drawn = measure.heat_map(split, "demonstration", "layer", about, log=True)
        yield Figure("gradient_norms", f"Gradient norms{_of_draw(rows)}", *drawn)


def by_head(results: Results) -> Iterator[Figure]:
    """Scores of every head, as a map of layers and heads."""
    for name, info in results.scores.items():
        rows = mean_table(results, functools.partial(_heads, name), ["y", "x"], "mean")
        if len(rows):
            measure, split = Measure(results, info), grid(results, rows, _MAPS)
            yield measure.figure("heads", "Scores by head", *measure.heat_map(split, "head", "layer", "of each head"))


def _heads(name: str, run: FinishedRun) -> Frame:
    layers = enumerate((run.scores.get(name) or {}).get("heads") or [])
    cells = [(y, x, value) for y, values in layers for x, value in enumerate(values) if value is not None]
    return pd.DataFrame(cells, columns=["y", "x", "mean"])


def training(results: Results) -> Iterator[Figure]:
    """The loss of each step of finetuning."""
    rows: Frame = mean_table(results, _losses, ["step"], "loss").dropna(subset="mean").rename(columns={"step": "x"})
    if len(rows) and rows["x"].nunique() > 1:
        measure = Measure(results, ScoreInfo("loss", "Loss per predicted token", (0, np.inf), headline=True))
        about = "after each step of finetuning (a loss that sums over layers: per layer)"
        drawn = measure.curves(grid(results, rows), number_axis("step", rows["x"]), about, log=True)
        yield measure.figure("training", f"During finetuning{_of_draw(rows)}", *drawn)


def _of_draw(rows: Frame) -> str:
    """The seed of the one draw that is shown, for a title."""
    seeds = rows["seed"].unique()
    return f" (seed {seeds[0]})" if len(seeds) == 1 and rows["draws"].max() == 1 else ""


def _losses(run: FinishedRun) -> Frame:
    """The losses per predicted token, divided by the number of layers where the objective sums over those trained."""
    losses, norms = run.table("losses"), run.table("gradient_norms")
    if losses is None or norms is None or run.config["finetune"].get("objective") not in _SUMMED_OVER_LAYERS:
        return losses
    return losses.assign(loss=losses["loss"] / max(1, norms.dropna()["layer"].nunique()))
