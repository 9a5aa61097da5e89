"""Variants at finetuning rates that the draws they are shown for did not choose, and their scores there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from iclgd.config.enumerations import Better
from iclgd.results.frame import ALWAYS, Results, whole
from iclgd.runs.varying_keys import as_text
from iclgd.statistics import HeldOut, draws_interval, held_out

VARIANT, RATE = "finetune.name", "finetune.lr"
Draws = dict[Any, float]  # by draw
Scores = dict[str, Draws]  # by score


@dataclass(frozen=True)
class Contender:
    """A variant in one setting of everything else, at rates that were not chosen by what is shown of it."""

    others: Mapping[str, Any]  # the setting without variant and rate, by Hydra name
    variant: str
    rates: Mapping[Any, float]  # the rate of each draw
    tried: tuple[float, ...]  # every rate that was run
    values: Mapping[str, Mapping[Any, float]]  # by score and draw, the mean over queries
    # whether a chosen rate is the lowest or the highest tried, so that a better one may lie beyond
    at_edge: bool = False


def contenders(results: Results) -> tuple[list[Contender], list[str]]:
    """Every variant at its rate, where it has one: the only one tried, or for each draw the one that the others choose.

    Returns:
        The contenders, and a sentence for each variant that has none: a single draw has no best rate, and neither has
        a variant without a rate at which every draw is sane.
    """
    ready, notes = [], []
    for (others, variant), by_rate in _by_rate(results).items():
        setting = dict(zip(other_keys(results), others, strict=True))
        tried = tuple(sorted(by_rate))
        if len(tried) == 1:
            values = by_rate[tried[0]]
            rates = {draw: tried[0] for by_draw in values.values() for draw in by_draw}
            ready.append(Contender(setting, variant, rates, tried, values))
            continue
        choice = _choose(results, by_rate)
        label = results.variants[variant].label
        if choice is None:
            notes.append(f"{label}: {len(tried)} rates and one draw, so that no rate is best")
        elif not choice.values:
            notes.append(f"{label}: no rate at which every draw is sane, so that none can be chosen")
        else:
            values = {
                score: {draw: by_rate[rate].get(score, {}).get(draw, math.nan) for draw, rate in choice.chosen.items()}
                for score in dict.fromkeys(score for scores in by_rate.values() for score in scores)
            }
            ready.append(Contender(setting, variant, choice.chosen, tried, values, choice.at_edge))
    return ready, list(dict.fromkeys(notes))


def other_keys(results: Results) -> list[str]:
    """The keys of a setting without the variant, its rate and what it brings."""
    return [key for key in results.keys if key in results.varied or key in ALWAYS if key not in (VARIANT, RATE)]


def at_chosen_rates(results: Results, among: Sequence[Contender]) -> list[dict[str, Any]]:
    """A record for each variant that ran at several rates, and score: its mean over draws at the rates chosen.

    Keys are the setting's, `rates` (the chosen ones), `score`, and `mean`, `std`, `low`, `high`, `draws`, `unit` and
    `layers` as in `Results.summary`.
    """
    records, counts = [], _counts(results)
    for one in (one for one in among if len(one.tried) > 1):
        rates = ", ".join(f"{rate:g}" for rate in sorted(set(one.rates.values()))) + " (edge)" * one.at_edge
        setting = {**one.others, VARIANT: one.variant, "rates": rates}
        for name in (name for name in results.scores if name in one.values):
            defined = {draw: value for draw, value in one.values[name].items() if not math.isnan(value)}
            values, info, n = np.array(list(defined.values())), results.scores[name], len(defined)
            keys = [(*one.others.values(), one.variant, one.rates[draw], draw, name) for draw in defined]
            trials = [counts[key][0] for key in keys] if info.share else None
            layers = min((counts[key][1] for key in keys), default=0)
            over = draws_interval(values, info.limits, trials=trials, chosen=True)
            mean, spread = (float(values.mean()) if n else math.nan), (float(values.std(ddof=1)) if n > 1 else math.nan)
            numbers = {"mean": mean, "std": spread, "low": over.low, "high": over.high, "draws": n, "unit": "draws"}
            records.append(setting | {"score": name, "layers": layers} | numbers)
    return records


def once(results: Results) -> Any:
    """`Results.summary` over all layers, with one row, at its chosen rates, for a variant that ran at several."""
    rows = whole(results.summary)
    chosen: Any = pd.DataFrame(at_chosen_rates(results, contenders(results)[0]))
    if chosen.empty:
        return rows
    chosen = chosen.assign(unstable=0, diverged=0, examples="all", layer=pd.array([pd.NA] * len(chosen), dtype="Int64"))
    keys = [*other_keys(results), VARIANT, "score"]
    own, replaced = ([tuple(map(as_text, row)) for row in part[keys].to_numpy()] for part in (rows, chosen))
    rest = rows[~pd.Series(own, index=rows.index).isin(replaced)]
    return pd.concat([part for part in (rest, chosen) if len(part)], ignore_index=True)


def _by_rate(results: Results) -> dict[tuple[tuple[Any, ...], str], dict[float, Scores]]:
    """By other settings and variant: the means of sane runs by rate, score and draw, orders of one draw averaged."""
    groups: dict[Any, dict[float, dict[str, dict[Any, list[float]]]]] = {}
    order = list(results.variants)
    for run in sorted(results.runs, key=lambda run: order.index(run.settings[VARIANT])):
        others = tuple(run.settings.get(key) for key in other_keys(results))
        by_score = groups.setdefault((others, run.settings[VARIANT]), {}).setdefault(run.settings[RATE], {})
        for score in results.scores if run.state == "sane" else ():
            if (score, "all") in run.records:
                by_score.setdefault(score, {}).setdefault(run.draw, []).append(results.mean(run, score))
    return {
        group: {
            rate: {
                score: {draw: float(np.mean(values)) for draw, values in by_draw.items()}
                for score, by_draw in scores.items()
            }
            for rate, scores in by_rate.items()
        }
        for group, by_rate in groups.items()
    }


def _choose(results: Results, by_rate: Mapping[float, Scores]) -> HeldOut[Any] | None:
    """For each draw the rate that the others choose, by the first headline score that can be better or worse.

    None where no such score was measured, or there is only one draw.
    """
    measured = {score for scores in by_rate.values() for score in scores}
    candidates = (results.scores[name] for name in results.headline if name in measured)
    score = next((info for info in candidates if info.learned and info.better != Better.neither), None)
    if score is None:
        return None
    draws = dict.fromkeys(draw for scores in by_rate.values() for by_draw in scores.values() for draw in by_draw)
    table = {
        draw: {rate: scores.get(score.name, {}).get(draw, math.nan) for rate, scores in by_rate.items()}
        for draw in draws
    }
    return held_out(table, str(score.better))


def _counts(results: Results) -> dict[tuple[Any, ...], tuple[int, int]]:
    """By setting, variant, rate, draw and score: the defined values, which are a share's queries, and the layers."""
    keys = [*other_keys(results), VARIANT, RATE]
    return {
        (*(run.settings.get(key) for key in keys), run.draw, name): (record.n - record.undefined, len(record.over))
        for run in results
        for (name, examples), record in results.records[run.folder].items()
        if examples == "all"
    }
