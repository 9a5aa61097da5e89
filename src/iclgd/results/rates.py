"""Variants at finetuning rates that were chosen on other draws than those shown, and their scores there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from iclgd.config.enumerations import Better
from iclgd.results.averages import by_draw, over_draws
from iclgd.results.catalogue import ScoreInfo
from iclgd.results.frame import ALWAYS, SEES, Results, with_settings
from iclgd.statistics import Comparison, Interval, compare, draws_interval, held_out

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

    def interval(self, score: ScoreInfo) -> Interval:
        """The score's mean over draws with its interval, which counts the error of a choice among rates."""
        return draws_interval(self.defined(score.name), score.limits, chosen=len(self.tried) > 1)

    def minus(self, other: Contender, score: str) -> Comparison:
        """The score's difference from another contender's, over the draws of both."""
        chosen = len(self.tried) > 1 or len(other.tried) > 1
        return compare(self.values[score], other.values[score], chosen=chosen)


def contenders(results: Results) -> tuple[list[Contender], list[str]]:
    """Every variant at its rate, where it has one: the only one tried, or for each draw the one that the others choose.

    Returns:
        The contenders, and notes. A note is a sentence for each variant that is not a contender, or that stands at the
        lowest rate since its values are the same at every one. A single draw has no best rate, and neither has a
        variant without a rate at which every draw that ran is sane.
    """
    rows = results.over_all
    means = by_draw(rows[rows["state"] == "sane"])["mean"].reset_index()
    ready, notes = [], []
    for (others, variant), settings in _settings_by_rate(results).items():
        label = results.variants[variant].label
        rate_of = {row: rate for rate, row in settings.items()}
        own: Any = means[means["setting"].isin(rate_of)]
        own = own.assign(rate=own["setting"].map(rate_of), draw=own["draw"].map(results.draws.__getitem__))
        by_rate: Any = own.set_index(["score", "draw", "rate"])["mean"].unstack("rate").reindex(columns=[*settings])
        if len(settings) > 1 and _is_constant(results, by_rate):
            lowest = next(iter(settings))
            notes.append(f"{label}: the same values at each of {len(settings)} rates, shown at the lowest ({lowest:g})")
            settings = {lowest: settings[lowest]}
        rates: Mapping[Any, float] = dict.fromkeys(by_rate.index.get_level_values("draw"), next(iter(settings)))
        if len(settings) > 1:
            rates, why_none = _held_out_rates(results, settings, by_rate)
            if why_none:
                notes.append(f"{label}: {why_none}")
                continue
        values: dict[str, dict[Any, float]] = {}
        for (score, draw), row in by_rate.iterrows():
            values.setdefault(score, {})[draw] = row[rates[draw]]
        setting = dict(zip(other_keys(results), others, strict=True))
        ready.append(Contender(setting, variant, rates, settings, values))
    return ready, list(dict.fromkeys(notes))


def _settings_by_rate(results: Results) -> dict[tuple[tuple[Any, ...], str], dict[float, int]]:
    """By other settings and variant, each rate with its row of `Results.settings`."""
    order = list(results.variants)
    groups: dict[tuple[tuple[Any, ...], str], dict[float, int]] = {}
    for row, values in enumerate(results.setting_values):
        setting = dict(zip(results.keys, values, strict=True))
        others = tuple(setting[key] for key in other_keys(results))
        groups.setdefault((others, setting[VARIANT]), {})[setting[RATE]] = row
    by_variant = sorted(groups, key=lambda group: order.index(group[1]))
    return {group: dict(sorted(groups[group].items())) for group in by_variant}


def _is_constant(results: Results, by_rate: Any) -> bool:
    """Whether every draw has the same scores of finetuning at every rate, some of them defined.

    A score may be NaN at every rate, as that of a floor, but not at some only.
    """
    learned = [name for name, score in results.scores.items() if score.learned]
    values = by_rate[by_rate.index.get_level_values("score").isin(learned)]
    return bool((values.nunique(axis=1, dropna=False) == 1).all() and values.notna().any(axis=None))


def _held_out_rates(results: Results, settings: Mapping[float, int], by_rate: Any) -> tuple[Mapping[Any, float], str]:
    """The rate of every draw that ran, whatever came of it; or why there is none."""
    rows = set(settings.values())
    ran = dict.fromkeys(run.draw for run, row in zip(results, results.setting_of, strict=True) if row in rows)
    if len(ran) < 2:
        return {}, f"{len(settings)} rates and one draw, so that no rate is best"
    measured = set(by_rate.index.get_level_values("score"))
    scores = [results.scores[name] for name in results.headline if name in measured]
    scores = [score for score in scores if score.learned and score.better != Better.neither]
    if measured and not scores:
        return {}, f"{len(settings)} rates and no headline score of which more or less is better"
    rates: Mapping[Any, float] = {}
    if scores:
        values = by_rate.loc[scores[0].name].to_dict("index")
        rates = held_out({draw: values.get(draw, {}) for draw in ran}, str(scores[0].better))
    return rates, "" if rates else "no rate at which every draw is sane and has a value, so that none can be chosen"


def other_keys(results: Results) -> list[str]:
    """The keys of a setting without the variant, its rate and what it brings."""
    return [key for key in results.keys if key in results.varied or key in ALWAYS if key not in (VARIANT, RATE)]


def at_chosen_rates(results: Results, among: Sequence[Contender]) -> pd.DataFrame:
    """As `Results.summary` over all layers: each variant that ran at several rates, every draw at its chosen one.

    `rates` has the rates chosen in place of `finetune.lr`, and `of_draws` their number.
    """
    several = [one for one in among if len(one.tried) > 1]
    at_rates = [
        (at, one.settings[rate], results.draws.index(draw))
        for at, one in enumerate(several)
        for draw, rate in one.rates.items()
    ]
    pairs = pd.DataFrame(at_rates, columns=["at", "setting", "draw"], dtype=int)
    rows = results.over_all.merge(pairs, on=["setting", "draw"])
    summary = over_draws(rows.assign(setting=rows["at"]), results.scores, chosen=True)
    about = [
        {
            **one.others,
            VARIANT: one.variant,
            **({SEES: results.variants[one.variant].sees} if SEES in results.keys else {}),
            "rates": ", ".join(f"{rate:g}" for rate in sorted(set(one.rates.values()))) + " (edge)" * one.at_edge,
            "of_draws": len(one.rates),
        }
        for one in several
    ]
    return with_settings(summary, pd.DataFrame(about)) if about else pd.DataFrame()


def summary_at_chosen_rates(results: Results) -> Any:
    """`Results.summary` over all layers, with one row, at its chosen rates, for a variant that ran at several."""
    among = contenders(results)[0]
    groups = _settings_by_rate(results)
    replaced = {row for one in among for row in groups[tuple(one.others.values()), one.variant].values()}
    replaced -= {row for one in among if len(one.tried) == 1 for row in one.settings.values()}
    rest = results.over_draws
    rest = rest[(rest["layer"] < 0) & (rest["examples"] == "all") & ~rest["setting"].isin(replaced)]
    rest = with_settings(rest, results.settings)
    chosen = at_chosen_rates(results, among)
    return pd.concat([part for part in (rest, chosen) if len(part)], ignore_index=True)
