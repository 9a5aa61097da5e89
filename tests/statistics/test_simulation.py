"""The simulations of `make simulate` with few repeats; seeds are fixed, so that nothing fails by chance."""

import numpy as np
import pytest

import simulation


def summary(rows):
    values = list(dict(rows).values())
    return float(np.mean(values)), min(values)


def test_intervals_of_shares_cover():
    mean, least = summary(simulation.share_coverage())
    assert 0.94 <= mean <= 0.97 and least >= 0.92


def test_intervals_of_cosines_cover():
    mean, least = summary(simulation.cosine_coverage(200, sizes=(3, 12, 40)))
    assert 0.93 <= mean <= 0.98 and least >= 0.9


def test_intervals_of_held_out_means_cover():
    mean, least = summary(simulation.held_out_coverage(100))
    assert mean >= 0.95 and least >= 0.9


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(("draws", "sd"), [(5, 0.0), (5, 0.1), (20, 0.02)])
def test_marks_are_rarely_false(draws, sd, share):
    assert simulation.false_marks(draws, sd, 100, share=share, variants=5) <= 0.09


def test_a_rate_chosen_on_other_draws_does_not_flatter():
    for noise in (0.02, 0.3):
        bias = simulation.chosen_rate_bias(5, 400, noise)
        assert abs(bias["held out"]) <= 3 * noise / np.sqrt(5 * 400) + 1e-3
    assert bias["best of those shown"] > 0.1
