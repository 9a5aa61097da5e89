"""What a number of draws can tell apart, from how far the draws' differences spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy import optimize, stats

from iclgd.statistics.intervals import UPPER

TARGET = 0.05  # a difference worth finding
MOST = 100_000  # draws; more are as good as never


@dataclass(frozen=True)
class Power:
    """What a design can tell apart."""

    draws: int  # how many there are
    # standard deviation over draws of the difference between two variants; the median over the comparisons
    spread: float
    # the smallest difference found with the power asked for; NaN below two draws or without a spread
    smallest: float
    # draws with which a difference of `target` would be found with that power; None if unknown
    needed: int | None
    target: float  # that difference
    tests: int  # how many comparisons share the error rate


def design_power(spreads: Sequence[float], draws: int, *, tests: int = 1) -> Power:
    """What comparisons with these spreads can tell, from this many draws.

    Args:
        spreads: standard deviations over draws of paired differences, one for each comparison; NaN and 0 are left out.
        draws: pairs in each comparison.
        tests: comparisons corrected together; each is judged at .05 / tests, which is Holm's first step.
    """
    known = [spread for spread in spreads if spread > 0]
    spread = float(np.median(known)) if known else math.nan
    alpha = 0.05 / max(tests, 1)
    needed = draws_to_detect(TARGET, spread, alpha)
    return Power(draws, spread, smallest_difference(spread, draws, alpha), needed, TARGET, tests)


def smallest_difference(spread: float, draws: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided paired t test finds with the given power.

    Solves P(|T| > t(1 - alpha/2)) = power for the noncentrality of Student's t, √draws · difference / spread.

    Returns:
        A positive difference in the score's unit; NaN below two draws or where the spread is NaN.
    """
    if draws < 2 or math.isnan(spread):
        return math.nan
    degrees = draws - 1
    critical = float(stats.t.ppf(1 - alpha / 2, degrees))

    def missing(noncentrality: float) -> float:
        return _power(noncentrality, critical, degrees) - power

    upper = 1.0
    while missing(upper) < 0:
        upper *= 2
    root = optimize.brentq(missing, 0.0, upper)
    return cast(float, root) * spread / math.sqrt(draws)


def draws_to_detect(difference: float, spread: float, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """The fewest draws with which a difference is found with the given power; None where the spread is NaN."""
    return _fewest(lambda draws: smallest_difference(spread, draws, alpha, power) <= difference, spread)


def draws_within(spread: float, half: float) -> int | None:
    """The fewest draws with which the t interval of a mean reaches no further than ± half; None if spread is NaN."""
    return _fewest(lambda n: float(stats.t.ppf(UPPER, n - 1)) * spread / math.sqrt(n) <= half, spread)


def _power(noncentrality: float, critical: float, degrees: int) -> float:
    """P(|T| > critical) by T = (Z + noncentrality) / √(χ²/df), integrated over the quantiles of χ².

    scipy's noncentral t loses all digits for few degrees and large arguments.
    """
    quantiles = (np.arange(2000) + 0.5) / 2000
    scale = np.sqrt(stats.chi2.ppf(quantiles, degrees) / degrees) * critical
    return float(np.mean(stats.norm.sf(scale - noncentrality) + stats.norm.cdf(-scale - noncentrality)))


def _fewest(enough: Callable[[int], bool], spread: float) -> int | None:
    if math.isnan(spread):
        return None
    low, high = 1, 2
    while not enough(high):
        low, high = high, high * 2
        if high > MOST:
            return MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
