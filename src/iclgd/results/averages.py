"""Means over layers, by one rule for all runs that are compared, and over draws of demonstrations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from iclgd.config.bounds import parse_layers
from iclgd.results.catalogue import ScoreInfo
from iclgd.results.reading import FinishedRun
from iclgd.statistics import choice_factor, draws_interval, mean_interval, shares_interval, t_ends

if TYPE_CHECKING:
    from iclgd.results.frame import Results  # which imports this module

SETTING = ["setting", "score", "examples", "layer"]
COLUMNS = ["mean", "std", "low", "high", "draws", "unit", "unstable", "diverged", "n", "undefined", "layers"]
_MOST_RUNS = 24  # whose tables are read, for each costs a file, or one of each setting where these are more
_COUNTS = ["draws", "n", "undefined", "layers"]
_SCORE_OF_RUN = ["run", "score", "examples"]


class Layers(StrEnum):
    """The layers that a mean is over."""

    common = "common"  # those in which every compared setting of the model has a value
    trained = "trained"  # those that the run's finetuning trained
    all = "all"  # every layer in which the run has a value


def over_layers(rows: Any, runs: Sequence[FinishedRun], rule: Layers, scores: Mapping[str, ScoreInfo]) -> pd.DataFrame:
    """The rows with means over the layers of the rule, where those are not all in which the run has a value.

    A score that is undefined below the first trained layer would otherwise be averaged over other layers in each
    setting. Runs that are not sane, and runs without any value, do not narrow the layers of the others, and planted
    truths not those of ICL. Where no layer is common, each run's mean is over its own.

    The rows are `rows_of` the runs with the column `state`; `counted` is set for the layers that a mean is over.
    """
    rows = rows.assign(counted=(rows["layer"] >= 0) & rows["mean"].notna())
    values = rows[rows["counted"]]
    if rule is Layers.common:
        model = values["run"].map([run.settings["model.name"] for run in runs].__getitem__)
        planted = values["run"].map([run.planted for run in runs].__getitem__)
        by_score = [model, planted, values["score"], values["examples"]]
        sane = values["run"].where(values["state"] == "sane")
        with_layer, with_any = (
            sane.groupby(by, observed=True).transform("nunique") for by in ([*by_score, values["layer"]], by_score)
        )
        counts = with_layer == with_any
        counts |= ~counts.groupby(by_score, observed=True).transform("any")
    elif rule is Layers.trained:
        trained = [parse_layers(run.settings["finetune.layers"]) for run in runs]
        pairs = zip(values["run"], values["layer"], strict=True)
        counts = pd.Series([trained[run] is None or layer in trained[run] for run, layer in pairs], values.index)
    else:
        return rows
    rows.loc[values.index, "counted"] = counts
    narrowed = ~counts.groupby([values[key] for key in _SCORE_OF_RUN], observed=True).transform("all")
    means = {}
    for key, part in values.assign(counts=counts)[narrowed].groupby(_SCORE_OF_RUN, observed=True):
        run, score, examples = key
        counted = part[part["counts"]]
        interval = (math.nan, math.nan)
        if examples == "all" and len(counted):
            interval = _over_queries(runs[run], scores[score], counted["layer"].tolist())
        mean = math.fsum(counted["mean"]) / len(counted) if len(counted) else math.nan
        means[(*key, -1)] = (mean, *interval, len(counted))
    if not means:
        return rows
    rows = rows.set_index([*_SCORE_OF_RUN, "layer"])
    rows.loc[list(means), ["mean", "low", "high", "layers"]] = list(means.values())
    return rows.reset_index().astype({"layers": int})


def _over_queries(run: FinishedRun, score: ScoreInfo, layers: list[int]) -> tuple[float, float]:
    """The interval over queries of a mean over these layers; NaN where single queries are not at hand."""
    values = run.values.get(score.name)
    if values is None or values.shape[1] != len(run.layers(score.name)):
        return math.nan, math.nan
    limits = score.limits if math.isfinite(score.limits[1] - score.limits[0]) else None
    part = values[:, layers]
    interval = shares_interval(part) if score.share else mean_interval(part, limits)
    return interval.low, interval.high


def by_draw(rows: Any) -> pd.DataFrame:
    """The mean over the orders of each draw's demonstrations, indexed by `SETTING` and draw."""
    columns = ["mean", "low", "high", "n", "undefined", "layers"]
    return rows.groupby([*SETTING, "draw"], observed=True)[columns].mean()


def over_draws(rows: Any, scores: Mapping[str, ScoreInfo], chosen: bool = False) -> pd.DataFrame:
    """One row for each setting, score, examples and layer, as `Results.summary` describes it.

    With `chosen`, every draw is at a rate that the other draws chose (`choice_factor`).
    """
    state = rows["state"].where(rows["learned"], "sane")
    rows = rows.assign(unstable=state == "unstable", diverged=state == "diverged")
    counts = rows.groupby(SETTING, observed=True)[["unstable", "diverged"]].sum()
    rows = rows[state == "sane"]
    rows["layers"] = rows["layers"].where(rows["mean"].notna())  # a draw without a value is over no layers
    sums = rows.groupby(SETTING, observed=True).agg({"n": "sum", "undefined": "sum", "layers": "min"})
    draws: Any = by_draw(rows)
    over = draws.groupby(level=SETTING, observed=True)
    means = over["mean"].agg(mean="mean", std="std", draws="count")
    summary: Any = counts.join([means, over[["low", "high"]].mean(), sums])
    summary[_COUNTS] = summary[_COUNTS].fillna(0).astype(int)
    several = summary["draws"] > 1
    summary["unit"] = np.where(several, "draws", "queries")
    limits = np.array([scores[name].limits for name in summary.index.get_level_values("score")]).reshape(-1, 2)
    mean, std, count = (summary[column].to_numpy(float) for column in ("mean", "std", "draws"))
    low, high = t_ends(mean, std, count, (limits[:, 0], limits[:, 1]), choice_factor(count) if chosen else 1)
    summary["low"], summary["high"] = summary["low"].mask(several, low), summary["high"].mask(several, high)
    shares = [name for name, score in scores.items() if score.share]
    for key, part in draws[draws.index.get_level_values("score").isin(shares)].groupby(level=SETTING, observed=True):
        if part["mean"].count() > 1:
            trials = (part["n"] - part["undefined"]).astype(int).tolist()
            interval = draws_interval(part["mean"].to_numpy(), trials=trials, chosen=chosen)
            summary.loc[key, ["low", "high"]] = interval.low, interval.high
    return summary.reset_index()


def mean_table(
    results: Results, read: Callable[[FinishedRun], Any], by: Sequence[str], value: str = "value"
) -> pd.DataFrame:
    """The mean of a table of sane runs over everything but `by`, and then over draws.

    Returns:
        Columns `mean`, `draws`, `seed` (of the first of them), `variant`, those of `by` and every setting; no rows
        where no run has such a table.
    """
    parts = []
    for at in first_draws(results, [run.state == "sane" for run in results], _MOST_RUNS):
        run, table = results[at], read(results[at])
        if table is not None and len(table):
            mean = table.groupby(by, as_index=False, sort=False)[value].mean().rename(columns={value: "mean"})
            settings = results.settings.iloc[results.setting_of[at]].to_dict()
            about = {"variant": results.labels[settings["finetune.name"]], "seed": run.settings["seed"]}
            parts.append(mean.assign(draw=str(run.draw), **about, **settings))
    if not parts:
        return pd.DataFrame(columns=[*by, "mean", "draws", "seed", "variant"])
    rows: Any = pd.concat(parts, ignore_index=True)
    groups = rows.groupby([key for key in rows if key not in ("mean", "draw", "seed")], sort=False, dropna=False)
    return groups.agg(mean=("mean", "mean"), draws=("draw", "nunique"), seed=("seed", "first")).reset_index()


def first_draws(results: Results, wanted: Sequence[bool], most: int) -> list[int]:
    """The positions of the wanted runs of the first draws of every setting: about as many as `most`, one at least."""
    settings: Any = pd.Series(results.setting_of)[list(wanted)]
    draws = settings.groupby(settings).cumcount()
    return draws.index[draws < max(1, most // max(1, settings.nunique()))].tolist()
