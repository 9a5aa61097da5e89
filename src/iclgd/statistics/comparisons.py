"""Differences between two variants, paired by draw, and their correction for making many comparisons."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from scipy import stats

from iclgd.statistics.intervals import draws_interval
from iclgd.statistics.power import draws_within
from iclgd.statistics.rates import choice_factor

K = TypeVar("K", bound=Hashable)
D = TypeVar("D", bound=Hashable)
DRAWS_FOR_INTERVAL = 3
DRAWS_FOR_P = 5
WITHIN = 0.05  # half the width of the interval that `needed` draws would give


@dataclass(frozen=True)
class Comparison:
    """The mean difference first - second over the draws that both have."""

    mean: float  # of the differences; NaN without a common draw
    low: float  # of the 95 % interval; NaN, as `high`, below three draws or where all differences are equal
    high: float  # the other end
    # two-sided, of the null hypothesis of no difference; NaN below five draws, or where all differences are
    # equal and not zero, so that there is no spread to judge by
    p: float
    p_holm: float  # p corrected for all comparisons made together; NaN before `holm_corrected`
    draws: int  # how many pairs there are
    # draws with which the interval would be about ± `WITHIN`; None where the spread is not known
    needed: int | None
    # standard deviation of the differences over draws, `choice_factor` counted in; NaN where it is not known
    spread: float = math.nan

    @property
    def marked(self) -> bool:
        """Whether the difference is told apart from chance: corrected p below .05, from five draws or more."""
        return self.draws >= DRAWS_FOR_P and self.p_holm < 0.05


def compare(first: Mapping[D, float], second: Mapping[D, float], *, chosen: bool = False) -> Comparison:
    """Compares two variants by Student's paired t over draws.

    What a draw adds to both variants (easy demonstrations, the same queries) cancels in its difference.

    Args:
        first: a score's mean over queries, by draw. NaN counts as absent. Pass sane draws only.
        second: the same of the other variant; draws that only one of the two has are left out.
        chosen: values stand at rates that other draws chose (`held_out`). The squared error is taken `choice_factor`
            times; without that there are up to six times as many false marks.
    """
    pairs = [(first[draw], second[draw]) for draw in first if draw in second]
    differences = np.array([a - b for a, b in pairs], dtype=np.float64)
    differences = differences[~np.isnan(differences)]
    draws = len(differences)
    interval = draws_interval(differences, chosen=chosen)
    if math.isnan(interval.low):  # too few, or no spread beyond rounding
        same = draws >= DRAWS_FOR_P and not differences.any()
        return Comparison(interval.mean, math.nan, math.nan, 1.0 if same else math.nan, math.nan, draws, None)
    spread = math.sqrt(choice_factor(draws) if chosen else 1) * float(differences.std(ddof=1))
    half = interval.high - interval.mean if draws >= DRAWS_FOR_INTERVAL else math.nan
    p = math.nan
    if draws >= DRAWS_FOR_P:
        p = float(2 * stats.t.sf(abs(interval.mean) / spread * math.sqrt(draws), draws - 1))
    low, high = interval.mean - half, interval.mean + half
    return Comparison(interval.mean, low, high, p, math.nan, draws, draws_within(spread, WITHIN), spread)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the chance of any false positive among all of them stays below the level.

    The i-th smallest of m is multiplied by m - i + 1, never falls below the one before it, and is at most 1. NaN (not
    tested) stays NaN and is not counted.
    """
    p = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return corrected.tolist()


def holm_corrected(comparisons: Mapping[K, Comparison]) -> dict[K, Comparison]:
    """The same comparisons, each with its p corrected for all that were tested."""
    corrected = holm([comparison.p for comparison in comparisons.values()])
    return {key: replace(comparisons[key], p_holm=p) for key, p in zip(comparisons, corrected, strict=True)}
