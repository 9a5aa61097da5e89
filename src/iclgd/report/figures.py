"""The figures: each is specified once here, in Altair, for the page, for files and for W&B."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from iclgd.common.printable import printable
from iclgd.config.bounds import ConfigError, parse_layers
from iclgd.report.chart import Figure, looks
from iclgd.report.ladder import ladder
from iclgd.report.marks import Measure, interval_words, measured, number_axis, zero_rule
from iclgd.report.matrix import planted_truths
from iclgd.report.panels import PLACE, Frame, free_keys, grid, labelled
from iclgd.results import published
from iclgd.results.catalogue import ScoreInfo
from iclgd.results.own_tables import own_tables

if TYPE_CHECKING:
    from iclgd.results.frame import Results
    from iclgd.results.reading import FinishedRun

_MAPS = (*PLACE, "variant")  # what has a map of its own


def figures(results: Results) -> list[Figure]:
    """Every figure that the results have the data for, in reading order."""
    first, last = (ladder, planted_truths, by_layer, along_axes, layer_map), (gradient_norms, by_head, training)
    made = [figure for make in (*first, between_variants, *last) for figure in make(results)]
    led = {figure.kind for figure in made if figure.headline}  # where no score is a headline, all are
    return [figure if figure.kind in led else replace(figure, headline=True) for figure in made]


def by_layer(results: Results) -> Iterator[Figure]:
    """Each score by layer: a line for each variant with its interval, and what was published where that is known."""
    for measure, rows in measured(results, layered=True):
        rows = rows.dropna(subset="mean").assign(x=rows["layer"])
        rows["published"] = published.by_layer(rows, measure.info.name)
        if rows["x"].nunique() > 1:
            x = number_axis("layer", rows["x"], may_be_log=False)
            yield measure.figure("layers", "Scores by layer", *measure.curves(grid(results, rows), x, "by layer"))


def along_axes(results: Results) -> Iterator[Figure]:
    """Each score along each number that was swept over; other swept keys are headings of panels or choices."""
    for key in results.varied:
        for measure, rows in measured(results, layered=False):
            rows["x"] = pd.to_numeric(rows[key].astype(str), errors="coerce")  # as text, for True is no number here
            if key in free_keys(results, rows) and rows["x"].notna().all() and rows["x"].nunique() > 1:
                drawn = measure.curves(grid(results, rows, used=[key]), number_axis(key, rows["x"]), f"against {key}")
                yield measure.figure(f"along.{key}", f"Scores along {printable(key)}", *drawn)


def layer_map(results: Results) -> Iterator[Figure]:
    """Where single layers were trained: how the score read at one layer depends on the layer that was trained."""
    for measure, rows in measured(results, layered=True) if "finetune.layers" in results.varied else ():
        rows = rows.assign(x=rows["layer"], y=rows["finetune.layers"].map(trained_layer)).dropna(subset=["y", "mean"])
        if rows["y"].nunique() > 1:
            about = "read at each layer (across) where one layer alone was trained (up)"
            split = grid(results, rows, _MAPS, used=["finetune.layers"])
            drawn = measure.heat_map(split, "layer read", "layer trained", about)
            yield measure.figure("layer_map", "Layer trained, layer read", *drawn)


def trained_layer(layers: Any) -> float:
    """The one layer that `finetune.layers` names; NaN where it names more, or cannot be read."""
    try:
        parsed = parse_layers(layers)
    except ConfigError:
        return np.nan
    return float(parsed[0]) if parsed is not None and len(parsed) == 1 else np.nan


def between_variants(results: Results) -> Iterator[Figure]:
    """Scores that compare two finetuning variants (such as alpha), by task and model, and where the papers' lie."""
    for measure, rows in measured(results, layered=False):
        if not measure.info.reads("other"):
            continue
        rows = rows.dropna(subset="mean")
        rows["about"], places = labelled(results, rows, PLACE)
        bands = [published.band(setting, measure.info.name) for setting in rows.to_dict("records")]
        rows["published"], rows["upper"] = zip(*bands, strict=True)
        look, base = looks(results.variants, rows["variant"]), alt.Chart()
        x = [alt.X("about:N", sort=places, title=None, axis=alt.Axis(labelAngle=-35)), alt.XOffset("variant:N")]
        interval, point = base.mark_rule(strokeWidth=1.3), base.mark_point(filled=True, size=34, opacity=1)
        marks = [
            *zero_rule(rows),
            interval.encode(*x, alt.Y("low:Q"), alt.Y2("high:Q"), look["color"]),
            point.encode(*x, measure.axis(rows), look["color"], look["shape"]),
        ]
        theirs = {
            str((run.config["metric"] or {}).get("compare_with")) for run in results if measure.info.name in run.scores
        }
        caption = f"{measure.info.label} between each variant and {printable(', '.join(sorted(theirs)))}. "
        caption += interval_words(rows)
        if rows["published"].notna().any():
            band = base.mark_rect(color="#888888", opacity=0.22)
            marks.insert(0, band.encode(x[0], alt.Y("published:Q"), alt.Y2("upper:Q")))
            caption += f" Grey: {published.published()['sources']['bands']}."
        yield measure.figure("pairs", "Between variants", grid(results, rows, ()).draw(*marks), caption)


def gradient_norms(results: Results) -> Iterator[Figure]:
    """Gradient norms by layer and demonstration, a map for each variant and place; the mean over a few draws."""
    rows: Frame = own_tables(results, lambda run: run.table("gradient_norms"), ["layer", "demonstration"])
    rows = rows[rows["mean"] > 0].rename(columns={"demonstration": "x", "layer": "y"})
    if len(rows):
        measure = Measure(results, ScoreInfo("gradient_norms", "Gradient norm", (0, np.inf)))
        about, split = "of each demonstration in each trained layer", grid(results, rows, _MAPS)
        drawn = measure.heat_map(split, "demonstration", "layer", about, log=True)
        yield Figure("gradient_norms", "Gradient norms", *drawn)


def by_head(results: Results) -> Iterator[Figure]:
    """Scores of every head, as a map of layers and heads."""
    for name, info in results.scores.items():
        rows = own_tables(results, functools.partial(_heads, name), ["y", "x"], "mean")
        if len(rows):
            measure, split = Measure(results, info), grid(results, rows, _MAPS)
            yield measure.figure("heads", "Scores by head", *measure.heat_map(split, "head", "layer", "of each head"))


def _heads(name: str, run: FinishedRun) -> Frame:
    layers = enumerate((run.scores.get(name) or {}).get("heads") or [])
    cells = [(y, x, value) for y, values in layers for x, value in enumerate(values) if value is not None]
    return pd.DataFrame(cells, columns=["y", "x", "mean"])


def training(results: Results) -> Iterator[Figure]:
    """The loss, and scores where they were taken, after each step of finetuning."""
    losses = own_tables(results, lambda run: run.table("losses"), ["step"], "loss").assign(score="loss")
    taken = own_tables(results, lambda run: run.table("trajectory"), ["step", "score"], "mean")
    rows: Frame = pd.concat([part for part in (losses, taken) if len(part)] or [losses], ignore_index=True)
    for name in rows["score"].unique():
        measure = Measure(results, results.scores.get(name) or ScoreInfo(name, name.capitalize(), (0, np.inf)))
        part = rows[rows["score"] == name].dropna(subset="mean").rename(columns={"step": "x"})
        if part["x"].nunique() > 1:
            x = number_axis("step", part["x"], may_be_log=False)
            drawn = measure.curves(grid(results, part), x, "after each step of finetuning")
            yield replace(measure.figure("training", "During finetuning", *drawn), headline=name == "loss")
