"""Do the intervals cover as often as they say, and do the tests reject as rarely?"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from iclgd.metrics.statistics import (
    Comparison,
    Interval,
    cluster_bootstrap,
    compare,
    holm,
    holm_corrected,
    mean_of_means,
    nanmean,
    seed_interval,
    sign_flip_p,
)
from iclgd.seeding import numpy_stream

NAN = math.nan


def coverage(draw, interval, trials: int, truth: float = 0.0) -> float:
    """The share of simulated data sets whose interval holds the truth."""
    generator = numpy_stream("simulation", 0)
    held = 0
    for trial in range(trials):
        found = interval(draw(generator), numpy_stream(f"interval/{trial}", 0))
        held += found.low <= truth <= found.high
    return held / trials


def queries_by_layers(generator: np.random.Generator) -> np.ndarray:
    """60 queries of 5 layers: layers of a query go together, a tenth is undefined, and the values are skewed."""
    own = generator.exponential(1, (60, 1)) - 1
    values = own + 0.5 * generator.standard_normal((60, 5))
    values[generator.random((60, 5)) < 0.1] = NAN
    return values


def seeds_by_queries(seeds: int, queries: int = 40):
    def draw(generator: np.random.Generator) -> np.ndarray:
        of_seed = 0.3 * generator.standard_normal((seeds, 1))
        of_query = generator.standard_normal((1, queries))
        return (of_seed + of_query + generator.standard_normal((seeds, queries)))[:, :, None]

    return draw


# --- coverage of a nominal 95 %


def test_the_bootstrap_over_queries_covers():
    held = coverage(queries_by_layers, lambda v, g: cluster_bootstrap(v, 400, g), trials=500)
    assert 0.90 <= held <= 0.98


def test_resampling_layers_as_if_they_were_queries_would_not_cover():
    held = coverage(queries_by_layers, lambda v, g: cluster_bootstrap(v.reshape(-1, 1), 400, g), trials=200)
    assert held < 0.85


def test_the_crossed_bootstrap_covers_with_ten_seeds():
    held = coverage(seeds_by_queries(10), lambda v, g: cluster_bootstrap(v, 400, g, crossed=True), trials=400)
    assert 0.90 <= held <= 0.98


def three_means(generator: np.random.Generator) -> np.ndarray:
    return generator.standard_normal(3)


def test_with_three_seeds_student_covers_and_the_bootstrap_does_not():
    held = coverage(three_means, lambda v, _: seed_interval(v), trials=2000)
    assert 0.93 <= held <= 0.97
    held = coverage(three_means, lambda v, g: cluster_bootstrap(v[:, None], 200, g), trials=300)
    assert held < 0.85


def test_the_paired_interval_covers_and_its_p_values_are_uniform():
    """Two variants with the same mean on the same queries: 5 % are called different at p < 0.05."""
    generator = numpy_stream("null", 0)
    p_values, held = [], 0
    for trial in range(300):
        shared = generator.standard_normal((1, 40, 1)) * 3
        first, second = (shared + 0.3 * generator.standard_normal((1, 40, 3)) for _ in range(2))
        found = compare(first, second, name=str(trial), seed=0, resamples=300, flips=300)
        p_values.append(found.p)
        held += found.difference.low <= 0 <= found.difference.high
    assert 0.90 <= held / 300 <= 0.98
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.09
    assert stats.kstest(p_values, "uniform").pvalue > 0.001


# --- the bootstrap itself


def test_the_bootstrap_is_that_of_a_plain_loop():
    values = queries_by_layers(numpy_stream("values", 0))[:20]
    found = cluster_bootstrap(values, 300, np.random.default_rng(7))
    drawn = np.random.default_rng(7).integers(0, 20, (300, 20))
    means = [np.mean([nanmean(values[rows, layer]) for layer in range(5)]) for rows in drawn]
    assert found.low == pytest.approx(np.quantile(means, 0.025)) and found.high == pytest.approx(
        np.quantile(means, 0.975)
    )
    assert found.mean == pytest.approx(mean_of_means(values))


def test_the_bootstrap_agrees_with_scipys():
    values = numpy_stream("values", 1).exponential(1, 80)
    found = cluster_bootstrap(values[:, None], 20_000, np.random.default_rng(0))
    scipys = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert found.low == pytest.approx(scipys.low, abs=0.01) and found.high == pytest.approx(scipys.high, abs=0.01)


def test_running_in_pieces_keeps_the_distribution(monkeypatch):
    values = queries_by_layers(numpy_stream("values", 0))
    whole = cluster_bootstrap(values, 1000, np.random.default_rng(0))
    monkeypatch.setattr("iclgd.metrics.statistics._WEIGHTS_AT_ONCE", 600)
    pieces = cluster_bootstrap(values, 1000, np.random.default_rng(0))
    assert pieces.low == pytest.approx(whole.low) and pieces.high == pytest.approx(whole.high)


def test_too_little_for_an_interval():
    generator = np.random.default_rng(0)
    for values, crossed in ((np.ones((1, 3)), False), (np.ones((0, 3)), False), (np.ones((1, 5, 3)), True)):
        found = cluster_bootstrap(values, 10, generator, crossed=crossed)
        assert math.isnan(found.low) and math.isnan(found.high)
    assert math.isnan(cluster_bootstrap(np.full((4, 2), NAN), 10, generator).high)
    assert math.isnan(seed_interval([0.5]).low) and seed_interval([0.5, NAN]).mean == 0.5
    assert math.isnan(seed_interval([]).mean)


def test_student_by_hand():
    found = seed_interval([0.1, 0.2, 0.3])  # t(0.975, 2) = 4.3027, standard error 0.1 / sqrt(3)
    assert found.mean == pytest.approx(0.2) and found.high - 0.2 == pytest.approx(4.3027 * 0.1 / math.sqrt(3), abs=1e-5)
    assert seed_interval([0.4, 0.4]) == Interval(0.4, 0.4, 0.4)


# --- comparisons


def test_a_paired_difference_sees_what_an_unpaired_one_would_not():
    generator = numpy_stream("paired", 0)
    shared = generator.standard_normal((1, 100, 1)) * 5
    first = shared + 0.2 + 0.1 * generator.standard_normal((1, 100, 4))
    second = shared + 0.1 * generator.standard_normal((1, 100, 4))
    found = compare(first, second, name="x", seed=0)
    assert found.over == "queries" and found.n == 100
    assert found.difference.low > 0.15 and found.difference.high < 0.25 and found.p == pytest.approx(1 / 10_001)
    assert found.distinguishable
    back = compare(second, first, name="x", seed=0)
    assert back.p == found.p and back.difference.mean == -found.difference.mean
    unpaired = cluster_bootstrap(first[0], 500, generator)
    assert unpaired.low < mean_of_means(second[0]) < unpaired.high


def test_several_seeds_are_compared_by_the_paired_t_test():
    generator = numpy_stream("seeds", 0)
    first, second = generator.standard_normal((2, 4, 30, 2))
    found = compare(first + 0.3, second, name="x", seed=0)
    means = (first + 0.3 - second).mean((1, 2))
    oracle = stats.ttest_1samp(means, 0)
    assert (found.over, found.n) == ("seeds", 4) and found.p == pytest.approx(float(oracle.pvalue))
    interval = oracle.confidence_interval()
    assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high))


def test_a_seed_without_values_is_left_out():
    first = np.random.default_rng(0).standard_normal((3, 10, 2))
    holes = first.copy()
    holes[1] = NAN
    found = compare(holes, first * 0, name="x", seed=0)
    assert found.n == 2 and found.difference.mean == pytest.approx(first[[0, 2]].mean())


def test_what_cannot_be_told_is_not_distinguishable():
    same = np.ones((3, 5, 2))
    assert compare(same, same, name="x", seed=0).p == 1
    assert math.isnan(compare(same, same * 0, name="x", seed=0).p), "seeds that all say the same are no replicates"
    assert not compare(same, same * 0, name="x", seed=0).distinguishable
    assert math.isnan(compare(same[:1] * NAN, same[:1], name="x", seed=0).p)
    with pytest.raises(ValueError, match=r"one shape, got \(3, 5, 2\) and \(3, 4, 2\)"):
        compare(same, same[:, :4], name="x", seed=0)
    with pytest.raises(ValueError, match="one shape"):
        compare(same[0, 0], same[0, 0], name="x", seed=0)


def test_sign_flips_agree_with_all_of_them():
    difference = np.array([0.5, -0.2, 0.9, 0.4, 0.1, 0.7, -0.3, 0.6])[:, None]
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1).T
    exact = np.mean(np.abs(signs @ difference[:, 0]) >= difference.sum() - 1e-12)
    assert sign_flip_p(difference, 20_000, np.random.default_rng(0)) == pytest.approx(exact, abs=0.01)


def test_sign_flips_weigh_layers_as_the_mean_does():
    """A layer with one defined query counts as much as the others in the mean of means; so it must in the test."""
    values = np.array([[2.0, NAN], [2.0, NAN], [2.0, NAN], [0.0, -1.0]])
    # contributions to the mean of means 1/4, 1/4, 1/4, -1/2, which no flip brings nearer to 0 than their sum, 1/4;
    # in the mean of all values, by 2, 2, 2, -1, only a quarter of the flips is as extreme as their sum
    assert mean_of_means(values) == 0.25
    assert sign_flip_p(values, 1000, np.random.default_rng(0)) == 1


# --- many comparisons


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04 -> 0.06 (not below the one before)
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []
    assert holm([0.04, NAN, 0.01]) == pytest.approx([0.04, NAN, 0.02], nan_ok=True)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_never_swaps_and_is_at_most_bonferroni(p_values):
    corrected = holm(p_values)
    for p, q in zip(p_values, corrected, strict=True):
        assert p <= q <= min(1, p * len(p_values)) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


def test_verdicts_go_by_the_corrected_p():
    together = {name: Comparison(Interval(1.0, 0.0, 2.0), p, "queries", 9) for name, p in (("a", 0.03), ("b", 0.04))}
    assert all(one.distinguishable for one in together.values())
    corrected = holm_corrected(together)
    assert [one.p_holm for one in corrected.values()] == pytest.approx([0.06, 0.06])
    assert not any(one.distinguishable for one in corrected.values())
    assert corrected["a"].p == 0.03
