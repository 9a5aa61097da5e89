"""Simulations of what the statistics claim: coverage of intervals, false marks, bias of chosen rates.

`make simulate` runs them in full and prints a table; tests run them with few repeats. The worlds are synthetic, so
that the truth is known; what is computed from them is the package's own.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

import simulated_reports
from iclgd.common.seeding import numpy_stream
from iclgd.statistics import (
    Interval,
    compare,
    draws_interval,
    held_out,
    holm_corrected,
    mean_interval,
    mean_of_means,
    shares_interval,
)

Sample = Callable[[np.random.Generator], Interval]


def coverage(sample: Sample, truth: float, repeats: int, name: str) -> float:
    """The share of simulated data sets whose interval holds the truth, of those that have an interval."""
    generator = numpy_stream(name, 0)
    intervals = [sample(generator) for _ in range(repeats)]
    printed = [found for found in intervals if not math.isnan(found.low)]
    return float(np.mean([found.low <= truth <= found.high for found in printed]))


def cosines(skew: float, n: int, generator: np.random.Generator, layers: int = 6) -> np.ndarray:
    """[query, layer] cosines, closer to 1 and more skewed with `skew`; a fifth is undefined."""
    own = 0.5 * generator.standard_normal((n, 1)) + 0.4 * generator.standard_normal((n, layers))
    values = np.tanh(own + np.linspace(-0.3, 0.3, layers) + skew)
    values[generator.random(values.shape) < 0.2] = math.nan
    return values


def beta_cosines(a: float, b: float, n: int, generator: np.random.Generator) -> np.ndarray:
    """[query] cosines of a beta distribution over [-1, 1]."""
    return 2 * generator.beta(a, b, n) - 1


def binomial_coverage(p: float, n: int) -> float:
    """The exact coverage of a share's interval."""
    counts = np.arange(n + 1).tolist()
    chances = np.exp([math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in counts])
    chances *= [p**k * (1 - p) ** (n - k) for k in counts]
    intervals = [shares_interval(np.repeat([1.0, 0.0], [k, n - k])) for k in counts]
    return float(sum(c for c, found in zip(chances, intervals, strict=True) if found.low <= p <= found.high))


def share_coverage() -> Iterator[tuple[str, float]]:
    """Accuracy: p = .5 to .98, n = 12 to 200, exact."""
    for p, n in itertools.product(
        (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98), (12, 16, 20, 27, 32, 40, 51, 64, 100, 150, 200)
    ):
        yield f"accuracy p={p} n={n}", binomial_coverage(p, n)


def rec2ftp_coverage(repeats: int) -> Iterator[tuple[str, float]]:
    """Rec2FTP: of n queries each is defined with chance `defined`, and then right with chance p."""
    for p, defined, n in itertools.product((0.5, 0.8, 0.95), (0.1, 0.3, 0.6), (40, 120)):

        def sample(generator: np.random.Generator, p: float = p, defined: float = defined, n: int = n) -> Interval:
            values = np.where(generator.random(n) < p, 1.0, 0.0)
            return shares_interval(np.where(generator.random(n) < defined, values, math.nan))

        label = f"Rec2FTP p={p} defined={defined} n={n}"
        yield label, coverage(sample, p, repeats, label)


def cosine_coverage(repeats: int, sizes: tuple[int, ...] = (3, 5, 8, 12, 20, 40, 120)) -> Iterator[tuple[str, float]]:
    """Scores that are no shares: skewed, averaged over layers, some undefined."""
    worlds: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
        f"skew {skew}": lambda n, generator, skew=skew: cosines(skew, n, generator) for skew in (0.0, 0.5, 1.0)
    }
    worlds |= {
        f"beta({a}, {b})": lambda n, generator, a=a, b=b: beta_cosines(a, b, n, generator)
        for a, b in ((2, 5), (8, 2), (15, 1))
    }
    for (name, world), n in itertools.product(worlds.items(), sizes):
        truth = mean_of_means(world(1_000_000, numpy_stream(f"truth {name}", 0)))
        label = f"cosine {name} n={n}"
        yield (
            label,
            coverage(lambda g, n=n, world=world: mean_interval(world(n, g), (-1.0, 1.0)), truth, repeats, label),
        )


def draws_coverage(repeats: int) -> Iterator[tuple[str, float]]:
    """Means over draws: a cosine's by Student's t, an accuracy's by effective trials."""
    for draws, sd in itertools.product((2, 3, 5, 10, 20), (0.005, 0.02, 0.1)):
        label = f"draws of a cosine, draws={draws} sd={sd}"
        yield (
            label,
            coverage(lambda g, draws=draws, sd=sd: draws_interval(g.normal(0.3, sd, draws)), 0.3, repeats, label),
        )
    for p, draws, n, sd in itertools.product((0.6, 0.8, 0.95), (3, 5, 10, 20), (12, 40, 200), (0.0, 0.02, 0.04)):

        def sample(g: np.random.Generator, p: float = p, draws: int = draws, n: int = n, sd: float = sd) -> Interval:
            trials = p * (1 - p) / sd**2 - 1 if sd else 0.0
            chances = g.beta(p * trials, (1 - p) * trials, draws) if sd else np.full(draws, p)
            return draws_interval(g.binomial(n, chances) / n, (0, 1), trials=[n] * draws)

        label = f"draws of accuracy p={p}, draws={draws} n={n} sd={sd}"
        yield label, coverage(sample, p, repeats, label)


def held_out_coverage(repeats: int) -> Iterator[tuple[str, float]]:
    """Means of held-out values, of which each draw's rate is chosen by the others."""
    for draws, noise, rates in itertools.product((3, 5, 8, 20), (0.02, 0.1, 0.3), (2, 7)):
        label = f"held-out means, draws={draws} noise={noise} rates={rates}"
        truth = 0.3 - 0.02 * np.abs(np.arange(rates) - rates // 2)
        generator, covered = numpy_stream(label, 0), 0
        for _ in range(repeats):
            values = (truth + noise * generator.standard_normal((draws, rates))).tolist()
            chosen = held_out({draw: dict(enumerate(row)) for draw, row in enumerate(values)})
            expected = np.mean([truth[int(rate)] for rate in chosen.values()])
            interval = draws_interval([values[draw][int(rate)] for draw, rate in chosen.items()], chosen=True)
            covered += interval.low <= expected <= interval.high
        yield label, covered / repeats


def false_marks(
    draws: int, sd: float, repeats: int, *, queries: int = 40, share: bool = False, variants: int = 8
) -> float:
    """The chance that any pair of equally good variants is marked, all pairs corrected together.

    Each variant's draws lie `sd` apart on their own, and a query adds noise; with `share`, values are shares of queries
    near 1, where many draws are equal.
    """
    generator, errors = numpy_stream(f"false marks {draws} {sd} {share}", 0), 0
    for _ in range(repeats):
        own = sd * generator.standard_normal((variants, draws)) + 0.05 * generator.standard_normal(draws)
        if share:
            means = generator.binomial(queries, np.clip(0.95 + own, 0, 1)) / queries
        else:
            means = 0.3 + own + 0.2 / math.sqrt(queries) * generator.standard_normal((variants, draws))
        scores = [dict(enumerate(row)) for row in means.tolist()]
        pairs = {pair: compare(scores[pair[0]], scores[pair[1]]) for pair in itertools.combinations(range(variants), 2)}
        errors += any(comparison.marked for comparison in holm_corrected(pairs).values())
    return errors / repeats


def chosen_rate_bias(draws: int, repeats: int, noise: float, rates: int = 7) -> dict[str, float]:
    """How far means at chosen rates lie above what new draws would give there: held out, and best of those shown."""
    generator = numpy_stream(f"bias {draws} {noise}", 0)
    truth = 0.3 - 0.02 * np.abs(np.arange(rates) - rates // 2)
    grid = [10.0**i for i in range(rates)]
    bias: dict[str, list[float]] = {"held out": [], "best of those shown": []}
    for _ in range(repeats):
        values = truth + noise * generator.standard_normal((draws, rates))
        scores: Mapping[int, Mapping[float, float]] = {
            i: dict(zip(grid, row, strict=True)) for i, row in enumerate(values.tolist())
        }
        chosen = held_out(scores)
        expected = [truth[grid.index(rate)] for rate in chosen.values()]
        bias["held out"].append(float(np.mean([scores[draw][chosen[draw]] for draw in chosen]) - np.mean(expected)))
        best = int(values.mean(0).argmax())
        bias["best of those shown"].append(float(values.mean(0)[best] - truth[best]))
    return {name: float(np.mean(values)) for name, values in bias.items()}


def _table(title: str, rows: Iterator[tuple[str, float]]) -> Iterator[str]:
    found = dict(rows)
    least = min(found, key=lambda name: found[name])
    yield f"{title}: mean {np.mean(list(found.values())):.3f}, least {found[least]:.3f} ({least}), {len(found)} points"


def report(repeats: int) -> Iterator[str]:
    """Lines of the table that `make simulate` prints."""
    yield from _table("coverage, accuracy", share_coverage())
    yield from _table("coverage, Rec2FTP", rec2ftp_coverage(repeats))
    yield from _table("coverage, cosines", cosine_coverage(repeats))
    yield from _table("coverage, means over draws", draws_coverage(repeats))
    yield from _table("coverage, held-out means", held_out_coverage(repeats))
    for share, draws, sd in itertools.product((False, True), (5, 8, 20), (0.0, 0.005, 0.02, 0.1)):
        kind = "shares" if share else "cosines"
        share_marked = false_marks(draws, sd, repeats, share=share)
        yield f"false marks, 28 pairs of {kind}, {draws} draws, sd {sd}: {share_marked:.3f}"
    for draws, noise in itertools.product((3, 5, 8), (0.02, 0.1, 0.3)):
        bias = chosen_rate_bias(draws, 2 * repeats, noise)
        yield f"bias of a chosen rate, {draws} draws, noise {noise}: " + ", ".join(
            f"{k} {v:+.3f}" for k, v in bias.items()
        )


def report_of_reports(repeats: int) -> Iterator[str]:
    """The same through run folders and the report's own conclusions; variants differ in noise, and not in truth."""
    noise = {"calm": 0.005, "usual": 0.02, "noisy": 0.1}
    for draws in (5, 8, 20):
        with tempfile.TemporaryDirectory() as folder:
            found = simulated_reports.reports(Path(folder), repeats, draws, noise)
        yield f"reports, {draws} draws: {found.tested} comparisons, false {found.false:.3f}, held out {found.bias:+.4f}"


if __name__ == "__main__":
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    for line in itertools.chain(report(asked), report_of_reports(asked // 10)):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
