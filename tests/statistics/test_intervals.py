"""Intervals, comparisons, chosen rates and power against values computed by hand or by other code."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from iclgd.statistics import (
    compare,
    draws_interval,
    draws_to_detect,
    held_out,
    holm_corrected,
    mean_interval,
    mean_of_means,
    shares_interval,
    smallest_difference,
)

NAN = math.nan


def by_draw(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


# --- shares


def share_interval(successes: int, n: int):
    return shares_interval(np.repeat([1.0, 0.0], [successes, n - successes]))


def test_shares_have_wilsons_interval_and_at_the_ends_the_exact_one():
    wilson = share_interval(30, 60)
    assert (wilson.mean, wilson.n) == (0.5, 60)
    z, n = 1.959964, 60
    half = z / (1 + z * z / n) * math.sqrt(0.25 / n + z * z / 4 / n / n)
    assert (wilson.low, wilson.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    for count in (0, 1, 3, 17, 20):  # Clopper and Pearson, as scipy has it
        exact = stats.binomtest(count, 20).proportion_ci(method="exact")
        found = share_interval(count, 20)
        assert found.low <= exact.low + 1e-9 and found.high >= exact.high - 1e-9
    assert share_interval(20, 20).low < 0.84, "20 of 20 is not 100 % [100, 100]"


def test_a_share_by_layers_counts_queries_not_values():
    rows = np.repeat(np.array([[1.0], [0.0]] * 15), 10, axis=1)  # ten layers that all agree
    found, plain = shares_interval(rows), share_interval(15, 30)
    assert found.high - found.low >= plain.high - plain.low
    apart = np.random.default_rng(0).integers(0, 2, (30, 10)).astype(float)
    narrower = shares_interval(apart)
    assert narrower.high - narrower.low < 0.6 * (plain.high - plain.low)


# --- means over queries


def test_a_mean_without_skewness_has_students_interval_widened():
    values = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    half = stats.t.ppf(0.975, 4) * 1.1 * values.std(ddof=1) / math.sqrt(5)
    assert mean_interval(values).high == pytest.approx(0.3 + half)
    assert mean_interval(values).low == pytest.approx(0.3 - half)


def test_the_longer_tail_has_the_longer_end_and_limits_hold():
    values = np.array([0.99, 0.98, 0.97, 0.99, 0.6])
    found = mean_interval(values, (-1.0, 1.0))
    assert found.mean - found.low > 2 * (found.high - found.mean) and found.high == 1


def test_without_spread_or_enough_queries_there_is_no_interval():
    for values in ([0.3, 0.3, 0.3], [0.1, 0.9], [NAN, 0.1, 0.9], [], [1 + 1e-15, 1.0, 1.0]):
        assert math.isnan(mean_interval(np.array(values)).low)
    assert mean_interval(np.array([NAN, 0.1, 0.9])).n == 2


def test_undefined_values_leave_the_mean_of_means_and_its_jackknife_error():
    generator = np.random.default_rng(3)
    values = generator.standard_normal((200, 4))
    values[generator.random(values.shape) < 0.3] = NAN
    found = mean_interval(values)
    leaving = [mean_of_means(np.delete(values, i, 0)) for i in range(200)]
    error = math.sqrt(199 / 200 * ((np.array(leaving) - np.mean(leaving)) ** 2).sum())
    assert found.mean == pytest.approx(mean_of_means(values))
    assert (found.high - found.low) / 2 == pytest.approx(1.972 * error, rel=0.03)


# --- draws


def test_draws_have_students_interval_within_limits():
    found = draws_interval([0.2, 0.3, NAN, 0.4])
    assert (found.mean, found.n) == (pytest.approx(0.3), 3)
    assert found.high - 0.3 == pytest.approx(4.302653 * 0.1 / math.sqrt(3), abs=1e-6)
    assert draws_interval([0.8, 1.0], (0, 1)).high == 1
    assert math.isnan(draws_interval([0.5]).low) and math.isnan(draws_interval([0.5, 0.5]).low)


def test_equal_shares_of_all_draws_have_the_interval_of_one_draws_queries():
    found = draws_interval([1.0] * 5, (0, 1), trials=[12] * 5)  # the same 12 may have been asked of all
    assert found.low == pytest.approx(share_interval(12, 12).low) and found.high == 1
    apart = draws_interval([0.5, 0.9, 0.5, 0.9, 0.7], (0, 1), trials=[200] * 5)
    assert apart.high - apart.low > 0.3, "draws that lie apart count as few trials"


def test_means_at_chosen_rates_have_wider_intervals():
    means = [0.2, 0.3, 0.25, 0.4, 0.35]
    plain, chosen = draws_interval(means), draws_interval(means, chosen=True)
    assert (chosen.high - chosen.mean) / (plain.high - plain.mean) == pytest.approx(math.sqrt(2.5))
    shares = [draws_interval(means, trials=[50] * 5, chosen=choice) for choice in (False, True)]
    assert shares[1].low < shares[0].low - 0.02 and shares[1].high > shares[0].high + 0.02


# --- comparisons


def test_a_comparison_is_the_paired_t_test_of_common_draws():
    first, second = by_draw(0.5, 0.61, 0.7, 0.55, 0.66, 0.1), by_draw(0.4, 0.55, 0.62, 0.5, 0.51, NAN)
    expected = stats.ttest_rel([0.5, 0.61, 0.7, 0.55, 0.66], [0.4, 0.55, 0.62, 0.5, 0.51])
    found = compare(first | {9: 3.0}, second | {8: 3.0})
    assert found.p == pytest.approx(expected.pvalue) and found.draws == 5
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert not found.marked, "before correction nothing is marked"
    assert holm_corrected({"a": found})["a"].marked


@pytest.mark.parametrize(("draws", "interval", "p"), [(1, False, False), (2, False, False), (3, True, False)])
def test_few_draws_have_no_mark(draws, interval, p):
    first, second = by_draw(*np.linspace(0.9, 0.91, draws)), by_draw(*[0.1] * draws)
    found = holm_corrected({"a": compare(first, second)})["a"]
    assert math.isnan(found.low) is not interval and math.isnan(found.p) is not p and not found.marked
    assert found.mean == pytest.approx(0.805 if draws > 1 else 0.8)


def test_equal_differences_are_no_evidence():
    constant = compare(by_draw(*[0.3] * 8), by_draw(*[0.1] * 8))
    same = compare(by_draw(*[0.3] * 8), by_draw(*[0.3] * 8))
    corrected = holm_corrected({"constant": constant, "same": same})
    assert math.isnan(corrected["constant"].p) and corrected["same"].p == 1
    assert not any(found.marked for found in corrected.values())
    assert math.isnan(compare({}, {}).mean) and compare({}, {}).draws == 0


def test_holms_correction():
    def corrected(*values):
        plain = compare(by_draw(0.5), by_draw(0.4))
        made = {at: dataclasses.replace(plain, p=p) for at, p in enumerate(values)}
        return [found.p_holm for found in holm_corrected(made).values()]

    assert corrected(0.01, 0.04, NAN, 0.03) == pytest.approx([0.03, 0.06, NAN, 0.06], nan_ok=True)
    assert corrected(0.6, 0.9) == [1, 1] and corrected() == []


# --- rates


SCORES = {0: {0.1: 0.9, 1.0: 0.2}, 1: {0.1: 0.1, 1.0: 0.6}, 2: {0.1: 0.3, 1.0: 0.5}}


def test_a_rate_is_chosen_by_the_other_draws():
    assert held_out(SCORES) == {0: 1.0, 1: 0.1, 2: 0.1}  # by means .2/.55, .6/.35, .5/.4
    assert held_out(SCORES, better="lower") == {0: 0.1, 1: 1.0, 2: 1.0}
    assert set(held_out(SCORES | {3: {0.1: 0.0, 1.0: NAN}}).values()) == {0.1}  # diverged at 1.0
    assert held_out({0: {0.1: 0.5}, 1: {1.0: 0.5}}) == {}
    assert held_out({0: {0.1: 0.5, 1.0: 0.6}}) == {}  # one draw has no best rate


# --- power


def test_power_is_that_of_scipys_noncentral_t():
    for draws in (5, 20):
        effect = smallest_difference(1.0, draws) * math.sqrt(draws)
        critical = stats.t.ppf(0.975, draws - 1)
        assert stats.nct.sf(critical, draws - 1, effect) == pytest.approx(0.8, abs=1e-3)
    assert smallest_difference(0.2, 5) == pytest.approx(0.2 * smallest_difference(1.0, 5))


def test_draws_needed_are_the_fewest():
    needed = draws_to_detect(0.05, 0.1)
    assert needed == 34  # G*Power: paired t, effect .5, two-sided .05, power .8
    assert smallest_difference(0.1, 33) > 0.05 >= smallest_difference(0.1, 34)
