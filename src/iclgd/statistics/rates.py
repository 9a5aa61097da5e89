"""Choice of a learning rate by draws other than the ones shown.

The best of several noisy means lies above its own expectation, the more so the more rates there are and the noisier a
variant is. Therefore a draw's value is shown at the rate that the other draws chose.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

D = TypeVar("D", bound=Hashable)
FEWEST_DRAWS = 2


@dataclass(frozen=True)
class HeldOut(Generic[D]):
    """Scores at rates that were chosen without them."""

    values: Mapping[D, float]  # each draw's score at its rate; empty where no rate is complete
    chosen: Mapping[D, float]  # each draw's rate
    # the rates that may be chosen: every draw is there, sane, and has a defined score
    complete: tuple[float, ...]
    # whether a chosen rate is the lowest or the highest tried, so that a better one may lie beyond
    at_edge: bool


def held_out(
    scores: Mapping[D, Mapping[float, float]], better: str = "higher", tuning: Collection[D] | None = None
) -> HeldOut[D] | None:
    """Chooses every draw's rate by the mean over the other draws (leave-one-out), or by the draws kept for tuning.

    If the draws are independent, the values are unbiased for the chosen rates.

    Args:
        scores: by draw and rate the mean over queries. A draw that diverged or is unstable at a rate is absent, or NaN,
            there.
        better: "higher" or "lower" scores. Of equally good rates the lowest is taken.
        tuning: draws that choose and are not shown; the others are shown and do not choose.

    Returns:
        None where no draw is left to choose or to show: a single draw has no best rate. Where no rate is complete,
        `values` is empty.

    Raises:
        ValueError: `better` is neither of the two.
    """
    if better not in ("higher", "lower"):
        raise ValueError(f'a rate is chosen where better is "higher" or "lower", got "{better}"')
    draws = list(scores)
    shown = [draw for draw in draws if tuning is None or draw not in tuning]
    if len(draws) < FEWEST_DRAWS or not shown or (tuning is not None and len(shown) == len(draws)):
        return None
    tried = sorted({rate for by_rate in scores.values() for rate in by_rate})
    complete = [rate for rate in tried if all(math.isfinite(scores[draw].get(rate, math.nan)) for draw in draws)]
    if not complete:
        return HeldOut({}, {}, (), False)
    table = np.array([[scores[draw][rate] for rate in complete] for draw in draws])
    if better == "lower":
        table = -table
    chosen = {}
    for draw in shown:
        chooses = [(other != draw) if tuning is None else (other in tuning) for other in draws]
        chosen[draw] = complete[int(table[chooses].mean(0).argmax())]
    at_edge = len(tried) > 1 and bool({tried[0], tried[-1]} & set(chosen.values()))
    return HeldOut({draw: scores[draw][rate] for draw, rate in chosen.items()}, chosen, tuple(complete), at_edge)


def choice_factor(draws: int) -> float:
    """How much larger the squared error of a mean of held-out values is than their spread says: 2 + draws / 10.

    Every draw helped to choose the rates of all others, so that held-out values are correlated. Simulated with 2 to 7
    rates and noise as large as the differences between them or larger, the quantiles of t (two-sided .05 and .005) call
    for 2.5 at 5 draws, 2.6 at 8, 3.1 at 12 and 4.0 at 20. Smaller noise and draws kept for tuning need less.
    """
    return 2 + draws / 10
