"""Attention to training tokens against scipy, hand-computed cases and plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from iclgd.metrics.attention import attention_kendall, recall_top_examples, recall_top_tokens
from iclgd.metrics.numerics import highest

NAN = math.nan
# bos, then demonstrations of 1, 3 and 2 tokens with a separator after each
CONTEXT = torch.tensor([-1, 0, -1, 1, 1, 1, -1, 2, 2, -1])
TOKENS = CONTEXT >= 0


def case(ft: list[float], icl: list[float]):
    """One example and one layer: vectors of one component, so that FT's scores are the training vectors."""
    training, scores = torch.full((10, 1, 1), NAN), torch.full((1, 1, 10), 99.0)
    training[TOKENS, 0, 0], scores[0, 0, TOKENS] = torch.tensor(ft).float(), torch.tensor(icl).float()
    return scores, torch.ones(1, 1, 1), training, CONTEXT


def random_case():
    generator = torch.Generator().manual_seed(3)
    shapes = (4, 2, 40), (4, 2, 6), (40, 2, 6)  # of four examples, two layers and 40 tokens
    scores, query, training = (torch.randn(shape, generator=generator) for shape in shapes)
    of = torch.arange(40) // 5
    of[::5] = -1
    training[of < 0] = NAN
    scores[0, 0, 7:11] = NAN  # a local layer does not see these
    return scores, query, training, of


def by_hand(scores, query, training, of):
    """Rows of (ICL scores, FT scores, demonstration) of the visible tokens, by plain indexing."""
    for example in range(scores.shape[0]):
        for layer in range(scores.shape[1]):
            ft = training[:, layer].double() @ query[example, layer].double()
            seen = (of >= 0) & ~scores[example, layer].isnan() & ~ft.isnan()
            yield scores[example, layer, seen].double().numpy(), ft[seen].numpy(), of[seen].numpy()


pairs = st.integers(2, 20).flatmap(lambda n: arrays("float32", (2, n), elements=st.integers(-4, 4).map(float)))


@given(pairs)
def test_kendall_counts_pairs_whatever_ties(values):
    icl, ft = (torch.from_numpy(value) for value in values)
    first, second = ((x[:, None] - x[None]).sign().double() for x in (icl, ft))
    expected = ((first * second).sum() / (first.abs().sum() * second.abs().sum()).sqrt()).item()
    of = torch.zeros(len(icl), dtype=torch.long)
    tau = attention_kendall(icl[None, None], torch.ones(1, 1, 1), ft[:, None, None], of).item()
    assert tau == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_scores_that_softmax_would_flush_to_zero_keep_their_order():
    assert attention_kendall(*case([1, 2, 3, 4, 5, 6], [-5e3, -4e3, -3e3, -2e3, -1e3, 0])).item() == pytest.approx(1)


def test_recall_of_tokens_by_hand():
    arguments = case([9, 8, 1, 2, 3, 4], [9, 1, 8, 2, 3, 4])
    assert recall_top_tokens(*arguments, k=1).item() == 1
    assert recall_top_tokens(*arguments, k=2).item() == 0.5
    assert recall_top_tokens(*arguments, k=6).item() == 1
    assert recall_top_tokens(*arguments, k=7).isnan(), "there are six tokens"


def test_recall_of_examples_sums_over_a_demonstrations_tokens():
    three = math.log(3)
    # ICL: demonstration 1 has three tokens of weight 1, more than demonstration 0 with one of weight 2
    icl = [math.log(2), 0, 0, 0, -9, -9]
    assert recall_top_examples(*case([0, three, -9, -9, -9, -9], icl), k=1).item() == 1
    assert recall_top_examples(*case([2 * three, three, -9, -9, -9, -9], icl), k=1).item() == 0
    assert recall_top_examples(*case([0, 0, 0, 0, 0, 0], icl), k=3).item() == 1
    assert recall_top_examples(*case([0, 0, 0, 0, 0, 0], icl), k=4).isnan()
    assert recall_top_examples(*case([0, 0, 0, 0, 0, 0], [NAN, *icl[1:]]), k=3).isnan(), "one of three is hidden"


@pytest.mark.parametrize("spread", [1, 500])
def test_recalls_agree_with_plain_loops(spread):
    scores, query, training, of = random_case()
    scores = scores * spread
    tokens, examples = [], []
    for icl, ft, demonstration in by_hand(scores, query, training, of):
        top_icl, top_ft = ({*np.argsort(-x)[:6].tolist()} for x in (icl, ft))
        tokens.append(len(top_icl & top_ft) / 6)
        tops = []
        for x in (icl, ft):
            mass = {d: np.logaddexp.reduce(x[demonstration == d]) for d in set(demonstration.tolist())}
            tops.append(set(sorted(mass, key=lambda d: -mass[d])[:3]))
        examples.append(len(tops[0] & tops[1]) / 3)
    assert recall_top_tokens(scores, query, training, of, k=6).flatten().tolist() == tokens
    assert np.allclose(recall_top_examples(scores, query, training, of, k=3).flatten(), examples)


@given(arrays("float32", 12, elements=st.integers(0, 3).map(float)), st.integers(1, 12))
def test_highest_takes_exactly_k_and_the_first_of_equals(values, k):
    chosen = highest(torch.from_numpy(values), k)
    assert sorted(np.argsort(-values, kind="stable")[:k].tolist()) == chosen.nonzero()[:, 0].tolist()
