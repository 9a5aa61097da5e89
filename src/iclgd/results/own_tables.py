"""What runs hold beside their scores, such as gradient norms and losses, as means over draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from iclgd.results.frame import Results
from iclgd.results.reading import FinishedRun

_MOST_RUNS = 24  # that are read, first draws first, for each costs a file


def own_tables(
    results: Results, read: Callable[[FinishedRun], Any], by: Sequence[str], value: str = "value"
) -> pd.DataFrame:
    """A table of some sane runs, its mean over everything but `by`, and then over draws.

    Returns:
        Columns `mean`, `draws`, `variant`, those of `by` and every setting; no rows where no run has such a table.
    """
    parts = []
    runs = sorted(zip(results.setting_of, results, strict=True), key=lambda pair: (str(pair[1].draw), pair[0]))
    for at, run in runs[:_MOST_RUNS]:
        table = read(run) if run.state == "sane" else None
        if table is not None and len(table):
            mean = table.groupby(by, as_index=False, sort=False)[value].mean().rename(columns={value: "mean"})
            settings = results.settings.iloc[at].to_dict()
            parts.append(mean.assign(draw=str(run.draw), variant=results.labels[settings["finetune.name"]], **settings))
    if not parts:
        return pd.DataFrame(columns=[*by, "mean", "draws", "variant"])
    rows: Any = pd.concat(parts, ignore_index=True)
    groups = rows.groupby([key for key in rows if key not in ("mean", "draw")], sort=False, dropna=False)
    return groups.agg(mean=("mean", "mean"), draws=("draw", "nunique")).reset_index()
