"""How sure is a mean, and is one variant really above another?

Within a run the queries are the sample: a percentile bootstrap resamples them whole, with all their layers (the layers
of one query are not independent). In a sweep the seeds are: each draws its own demonstrations, and a claim about a
variant is a claim about demonstrations not yet drawn. Sweeps have few seeds, and a bootstrap of three seeds covers far
less than it says (it cannot leave the range of the three and takes their spread for the population's), so intervals
over seeds are Student's t of the seeds' means.

Differences are paired: the two variants saw the same queries and demonstrations, so that what a query or a draw adds
to both cancels.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from scipy import stats

from iclgd.seeding import numpy_stream

Array = np.ndarray
K = TypeVar("K", bound=Hashable)
_WEIGHTS_AT_ONCE = 2**22  # 32 MiB of float64


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; `low` and `high` are NaN where the sample is too small to give one."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A paired difference between two variants.

    Attributes:
        difference: the mean of first minus second, with its interval.
        p: of the null hypothesis of no difference, two-sided; NaN where it cannot be told.
        over: what the inference generalises over, "queries" or "seeds".
        n: how many of those there are.
        p_holm: p corrected for all comparisons made together; None before `holm_corrected`.
        alpha: the level at which a difference is called distinguishable.
    """

    difference: Interval
    p: float
    over: str
    n: int
    p_holm: float | None = None
    alpha: float = 0.05

    @property
    def distinguishable(self) -> bool:
        """Whether the (corrected) p-value is below the level; what cannot be told is not distinguishable."""
        return (self.p if self.p_holm is None else self.p_holm) < self.alpha


def nanmean(values: Float[Array, "..."], axis: int = 0) -> Float[Array, "..."]:
    """Mean along an axis with NaN left out; NaN, without a warning, where nothing is left."""
    defined = ~np.isnan(values)
    count = defined.sum(axis)
    return np.where(count > 0, np.where(defined, values, 0).sum(axis) / np.maximum(count, 1), np.nan)


def mean_of_means(values: Float[Array, "cluster ..."]) -> float:
    """The mean over clusters in each column (such as a layer), then over the columns; NaN left out in both."""
    return float(nanmean(nanmean(_columns(values))))


def _columns(values: Float[Array, "cluster ..."]) -> Float[Array, "cluster column"]:
    return values.reshape(len(values), math.prod(values.shape[1:]))


def cluster_bootstrap(
    values: Float[Array, "cluster ..."],
    resamples: int,
    generator: np.random.Generator,
    level: float = 0.95,
    crossed: bool = False,
) -> Interval:
    """Percentile bootstrap interval of `mean_of_means`, clusters resampled whole.

    Args:
        values: [cluster, ...], NaN where undefined; whatever belongs to a cluster (layers, say) stays together.
        resamples: how many; 0 gives no interval.
        generator: a stream of its own.
        level: nominal coverage.
        crossed: values are [seed, query, ...] and every seed has the same queries: both are resampled, independently
            of each other (the pigeonhole bootstrap of Owen 2007). It needs about ten seeds; with three take
            `seed_interval`.

    Returns:
        The mean and its interval; NaN bounds with fewer than two clusters. Resamples in which nothing is defined are
        left out.
    """
    if not crossed:
        values = values[None]
    seeds, queries, columns = *values.shape[:2], math.prod(values.shape[2:])
    values = values.reshape(seeds, queries, columns).astype(np.float64)
    mean = float(nanmean(nanmean(values.reshape(seeds * queries, columns))))
    if resamples < 1 or queries < 2 or (crossed and seeds < 2):
        return Interval(mean, np.nan, np.nan)
    defined = ~np.isnan(values)
    sums_and_counts = np.concatenate([np.where(defined, values, 0), defined], axis=2)
    by_query = sums_and_counts.transpose(1, 0, 2).reshape(queries, -1)
    means = []
    at_once = max(1, _WEIGHTS_AT_ONCE // max(queries, by_query.shape[1]))
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = (_multiplicities(size, queries, generator) @ by_query).reshape(size, seeds, 2 * columns)
        weights = _multiplicities(size, seeds, generator) if crossed else np.ones((size, 1))
        total, count = np.split(np.einsum("bs,bsc->bc", weights, drawn), 2, axis=1)
        means.append(nanmean(np.where(count > 0, total / np.maximum(count, 1), np.nan), axis=1))
    told = np.concatenate(means)
    told = told[~np.isnan(told)]
    tail = (1 - level) / 2
    low, high = np.quantile(told, [tail, 1 - tail]) if len(told) else (np.nan, np.nan)
    return Interval(mean, float(low), float(high))


def _multiplicities(resamples: int, n: int, generator: np.random.Generator) -> Float[Array, "resample n"]:
    """How often each of n is drawn when n are drawn with replacement."""
    drawn = generator.integers(0, n, (resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float64)


def seed_interval(means: Sequence[float] | Float[Array, " seed"], level: float = 0.95) -> Interval:
    """Student's t interval of a mean over seeds, from one mean for each seed.

    It assumes that seeds' means are about normal, as means over hundreds of queries are, and covers with two or three
    seeds, where a bootstrap does not. NaN means (a seed that failed) are left out; fewer than two give no interval.
    """
    values = np.asarray(means, dtype=np.float64)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return Interval(float(values[0]) if len(values) else np.nan, np.nan, np.nan)
    mean = float(values.mean())
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def compare(
    first: Float[Array, "..."],
    second: Float[Array, "..."],
    *,
    name: str,
    seed: int,
    resamples: int = 2000,
    flips: int = 10_000,
    level: float = 0.95,
) -> Comparison:
    """The paired difference between two variants on the same seeds and queries.

    One seed: interval by cluster bootstrap over queries, p by sign-flip permutation of whole queries. Under the null
    hypothesis the two variants' values of a query may be swapped, which flips the sign of its difference; that needs
    no normality, keeps a query's layers together, and cannot give p = 0. The conclusion is about these demonstrations.
    Several seeds: interval and p by Student's paired t over the seeds' mean differences (flipping three signs cannot
    give a p below 0.25).

    Args:
        first: values [seed, example, ...], NaN where undefined; a difference counts where both are defined.
        second: the same axes.
        name: names the random streams.
        seed: seeds them.
        resamples: of the bootstrap.
        flips: of the permutation test.
        level: of the interval; its complement is the level of the verdict.

    Raises:
        ValueError: the shapes differ, so nothing is paired.
    """
    if first.shape != second.shape or first.ndim < 2:
        raise ValueError(
            f"a paired comparison needs two arrays [seed, example, ...] of one shape, got {first.shape} and "
            f"{second.shape}: take variants that ran the same seeds and queries"
        )
    difference = first.astype(np.float64) - second
    if len(difference) == 1:
        interval = cluster_bootstrap(difference[0], resamples, numpy_stream(f"compare/{name}", seed), level)
        p = sign_flip_p(difference[0], flips, numpy_stream(f"flip/{name}", seed))
        return Comparison(interval, p, "queries", difference.shape[1], alpha=1 - level)
    means = np.array([mean_of_means(one) for one in difference])
    means = means[~np.isnan(means)]
    return Comparison(seed_interval(means, level), _paired_t_p(means), "seeds", len(means), alpha=1 - level)


def sign_flip_p(difference: Float[Array, "cluster ..."], flips: int, generator: np.random.Generator) -> float:
    """Two-sided p of a mean difference of zero, by flipping the signs of whole clusters at random.

    (1 + flips at least as extreme) / (1 + flips), which is valid and never 0 (Phipson and Smyth 2010). NaN if nothing
    is defined.
    """
    values = _columns(difference)
    defined = ~np.isnan(values)
    columns = defined.any(0)
    if not columns.any():
        return float("nan")
    shares = np.where(defined, values, 0)[:, columns] / defined.sum(0)[columns] / columns.sum()
    contributions = shares.sum(1)  # of each cluster to the mean of means
    observed = abs(contributions.sum())
    extreme, at_once = 0, max(1, _WEIGHTS_AT_ONCE // len(values))
    for start in range(0, flips, at_once):
        signs = generator.integers(0, 2, (min(at_once, flips - start), len(values))) * 2.0 - 1
        extreme += int((np.abs(signs @ contributions) >= observed * (1 - 1e-12)).sum())
    return (1 + extreme) / (1 + flips)


def _paired_t_p(means: Float[Array, " seed"]) -> float:
    """Two-sided p of the t test; NaN with fewer than two seeds, or where all give one difference other than zero."""
    if len(means) < 2:
        return float("nan")
    spread = means.std(ddof=1)
    if spread == 0:
        return 1.0 if means[0] == 0 else float("nan")
    return float(2 * stats.t.sf(abs(means.mean()) / spread * np.sqrt(len(means)), len(means) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the chance of any false positive among all of them stays below the level.

    The i-th smallest of m is multiplied by m - i + 1, never falls below the one before it, and is at most 1. NaN (not
    tested) stays NaN and is not counted.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.flatnonzero(~np.isnan(p))[np.argsort(p[~np.isnan(p)], kind="stable")]
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return corrected.tolist()


def holm_corrected(comparisons: Mapping[K, Comparison]) -> dict[K, Comparison]:
    """The same comparisons, each with its p-value corrected for all of them; `distinguishable` then goes by that."""
    corrected = holm([comparison.p for comparison in comparisons.values()])
    return {key: replace(comparisons[key], p_holm=p) for key, p in zip(comparisons, corrected, strict=True)}
