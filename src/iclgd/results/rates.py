"""Variants at finetuning rates that were chosen on other draws than those shown, and their scores there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import pandas as pd

from iclgd.config.enumerations import Better
from iclgd.results.catalogue import ScoreInfo
from iclgd.results.frame import ALWAYS, Results, overall
from iclgd.runs.varying_keys import as_text
from iclgd.statistics import Comparison, compare, draws_interval, held_out

VARIANT, RATE = "finetune.name", "finetune.lr"


@dataclass(frozen=True)
class Contender:
    """A variant in one setting of everything else, each draw at a rate that the draw itself did not choose."""

    others: Mapping[str, Any]  # the setting without variant and rate, by Hydra name
    variant: str
    rates: Mapping[Any, float]  # the rate of each draw
    # every rate that was run, lowest first, with its row of `Results.settings`; the lowest alone where none matters
    settings: Mapping[float, int]
    values: Mapping[str, Mapping[Any, float]]  # by score and draw, the mean over queries

    @property
    def tried(self) -> tuple[float, ...]:
        """The rates that could be chosen, whether or not their runs are sane."""
        return tuple(self.settings)

    @property
    def at_edge(self) -> bool:
        """Whether a chosen rate is the lowest or the highest tried, so that a better one may lie beyond."""
        return len(self.tried) > 1 and not {self.tried[0], self.tried[-1]}.isdisjoint(self.rates.values())

    def defined(self, score: str) -> list[float]:
        """The values of a score over the draws in which it has one."""
        return [value for value in self.values.get(score, {}).values() if not math.isnan(value)]

    def minus(self, other: Contender, score: str) -> Comparison:
        """The score's difference from another contender's, over the draws of both."""
        chosen = len(self.tried) > 1 or len(other.tried) > 1
        return compare(self.values[score], other.values[score], chosen=chosen)


def contenders(results: Results) -> tuple[list[Contender], list[str]]:
    """Every variant at its rate, where it has one: the only one tried, or for each draw the one that the others choose.

    Returns:
        The contenders, and notes. A note is a sentence for each variant that is no contender, or that stands at the
        lowest rate since its values are the same at every one. A single draw has no best rate, and neither has a
        variant without a rate at which every draw that ran is sane.
    """
    ready, notes = [], []
    for (others, variant), settings in _settings_by_rate(results).items():
        means = _means(results, settings)
        draws = list(dict.fromkeys(draw for by_draw in means.values() for draw in by_draw))
        if len(settings) > 1 and _is_constant(results, means, settings):
            lowest = min(settings)
            label = results.variants[variant].label
            notes.append(f"{label}: the same values at each of {len(settings)} rates, shown at the lowest ({lowest:g})")
            settings = {lowest: settings[lowest]}
        rates: Mapping[Any, float] = dict.fromkeys(draws, next(iter(settings)))
        if len(settings) > 1:
            rates, why_none = _held_out_rates(results, settings, means)
            if why_none:
                notes.append(f"{results.variants[variant].label}: {why_none}")
                continue
        values = {
            score: {draw: by_draw[draw].get(rate, math.nan) for draw, rate in rates.items() if draw in by_draw}
            for score, by_draw in means.items()
        }
        setting = dict(zip(other_keys(results), others, strict=True))
        ready.append(Contender(setting, variant, rates, settings, values))
    return ready, list(dict.fromkeys(notes))


def _held_out_rates(
    results: Results, settings: Mapping[float, int], means: Mapping[str, Mapping[Any, Mapping[float, float]]]
) -> tuple[Mapping[Any, float], str]:
    """The rate of every draw that ran, whatever came of it; or why there is none."""
    rows = set(settings.values())
    ran = dict.fromkeys(run.draw for run, row in zip(results, results.setting_of, strict=True) if row in rows)
    if len(ran) < 2:
        return {}, f"{len(settings)} rates and one draw, so that no rate is best"
    score = _choosing_score(results, means)
    if means and score is None:
        return {}, f"{len(settings)} rates and no headline score of which more or less is better"
    by_draw = {draw: means[score.name].get(draw, {}) if score else {} for draw in ran}
    rates = held_out(by_draw, str(score.better) if score else "")
    return rates, "" if rates else "no rate at which every draw is sane and has a value, so that none can be chosen"


def other_keys(results: Results) -> list[str]:
    """The keys of a setting without the variant, its rate and what it brings."""
    return [key for key in results.keys if key in results.varied or key in ALWAYS if key not in (VARIANT, RATE)]


def at_chosen_rates(results: Results, among: Sequence[Contender]) -> list[dict[str, Any]]:
    """A record for each variant that ran at several rates, and score: its mean over draws at the rates chosen.

    Keys are the setting's, `rates` (the chosen ones), `score`, and `mean`, `std`, `low`, `high`, `draws`, `unit` and
    `layers` as in `Results.summary`.
    """
    several = [one for one in among if len(one.tried) > 1]
    draws = [
        (at, one.settings[rate], results.draws.index(draw))
        for at, one in enumerate(several)
        for draw, rate in one.rates.items()
    ]
    at_rates = results.draw_means.reset_index().merge(pd.DataFrame(draws, columns=["at", "setting", "draw"]))
    records = []
    groups: Any = at_rates.groupby(["at", "score"], observed=True)
    for (at, name), group in groups:
        one, score, means = several[at], results.scores[name], group.dropna(subset="mean")
        trials = (means["n"] - means["undefined"]).astype(int).tolist() if score.share else None
        interval = draws_interval(means["mean"].to_numpy(), score.limits, trials=trials, chosen=True)
        rates = ", ".join(f"{rate:g}" for rate in sorted(set(one.rates.values()))) + " (edge)" * one.at_edge
        numbers = {
            "layers": int(means["layers"].min()) if len(means) else 0,
            "mean": interval.mean,
            "std": means["mean"].std(),
            "low": interval.low,
            "high": interval.high,
            "draws": interval.n,
            "unit": "draws",
        }
        records.append({**one.others, VARIANT: one.variant, "rates": rates, "score": name, **numbers})
    return records


def summary_at_chosen_rates(results: Results) -> Any:
    """`Results.summary` over all layers, with one row, at its chosen rates, for a variant that ran at several."""
    among = contenders(results)[0]
    rows, groups = overall(results.summary), _settings_by_rate(results)
    left_out = [  # other rates of mechanisms that do not depend on it
        row
        for one in among
        for rate, row in groups[tuple(one.others.values()), one.variant].items()
        if rate not in one.settings
    ]
    rows = rows[~_among(rows, results.settings.iloc[left_out], list(results.keys))]
    chosen: Any = pd.DataFrame(at_chosen_rates(results, among))
    if chosen.empty:
        return rows
    chosen = chosen.assign(unstable=0, diverged=0, examples="all", layer=pd.array([pd.NA] * len(chosen), dtype="Int64"))
    rest = rows[~_among(rows, chosen, [*other_keys(results), VARIANT, "score"])]
    return pd.concat([part for part in (rest, chosen) if len(part)], ignore_index=True)


def _among(rows: Any, others: Any, keys: Sequence[str]) -> Any:
    """Which rows have the same values of the keys as one of the others."""
    own, theirs = ([tuple(map(as_text, row)) for row in part[keys].to_numpy()] for part in (rows, others))
    return pd.Series(own, index=rows.index, dtype=object).isin(theirs)


def _settings_by_rate(results: Results) -> dict[tuple[tuple[Any, ...], str], dict[float, int]]:
    """By other settings and variant, each rate with its row of `Results.settings`."""
    order = list(results.variants)
    runs = sorted(zip(results, results.setting_of, strict=True), key=lambda one: order.index(one[0].settings[VARIANT]))
    groups: dict[tuple[tuple[Any, ...], str], dict[float, int]] = {}
    for run, row in runs:
        others = tuple(run.settings.get(key) for key in other_keys(results))
        groups.setdefault((others, run.settings[VARIANT]), {})[run.settings[RATE]] = row
    return {group: dict(sorted(rates.items())) for group, rates in groups.items()}


def _means(results: Results, settings: Mapping[float, int]) -> dict[str, dict[Any, dict[float, float]]]:
    """The means of sane runs by score, draw and rate."""
    means: dict[str, dict[Any, dict[float, float]]] = {}
    for rate, setting in settings.items():
        if setting in results.draw_means.index:
            for (score, draw), mean in results.draw_means.loc[setting, "mean"].items():
                means.setdefault(score, {}).setdefault(results.draws[draw], {})[rate] = mean
    return means


def _is_constant(results: Results, means: Mapping[str, Mapping[Any, Mapping[float, float]]], rates: Sized) -> bool:
    """Whether every draw has the same scores of finetuning at every rate, some of them defined.

    A score may be NaN at every rate, as that of a floor, but not at some only.
    """
    learned = [draws.values() for score, draws in means.items() if results.scores[score].learned]
    values = [pd.Series(by_rate) for draws in learned for by_rate in draws]
    same = all(len(one) == len(rates) and one.nunique(dropna=False) == 1 for one in values)
    return same and any(one.notna().all() for one in values)


def _choosing_score(results: Results, measured: Mapping[str, Any]) -> ScoreInfo | None:
    """The first headline score of finetuning that can be better or worse."""
    scores = (results.scores[name] for name in results.headline if name in measured)
    return next((score for score in scores if score.learned and score.better != Better.neither), None)
