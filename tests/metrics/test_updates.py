"""SimAOU, SimAM and their relatives against hand-computed cases, plain loops, their bounds and their symmetries."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from iclgd.metrics import numerics, updates
from iclgd.metrics.attention import sim_am, sim_am_by_head, sim_am_delta
from iclgd.metrics.updates import sim_aou, sim_aou_norm, sim_aou_random, sim_centred, update_norm_ratio

NAN = math.nan
finite = st.floats(-1e6, 1e6, width=32)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one(*vector: float) -> torch.Tensor:
    return torch.tensor([[vector]])


def outputs(count: int):
    """`count` attention outputs [example, layer, d_model], with plenty of zeros and repeats."""
    return st.lists(arrays("float32", (2, 3, 4), elements=finite), min_size=count, max_size=count).map(
        lambda values: [torch.from_numpy(value) for value in values]
    )


def attention(example: int, layer: int, head: int, key: int, seed: int) -> torch.Tensor:
    """Scores of queries of unequal length, and of a layer that sees only the last two keys."""
    scores = normal(example, layer, head, key, seed=seed)
    for index in range(example):
        scores[index, :, :, key - index % (key - 1) :] = NAN
    scores[:, 1, :, :-2] = NAN
    return scores


def test_sim_aou_by_hand():
    zsl = one(1.0, 1.0)
    assert sim_aou(zsl + one(1.0, 0.0), zsl + one(2.0, 0.0), zsl).item() == 1
    assert sim_aou(zsl + one(1.0, 0.0), zsl + one(0.0, 3.0), zsl).item() == 0
    assert sim_aou(zsl + one(3.0, 4.0), zsl + one(-4.0, 3.0), zsl).item() == 0
    assert sim_aou(zsl + one(1.0, 0.0), zsl + one(1.0, 1.0), zsl).item() == pytest.approx(math.sqrt(0.5), abs=1e-12)
    assert sim_aou(zsl + one(1.0, 0.0), zsl - one(1.0, 0.0), zsl).item() == -1
    assert sim_aou_random(one(2.0, 1.0), zsl, one(3.0, 4.0)).item() == pytest.approx(0.6, abs=1e-12)


def test_sim_aou_norm_by_hand():
    # unit lengths: icl (1, 0), ft (0, 1), zsl (0.6, 0.8); differences (0.4, -0.8) and (-0.6, 0.2)
    expected = (0.4 * -0.6 + -0.8 * 0.2) / (math.hypot(0.4, 0.8) * math.hypot(0.6, 0.2))
    assert sim_aou_norm(one(7.0, 0.0), one(0.0, 2.0), one(3.0, 4.0)).item() == pytest.approx(expected, abs=1e-7)


def test_update_norm_ratio_by_hand():
    zsl = one(1.0, 1.0)
    assert update_norm_ratio(zsl + one(3.0, 4.0), zsl + one(6.0, 8.0), zsl).item() == 2
    assert update_norm_ratio(zsl + one(3.0, 4.0), zsl, zsl).item() == 0
    assert update_norm_ratio(zsl, zsl + one(3.0, 4.0), zsl).isnan()


def test_sim_am_by_hand():
    a = torch.tensor([[[[1.0, 0.0, 5.0], [1.0, 1.0, NAN], [0.0, 0.0, 0.0]]]])
    b = torch.tensor([[[[0.0, 2.0, NAN], [3.0, 3.0, 8.0], [1.0, 2.0, 3.0]]]])
    heads = sim_am_by_head(a, b)[0, 0]
    assert heads[0] == 0 and heads[1] == pytest.approx(1, abs=1e-12) and heads[2].isnan()
    assert sim_am(a, b).item() == pytest.approx(0.5, abs=1e-12), "a head without a cosine is left out of the mean"


def test_no_update_has_no_direction():
    h = normal(2, 3, 4)
    other = h + 1
    for first, second in ((h, other), (other, h), (h, h)):
        assert sim_aou(first, second, h).isnan().all()
        assert sim_aou_norm(first, second, h).isnan().all()
    assert sim_aou_random(h, h, other).isnan().all()
    maps = normal(2, 3, 2, 4)
    assert sim_am_delta(maps, maps + 1, maps).isnan().all()
    assert sim_am(maps * 0, maps).isnan().all()


def test_undefined_entries_stay_with_their_example_and_layer():
    icl, ft, zsl = (normal(3, 2, 4, seed=seed) for seed in range(3))
    ft[1, 0] = zsl[1, 0]
    icl[2, 1, 3] = NAN
    ft[0, 1, 0] = math.inf
    undefined = torch.tensor([[False, True], [True, False], [False, True]])
    assert torch.equal(sim_aou(icl, ft, zsl).isnan(), undefined)
    assert torch.equal(sim_aou_norm(icl, ft, zsl).isnan(), undefined)
    undefined[1, 0] = False  # finetuning that changes nothing pushes 0 times as hard
    assert torch.equal(update_norm_ratio(icl, ft, zsl).isnan(), undefined)


def test_sim_am_delta_agrees_with_plain_loops_over_ragged_keys():
    a, b, zsl = (attention(5, 3, 4, 6, seed) for seed in range(3))
    b[0, 0, 1, 0] = NAN  # hidden in one setting only
    a[1, 0] = zsl[1, 0]  # no head of this layer has an update
    a[2, 0, 3] = zsl[2, 0, 3]  # one head has none
    measured = sim_am_delta(a, b, zsl)
    for example in range(5):
        for layer in range(3):
            cosines = []
            for head in range(4):
                rows = [maps[example, layer, head].tolist() for maps in (a, b, zsl)]
                keys = [key for key in zip(*rows, strict=True) if not any(math.isnan(value) for value in key)]
                x, y = [first - start for first, _, start in keys], [second - start for _, second, start in keys]
                length = math.sqrt(sum(v * v for v in x)) * math.sqrt(sum(v * v for v in y))
                if length > 0:
                    cosines.append(sum(v * w for v, w in zip(x, y, strict=True)) / length)
            expected = sum(cosines) / len(cosines) if cosines else NAN
            assert measured[example, layer].item() == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert measured[1, 0].isnan() and measured.isfinite().any()


@given(outputs(3))
def test_bounded_and_symmetric(values):
    icl, ft, zsl = values
    for function in (sim_aou, sim_aou_norm):
        there, back = function(icl, ft, zsl), function(ft, icl, zsl)
        assert torch.equal(there.isnan(), back.isnan())
        assert torch.allclose(there, back, atol=1e-12, equal_nan=True)
        assert (there.isnan() | (there.abs() <= 1)).all()
    same = sim_aou(icl, icl, zsl)
    assert (same.isnan() == (icl == zsl).all(-1)).all() and torch.allclose(same[~same.isnan()], torch.ones(1).double())


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-8, 1.0, 1e30])
def test_updates_of_any_size_keep_their_direction(size):
    zero = torch.zeros(1, 1, 2)
    assert sim_aou(one(size, 0.0), one(size, size), zero).item() == pytest.approx(math.sqrt(0.5), abs=1e-12)
    tiny = torch.tensor([[[5e-324, 0.0]]], dtype=torch.float64)
    assert sim_aou(tiny, tiny, zero.double()).item() == 1
    huge = torch.tensor([[[3e38, 3e38]]])
    assert sim_aou(huge, -huge, zero).item() == pytest.approx(-1, abs=1e-12)


def test_running_over_examples_in_pieces_changes_nothing(monkeypatch):
    a, b, zsl = (attention(7, 3, 4, 6, seed) for seed in range(3))
    whole = sim_am_delta(a, b, zsl), sim_aou(a[..., 0, :1], b[..., 0, :1], zsl[..., 0, :1])
    monkeypatch.setattr(numerics, "ELEMENTS_AT_ONCE", 100)
    pieces = sim_am_delta(a, b, zsl), sim_aou(a[..., 0, :1], b[..., 0, :1], zsl[..., 0, :1])
    assert all(torch.equal(x.nan_to_num(9), y.nan_to_num(9)) for x, y in zip(whole, pieces, strict=True))
    assert sim_am(a[:0], b[:0]).shape == (0, 3)


@pytest.mark.parametrize(("growth", "expected"), [(1.0, 0.1464), (math.sqrt(3), 0.25), (30.0, 0.4833)])
def test_unrelated_updates_look_alike_once_normalised(growth, expected):
    """Two independent random updates: SimAOU sees nothing, SimAOU_norm up to one half.

    Let |h_ZSL| = 1 and let u, v be independent random updates of length g. In many dimensions h_ZSL, u and v are
    orthogonal but for O(1/sqrt(d_model)), so that |h_ICL| = |h_FT| = sqrt(1 + g^2), and with s = 1 / sqrt(1 + g^2)

        h_ICL/|h_ICL| - h_ZSL = s u - (1 - s) h_ZSL,        h_FT/|h_FT| - h_ZSL = s v - (1 - s) h_ZSL.

    Their inner product is (1 - s)^2, from the h_ZSL that both subtract; the square of each length is
    s^2 g^2 + (1 - s)^2 = 2 (1 - s), by s^2 (1 + g^2) = 1. The cosine of two updates that share nothing is therefore
    (1 - s) / 2: 0.146 for updates as long as h_ZSL, 1/4 where they double the length of the output (g = sqrt(3),
    s = 1/2), and 1/2 in the limit.
    """
    d_model, examples = 2048, 200
    h_zsl, u, v = (updates.unit(normal(examples, 1, d_model, seed=seed)) for seed in range(3))
    h_icl, h_ft = h_zsl + growth * u, h_zsl + growth * v
    assert expected == pytest.approx((1 - 1 / math.sqrt(1 + growth**2)) / 2, abs=1e-4)
    plain, normalised = sim_aou(h_icl, h_ft, h_zsl), sim_aou_norm(h_icl, h_ft, h_zsl)
    four_errors = 4 / math.sqrt(d_model * examples)
    assert plain.mean().item() == pytest.approx(0, abs=four_errors)
    assert normalised.mean().item() == pytest.approx(expected, abs=four_errors)


def test_centred_similarity_ignores_what_all_queries_share():
    icl, ft, zsl = (normal(5, 3, 8, seed=seed) for seed in range(3))
    shift = 100 * normal(1, 3, 8, seed=9)
    torch.testing.assert_close(sim_centred(icl + shift, ft, zsl), sim_centred(icl, ft, zsl), atol=1e-4, rtol=0)
    x, y = (icl - zsl).double(), (ft - zsl).double()
    x, y = x - x.mean(0), y - y.mean(0)
    torch.testing.assert_close(sim_centred(icl, ft, zsl), torch.cosine_similarity(x, y, dim=-1), atol=1e-6, rtol=0)
    assert sim_centred(icl[:1], ft[:1], zsl[:1]).isnan().all()
