"""Scores of variants that ran at several rates, at those that the other draws chose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from iclgd.results.conclusions import RATE, VARIANT, Contender, contenders, other_keys
from iclgd.results.frame import Results, whole
from iclgd.runs import varying_keys
from iclgd.statistics import draws_interval


def at_chosen_rates(results: Results, among: Sequence[Contender]) -> list[dict[str, Any]]:
    """A record for each variant that ran at several rates, and score: its mean over draws at the rates chosen.

    Keys are the setting's, `rates` (the chosen ones), `score`, and `mean`, `std`, `low`, `high`, `draws` and `unit` as
    in `Results.summary`.
    """
    records, trials = [], _trials(results)
    for one in (one for one in among if len(one.tried) > 1):
        rates = ", ".join(f"{rate:g}" for rate in sorted(set(one.rates.values()))) + " (edge)" * one.at_edge
        about = {**one.others, VARIANT: one.variant, "rates": rates}
        for name in (name for name in results.scores if name in one.values):
            known = {draw: value for draw, value in one.values[name].items() if not math.isnan(value)}
            values, info, n = np.array(list(known.values())), results.scores[name], len(known)
            at = [(*one.others.values(), one.variant, one.rates[draw], draw, name) for draw in known]
            over = draws_interval(
                values, info.limits, trials=[trials[key] for key in at] if info.share else None, chosen=True
            )
            mean, spread = (float(values.mean()) if n else math.nan), (float(values.std(ddof=1)) if n > 1 else math.nan)
            numbers = {"mean": mean, "std": spread, "low": over.low, "high": over.high, "draws": n, "unit": "draws"}
            records.append(about | {"score": name} | numbers)
    return records


def _trials(results: Results) -> dict[tuple[Any, ...], int]:
    """By setting, variant, rate, draw and share, how many queries have a defined value."""
    shares = [name for name, info in results.scores.items() if info.share]
    keys = [*other_keys(results), VARIANT, RATE]
    return {
        (*(run.settings.get(key) for key in keys), run.draw, name): record.n - record.undefined
        for run in results
        for name in shares
        if (record := run.records.get((name, "all")))
    }


def once(results: Results) -> Any:
    """`Results.summary` over all layers, with one row, at its chosen rates, for a variant that ran at several."""
    rows = whole(results.summary)
    chosen: Any = pd.DataFrame(at_chosen_rates(results, contenders(results)[0]))
    if chosen.empty:
        return rows
    chosen = chosen.assign(unstable=0, diverged=0, examples="all", layer=pd.array([pd.NA] * len(chosen), dtype="Int64"))
    keys = [*other_keys(results), VARIANT, "score"]
    each, told = ([tuple(map(varying_keys.as_text, row)) for row in part[keys].to_numpy()] for part in (rows, chosen))
    rest = rows[~pd.Series(each, index=rows.index).isin(told)]
    return pd.concat([part for part in (rest, chosen) if len(part)], ignore_index=True)
