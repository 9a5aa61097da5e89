"""Accuracies, agreement, order sensitivity and distances between distributions: by hand, against scipy, bounds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special
from scipy.spatial import distance

from iclgd.metrics import flipped
from iclgd.metrics.distributions import jensen_shannon, next_token_overlap, recovered, total_variation
from iclgd.metrics.predictions import (
    accuracy,
    answer_accuracy,
    label_agreement,
    log_odds,
    movement,
    movement_cosine,
    order_sensitivity,
    order_spread,
    rec2ftp,
    vocabulary_accuracy,
)

NAN = math.nan
INF = math.inf


def choosing(*labels: int) -> torch.Tensor:
    """Scores of three options, under which these labels are chosen; -1: no score at all."""
    scores = torch.full((len(labels), 3), -2.0)
    for row, label in enumerate(labels):
        scores[row, label] = -1.0
        if label < 0:
            scores[row] = NAN
    return scores


def test_accuracy_by_hand():
    values = accuracy(choosing(0, 1, 2, -1), torch.tensor([0, 2, 2, 0]))
    assert values.nan_to_num(9).tolist() == [1, 0, 1, 9]
    fewer = torch.tensor([[-3.0, -2.0, NAN]])  # a query with two options
    assert accuracy(fewer, torch.tensor([1])).item() == 1
    assert accuracy(torch.zeros(1, 3), torch.tensor([0])).item() == 1, "of equal scores the first option is chosen"


#                    corrected by FT: ICL right, ICL wrong, ICL undefined | ZSL right | FT wrong | ZSL undefined
ZSL, ICL, FT = choosing(1, 1, 1, 0, 1, -1), choosing(0, 2, -1, 0, 0, 0), choosing(0, 0, 0, 0, 1, 0)
LABELS = torch.zeros(6, dtype=torch.long)


def test_rec2ftp_by_hand():
    assert rec2ftp(ZSL, ICL, FT, LABELS).nan_to_num(9).tolist() == [1, 0, 9, 9, 9, 9]
    assert rec2ftp(FT[:4], ICL[:4], FT[:4], LABELS[:4]).isnan().all(), "finetuning corrects nothing"


def test_flipped_by_hand():
    assert flipped(ZSL, ICL, FT, LABELS).tolist() == [True, False, False, False, False, False]


def test_log_odds_by_hand():
    scores = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.6, NAN], [NAN, 0.6, 0.4], [0.5, NAN, NAN]]).log()
    expected = [0, math.log(3), NAN, NAN]  # missing options are no others; one option alone has no odds
    odds = log_odds(scores, torch.tensor([0, 1, 0, 0]))
    assert odds.tolist() == pytest.approx(expected, abs=1e-7, nan_ok=True)
    certain = log_odds(torch.tensor([[0.0, -800.0]]), torch.tensor([1]))
    assert certain.item() == -800, "no probability is rounded to 0 or 1 on the way"


def test_label_agreement_by_hand():
    assert label_agreement(choosing(0, 1, 2, -1), choosing(0, 2, 2, 1)).nan_to_num(9).tolist() == [1, 0, 1, 9]


def test_vocabulary_accuracy_by_hand():
    log_probs = torch.tensor([[0.1, 0.7, 0.2], [0.1, 0.7, 0.2], [NAN, 0.7, 0.2]]).log()
    assert vocabulary_accuracy(log_probs, torch.tensor([1, 2, 1])).nan_to_num(9).tolist() == [1, 0, 9]


def test_answer_accuracy_by_hand():
    greedy = torch.tensor([[0.0, 1, 0], [0, 1, 0], [0, 0, NAN], [0, 0, NAN]])
    assert answer_accuracy(greedy, torch.tensor([1, 2, 0, 2])).nan_to_num(9).tolist() == [1, 0, 0, 9]


def test_order_spread_by_hand():
    # probabilities (0.2, 0.8) and (0.6, 0.4): a standard deviation of 0.2 for both options
    orders = torch.tensor([[[0.2, 0.8]], [[0.6, 0.4]]]).log()
    assert order_spread(orders).item() == pytest.approx(0.2, abs=1e-7)
    fewer = torch.cat([orders, torch.full((2, 1, 1), NAN)], -1)
    assert order_spread(fewer).item() == pytest.approx(0.2, abs=1e-7), "options that a query lacks do not count"
    missing = torch.cat([orders, torch.full((1, 1, 2), NAN)])
    assert order_spread(missing).item() == pytest.approx(0.2, abs=1e-7)
    assert order_spread(orders[:1]).isnan()
    certain = torch.tensor([[[0.0, -INF]], [[-INF, 0.0]]])
    assert order_spread(certain).item() == 0.5


def test_movement_by_hand():
    """Probabilities (.2, .8) become (.6, .4), then (.1, .9); the third option is not there."""
    icl = torch.tensor([[[0.2, 0.8, NAN]], [[0.6, 0.4, NAN]], [[0.1, 0.9, NAN]]]).log()
    ft = torch.tensor([[[0.5, 0.5, NAN]], [[0.7, 0.3, NAN]], [[0.7, 0.3, NAN]]]).log()
    assert movement(icl).item() == pytest.approx(0.25) and movement(icl, at=1).item() == pytest.approx(0.1)
    assert movement_cosine(icl, ft, at=0).item() == pytest.approx(1)
    assert movement_cosine(icl, ft, at=1).item() == pytest.approx(-1)
    together = (0.4 * 0.2 - 0.1 * 0.2) / math.hypot(0.4, 0.1) / math.hypot(0.2, 0.2)
    assert movement_cosine(icl, ft).item() == pytest.approx(together)
    still = ft[:1].expand(3, 1, 3)
    assert movement(still).item() == 0 and movement_cosine(icl, still).isnan()
    assert movement_cosine(still + torch.tensor([[[0.01, 0, 0]]]), ft).isnan(), "ICL hardly moves"
    assert movement(icl[:1]).isnan() and movement_cosine(icl[:1], ft[:1]).isnan()
    undefined = torch.cat([icl[:1], torch.full((1, 1, 3), NAN)])
    assert movement(undefined).isnan() and movement_cosine(undefined, undefined).isnan()


def test_next_token_overlap_by_hand():
    a, b = torch.tensor([[5.0, 4, 3, 2, 1]]), torch.tensor([[5.0, 1, 4, 2, 3]])
    assert [next_token_overlap(a, b, k=k).item() for k in (1, 2, 3, 5)] == [1, 0.5, pytest.approx(2 / 3), 1]
    assert next_token_overlap(a, torch.tensor([[NAN, 1, 4, 2, 3]]), k=2).isnan()
    ten = torch.arange(20.0)[None], torch.cat([torch.arange(9), torch.tensor([20]), torch.arange(10, 20)])[None].float()
    assert next_token_overlap(*ten).item() == 0.9, "the paper's K is 10"
    with pytest.raises(ValueError, match=r"k=6.*5 tokens"):
        next_token_overlap(a, b, k=6)


def test_distances_by_hand():
    p, q = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.5, 0.5]])
    assert torch.allclose(total_variation(p.log(), q.log()), torch.tensor([0.25, 1.0]).double())
    assert jensen_shannon(p.log(), q.log())[1].item() == pytest.approx(1, abs=1e-12)
    assert jensen_shannon(p.log(), p.log()).tolist() == [0, 0]


def test_distances_over_labels_normalise_and_leave_out_missing_options():
    a, b = torch.tensor([[-1.0, -2.0, NAN]]), torch.tensor([[-4.0, -4.0, -9.0]])
    p = special.softmax([-1.0, -2.0])
    assert total_variation(a, b).item() == pytest.approx(abs(p[0] - 0.5), abs=1e-7)
    assert jensen_shannon(a, b).item() == pytest.approx(distance.jensenshannon(p, [0.5, 0.5], base=2), abs=1e-7)
    nothing = torch.full((1, 3), NAN)
    assert total_variation(nothing, b).isnan() and jensen_shannon(nothing, b).isnan()


def test_recovered_by_hand():
    def logs(*rows):
        return torch.tensor(rows, dtype=torch.float64).log()

    zsl, icl = (
        logs([0.5, 0.5], [0.5, 0.5], [0.9, 0.1], [0.5, 0.5]),
        logs([0.9, 0.1], [0.9, 0.1], [0.905, 0.095], [0.6, 0.4]),
    )
    ft = logs([0.9, 0.1], [0.7, 0.3], [0.5, 0.5], [0.4, 0.6])
    torch.testing.assert_close(
        recovered(icl, ft, zsl), torch.tensor([1, 0.5, torch.nan, -1], dtype=torch.float64), equal_nan=True
    )


logits = arrays("float32", (2, 3, 7), elements=st.floats(-30, 30, width=32))


@given(logits)
def test_distances_are_scipys_bounded_and_symmetric(values):
    a, b = torch.from_numpy(values)
    p, q = (special.softmax(value.astype(np.float64), axis=-1) for value in values)
    js, tv = jensen_shannon(a, b), total_variation(a, b)
    with np.errstate(invalid="ignore"):  # scipy's is NaN where rounding leaves a divergence just below 0
        oracle = np.nan_to_num(distance.jensenshannon(p, q, base=2, axis=-1))
    assert np.allclose(js, oracle, atol=1e-7)
    assert np.allclose(tv, np.abs(p - q).sum(-1) / 2, atol=1e-12)
    for measured, back in ((js, jensen_shannon(b, a)), (tv, total_variation(b, a))):
        assert ((measured >= 0) & (measured <= 1)).all() and torch.allclose(measured, back, atol=1e-7)
    assert (js**2 <= tv + 1e-9).all(), "Lin (1991)"
    assert torch.allclose(total_variation(a + 3, b - 5), tv, atol=1e-5), "scores are taken up to a constant"


def test_order_sensitivity_by_hand():
    orders = torch.stack([choosing(0, 0, 1, -1), choosing(0, 1, -1, -1), choosing(0, 1, 2, 0), choosing(0, 2, 1, -1)])
    values = order_sensitivity(orders)
    assert values[:2].tolist() == [0, 0.5]
    assert values[2].item() == pytest.approx(1 / 3), "the order without a prediction is left out"
    assert values[3].isnan(), "one order says nothing about order"


@given(arrays("float32", (4, 3, 5), elements=st.floats(-20, 0, width=32)))
def test_order_measures_are_bounded_and_blind_to_which_order_came_first(values):
    orders = torch.from_numpy(values)
    for function, limit in ((order_sensitivity, 0.8), (order_spread, 0.5)):
        measured = function(orders)
        assert ((measured >= 0) & (measured <= limit)).all()
        assert torch.allclose(function(orders.flip(0)), measured, atol=1e-12)
        assert torch.allclose(function(orders[:1].expand(4, 3, 5)), torch.zeros(3).double(), atol=1e-9)
