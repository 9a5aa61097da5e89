"""The figures: each is specified once here, in Altair, for the page, for files and for W&B."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from iclgd.config.bounds import parse_layers
from iclgd.report.chart import Figure
from iclgd.report.ladder import ladder
from iclgd.report.marks import LOG_RATIO, LOGARITHMIC, SETTINGS, Measure, axis_title, measured, number_axis
from iclgd.report.panels import PLACE, Frame, free_keys, grid
from iclgd.report.plane import plane
from iclgd.report.planted_truths import planted_truths
from iclgd.results import published
from iclgd.results.averages import mean_table
from iclgd.results.catalogue import ScoreInfo

if TYPE_CHECKING:
    from iclgd.results.frame import Results
    from iclgd.results.reading import FinishedRun

_MAPS = (*PLACE, "variant")  # what has a map of its own
_RATE, _LAYERS, _SHOTS = "finetune.lr", "finetune.layers", "task.shots"
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
            if key == _SHOTS:
                measure, rows, dots = _with_icl(measure, rows, parts)
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


def _with_icl(measure: Measure, rows: Frame, parts: Mapping[str, tuple[Measure, Frame]]) -> tuple[Measure, Frame, str]:
    """A score of finetuning alone, such as accuracy, with the rows of ICL's and zero-shot's, where they were measured.

    Where a score has no limits, as log-odds have none, ICL's means have a straight line beside them: if every
    demonstration is evidence as good as any other, they lie on one (arXiv 2511.00617).

    Returns the score under the name that it shares with ICL's, the rows, and words on the line. `parts` are all scores
    with their rows, by name.
    """
    twins = {setting: measure.info.of(setting, measure.results.scores.values()) for setting in SETTINGS}
    icl = twins["icl"]
    if icl is None or icl.name not in parts or not measure.info.reads("ft"):
        return measure, rows, ""
    # what the labels share: `Accuracy` of `Accuracy (FT)` and `Accuracy (ICL)`
    letters = zip(measure.info.label, icl.label, strict=False)
    common = "".join(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], letters)).rstrip(" (")
    measure = replace(measure, info=replace(measure.info, label=common or measure.info.label, headline=True))
    beside = [
        _of_setting(measure, parts[twin.name][1], setting, rows)
        for setting, twin in twins.items()
        if twin and twin.name in parts
    ]
    rows = pd.concat([rows, *beside], ignore_index=True)
    words = "" if math.isfinite(sum(measure.info.limits)) else _fit_lines(rows, free_keys(measure.results, rows))
    return measure, rows, words


def _of_setting(measure: Measure, rows: Frame, setting: str, beside: Frame) -> Frame:
    """ICL's or zero-shot's rows, once for each panel: the same for every mechanism, except in draws that it lost."""
    keys = [key for key in free_keys(measure.results, beside) if key != _SHOTS]
    learning = [key for key in keys if key.startswith("finetune.")]  # which ICL does not depend on
    others = [*PLACE, *(key for key in keys if key not in learning)]
    rows = rows.sort_values("draws", ascending=False, kind="stable").drop_duplicates([*others, _SHOTS])
    rows = rows.drop(columns=learning).merge(beside[[*others, *learning]].drop_duplicates(), on=others)
    return rows.assign(**{"finetune.name": setting, "variant": SETTINGS[setting].label})


def _fit_lines(rows: Frame, keys: list[str]) -> str:
    """Set `published` to the straight line through ICL's means in each setting; words on how it was fitted."""
    rows["published"], words = math.nan, {}
    icl = rows[(rows["finetune.name"] == "icl") & rows["mean"].notna()]
    for _, part in icl.groupby([*PLACE, *(key for key in keys if key != _SHOTS)], dropna=False):
        if len(part) > 2:
            shots, means = part[_SHOTS].astype(float), part["mean"]
            slope, start = np.polyfit(shots, means, 1)
            rows.loc[part.index, "published"] = line = start + slope * shots
            spread = means.var(ddof=0)
            explained = f"{1 - ((means - line) ** 2).mean() / spread:.2f}" if means.nunique() > 1 else "undefined"
            words[f"{slope:.3g} a demonstration, R\N{SUPERSCRIPT TWO} {explained}"] = None
    fits = f": {'; '.join(words)}" if 0 < len(words) < 3 else ""
    fitted = "a straight line in the number of demonstrations, fitted to ICL's means by least squares"
    return f"Fine dots: {fitted}{fits}." if words else ""
