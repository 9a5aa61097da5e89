"""Differences between variants paired by draw, their correction for number and their power, and held-out rates.

The best of several noisy means lies above its own expectation, the more so the more rates there are and the noisier a
variant is. Therefore a draw's value is shown at the rate that the other draws chose.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import numpy as np
import pandas as pd
from scipy import optimize, stats

from iclgd.statistics.intervals import choice_factor, draws_interval

K = TypeVar("K", bound=Hashable)
D = TypeVar("D", bound=Hashable)
DRAWS_FOR_INTERVAL = 3
DRAWS_FOR_P = 5
POWER = 0.8  # the chance to find a difference
MOST = 100_000  # draws; more are as good as never


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
        return Comparison(interval.mean, math.nan, math.nan, 1.0 if same else math.nan, math.nan, draws)
    spread = math.sqrt(choice_factor(draws) if chosen else 1) * float(differences.std(ddof=1))
    half = interval.high - interval.mean if draws >= DRAWS_FOR_INTERVAL else math.nan
    p = math.nan
    if draws >= DRAWS_FOR_P:
        p = float(2 * stats.t.sf(abs(interval.mean) / spread * math.sqrt(draws), draws - 1))
    low, high = interval.mean - half, interval.mean + half
    return Comparison(interval.mean, low, high, p, math.nan, draws, spread)


def holm_corrected(comparisons: Mapping[K, Comparison]) -> dict[K, Comparison]:
    """The same comparisons, each with its p corrected for all that were tested (Holm 1979, step-down).

    The chance of any false mark among them stays below the level. The i-th smallest p of m is multiplied by m - i + 1,
    never falls below the one before it, and is at most 1. NaN (not tested) stays NaN and is not counted.
    """
    p = np.array([comparison.p for comparison in comparisons.values()])
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    p[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return {key: replace(comparisons[key], p_holm=float(one)) for key, one in zip(comparisons, p, strict=True)}


def smallest_difference(spread: float, draws: int, alpha: float = 0.05) -> float:
    """The smallest true difference that a two-sided paired t test at level alpha finds four times in five.

    Solves P(|T| > t(1 - alpha/2)) = .8 for the noncentrality of Student's t, √draws · difference / spread, where the
    spread is the standard deviation of the difference over two or more draws.
    """
    degrees = draws - 1
    critical = float(stats.t.ppf(1 - alpha / 2, degrees))
    # The power is integrated over quantiles of χ²: scipy's noncentral t loses all digits for few degrees and large
    # arguments.
    quantiles = (np.arange(2000) + 0.5) / 2000
    scale = np.sqrt(stats.chi2.ppf(quantiles, degrees) / degrees) * critical

    def missing(noncentrality: float) -> float:
        power = stats.norm.sf(scale - noncentrality) + stats.norm.cdf(-scale - noncentrality)
        return float(np.mean(power)) - POWER

    root = cast(float, optimize.brentq(missing, 0.0, 2 * float(scale.max()) + 10))
    return root * spread / math.sqrt(draws)


def draws_to_detect(difference: float, spread: float, alpha: float = 0.05) -> int:
    """The fewest draws with which a difference is found four times in five, at most `MOST`."""
    candidates = range(2, MOST)
    return 2 + bisect.bisect_left(
        candidates, True, key=lambda draws: smallest_difference(spread, draws, alpha) <= difference
    )


def held_out(scores: Mapping[D, Mapping[float, float]], better: str = "higher") -> dict[D, float]:
    """Every draw's rate: the best by the mean over the other draws (leave-one-out), the lowest of equally good ones.

    If the draws are independent, their values at these rates are unbiased. A rate may be chosen if every draw has a
    defined score there.

    Args:
        scores: by draw and rate the mean over queries. A draw that diverged or is unstable at a rate is absent, or NaN,
            there.
        better: "higher" or "lower" scores.

    Returns:
        The rates by draw; none for a single draw, and none where no rate can be chosen.
    """
    table = pd.DataFrame(list(scores.values()), dtype=float).sort_index(axis=1)
    complete = table.loc[:, np.isfinite(table).all()]
    if len(scores) < 2 or complete.empty:
        return {}
    best = "idxmin" if better == "lower" else "idxmax"
    return {draw: float(getattr(complete.drop(row).mean(), best)()) for row, draw in enumerate(scores)}
