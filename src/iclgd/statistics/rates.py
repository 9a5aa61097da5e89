"""Choice of a learning rate by draws other than the ones shown.

The best of several noisy means lies above its own expectation, the more so the more rates there are and the noisier a
variant is. Therefore a draw's value is shown at the rate that the other draws chose.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
import pandas as pd

D = TypeVar("D", bound=Hashable)


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


def choice_factor(draws: int) -> float:
    """How much larger the squared error of a mean of held-out values is than their spread says: 2 + draws / 10.

    Every draw helped to choose the rates of all others, so that held-out values are correlated. Simulated with 2 to 7
    rates and noise as large as the differences between them or larger, the quantiles of t (two-sided .05 and .005) call
    for 2.5 at 5 draws, 2.6 at 8, 3.1 at 12 and 4.0 at 20. Smaller noise needs less.
    """
    return 2 + draws / 10
