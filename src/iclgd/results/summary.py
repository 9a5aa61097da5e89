"""Scores summarised over draws of demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from iclgd.results.catalogue import ScoreInfo
from iclgd.statistics import draws_interval, draws_intervals

SETTING = ["setting", "score", "examples", "layer"]
COLUMNS = ["mean", "std", "low", "high", "draws", "unit", "unstable", "diverged", "n", "undefined", "layers"]
_COUNTS = ["draws", "n", "undefined", "layers"]


def by_draw(rows: Any) -> pd.DataFrame:
    """The mean over the orders of each draw's demonstrations, indexed by `SETTING` and draw."""
    columns = ["mean", "low", "high", "n", "undefined", "layers"]
    return rows.groupby([*SETTING, "draw"], observed=True)[columns].mean()


def over_draws(rows: Any, scores: Mapping[str, ScoreInfo]) -> pd.DataFrame:
    """One row for each setting, score, examples and layer, as `Results.summary` describes it.

    Args:
        rows: one for each run, score, examples and layer, with the columns `setting`, `draw`, `state` and `learned`.
        scores: what the scores are, by name.
    """
    state = rows["state"].where(rows["learned"], "sane")
    rows = rows.assign(unstable=state == "unstable", diverged=state == "diverged")
    counts = rows.groupby(SETTING, observed=True)[["unstable", "diverged"]].sum()
    rows = rows[state == "sane"]
    sums = rows.groupby(SETTING, observed=True).agg({"n": "sum", "undefined": "sum", "layers": "min"})
    draws: Any = by_draw(rows)
    over = draws.groupby(level=SETTING, observed=True)
    means = over["mean"].agg(mean="mean", std="std", draws="count")
    summary: Any = counts.join([means, over[["low", "high"]].mean(), sums]).reset_index()
    summary[_COUNTS] = summary[_COUNTS].fillna(0).astype(int)
    several = summary["draws"] > 1
    summary["unit"] = np.where(several, "draws", "queries")
    limits = np.array([scores[name].limits for name in summary["score"]]).reshape(-1, 2)
    low, high = draws_intervals(summary["mean"], summary["std"], summary["draws"], limits)
    summary["low"], summary["high"] = summary["low"].mask(several, low), summary["high"].mask(several, high)
    summary = summary.set_index(SETTING)
    shares = [name for name, score in scores.items() if score.share]
    for key, part in draws[draws.index.get_level_values("score").isin(shares)].groupby(level=SETTING, observed=True):
        if len(part) > 1:
            trials = (part["n"] - part["undefined"]).astype(int)
            interval = draws_interval(part["mean"], trials=trials)
            summary.loc[key, ["low", "high"]] = interval.low, interval.high
    return summary.reset_index()
