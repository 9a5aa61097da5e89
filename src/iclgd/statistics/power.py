"""What a number of draws can tell apart, from how far the draws' differences spread."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import numpy as np
from scipy import optimize, stats

from iclgd.statistics.intervals import UPPER

POWER = 0.8  # the chance to find a difference
MOST = 100_000  # draws; more are as good as never


def smallest_difference(spread: float, draws: int, alpha: float = 0.05) -> float:
    """The smallest true difference that a two-sided paired t test at level alpha finds four times in five.

    Solves P(|T| > t(1 - alpha/2)) = .8 for the noncentrality of Student's t, √draws · difference / spread, where the
    spread is the standard deviation of the difference over two or more draws.
    """
    degrees = draws - 1
    critical = float(stats.t.ppf(1 - alpha / 2, degrees))

    def missing(noncentrality: float) -> float:
        return _power(noncentrality, critical, degrees) - POWER

    upper = 1.0
    while missing(upper) < 0:
        upper *= 2
    root = optimize.brentq(missing, 0.0, upper)
    return cast(float, root) * spread / math.sqrt(draws)


def draws_to_detect(difference: float, spread: float, alpha: float = 0.05) -> int:
    """The fewest draws with which a difference is found four times in five."""
    return _fewest(lambda draws: smallest_difference(spread, draws, alpha) <= difference)


def draws_within(spread: float, half: float) -> int:
    """The fewest draws with which the t interval of a mean reaches no further than ± half."""
    return _fewest(lambda n: float(stats.t.ppf(UPPER, n - 1)) * spread / math.sqrt(n) <= half)


def _power(noncentrality: float, critical: float, degrees: int) -> float:
    """P(|T| > critical) by T = (Z + noncentrality) / √(χ²/df), integrated over the quantiles of χ².

    scipy's noncentral t loses all digits for few degrees and large arguments.
    """
    quantiles = (np.arange(2000) + 0.5) / 2000
    scale = np.sqrt(stats.chi2.ppf(quantiles, degrees) / degrees) * critical
    return float(np.mean(stats.norm.sf(scale - noncentrality) + stats.norm.cdf(-scale - noncentrality)))


def _fewest(enough: Callable[[int], bool]) -> int:
    low, high = 1, 2
    while not enough(high):
        low, high = high, high * 2
        if high > MOST:
            return MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
