"""Tables that runs hold beside their scores, such as gradient norms and losses, as means over draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from iclgd.results.frame import Results
from iclgd.results.reading import FinishedRun

_MOST_RUNS = 24  # that are read, for each costs a file, or one of each setting where these are more


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
