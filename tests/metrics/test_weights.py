"""Two changes of weights, matrix by matrix, against numpy and a case with a known answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from iclgd.mechanisms.patches import ridge_map
from iclgd.metrics.updates import additivity, sim_centred
from iclgd.metrics.weights import weight_cosine, weight_norm_explained, weight_principal_angles
from linear_attention import LinearAttention, Regression


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_they_are_what_numpy_says(shape):
    a, b = drawn(*shape), drawn(*shape, seed=1)
    x, y = a.double().numpy(), b.double().numpy()
    (ux, _, vx), (uy, _, vy) = (np.linalg.svd(matrix, full_matrices=False) for matrix in (x, y))
    one = lambda matrix: ((matrix, matrix), (matrix, torch.zeros(shape)))  # noqa: E731
    cosines, angles = weight_cosine(one(a), one(b)), weight_principal_angles(one(a), one(b), r=2)
    explained = weight_norm_explained(one(a), one(b), r=2)
    sides = [subspace_angles(ux[:, :2], uy[:, :2]), subspace_angles(vx[:2].T, vy[:2].T)]
    inside = uy[:, :2].T @ x @ vy[:2].T
    for values, wanted in (
        (cosines, (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y)),
        (angles, np.mean(np.cos(sides) ** 2)),
        (explained, (inside**2).sum() / (x**2).sum()),
    ):
        assert values.shape == (2, 2) and values[1, 1].isnan()
        assert values[0].tolist() == pytest.approx([wanted] * 2, abs=1e-6)


def test_a_change_is_like_itself_and_scale_does_not_count():
    a = ((drawn(9, 6),), (drawn(9, 6, seed=1),))
    b = tuple(tuple(1e-6 * matrix for matrix in layer) for layer in a)
    assert weight_cosine(a, b).flatten().tolist() == pytest.approx([1, 1], abs=1e-6)
    assert weight_principal_angles(a, b, r=3).flatten().tolist() == pytest.approx([1, 1], abs=1e-6)
    assert (weight_norm_explained(a, b, r=6) - 1).abs().max() < 1e-6
    assert weight_principal_angles(((torch.ones(9, 6),),), ((drawn(9, 6),),), r=2).isnan().all()  # of rank 1


def test_random_changes_stand_where_the_docstrings_say():
    a, b = (tuple((drawn(40, 30, seed=seed + i),) for i in range(60)) for seed in (0, 1000))
    assert weight_cosine(a, b).mean().abs() < 4 / math.sqrt(1200 * 60)
    assert weight_principal_angles(a, b, r=4).mean() == pytest.approx((4 / 40 + 4 / 30) / 2, rel=0.1)
    assert weight_norm_explained(a, b, r=4).mean() == pytest.approx(16 / 1200, rel=0.15)


def test_where_context_is_a_gradient_step_the_change_that_stands_for_it_is_that_step():
    """Linear attention (von Oswald et al. 2023): the static patch's own fit to what context does finds GD's change."""
    layer = LinearAttention(0.3 * drawn(4, 6).double(), rate=0.3)
    shown = Regression(drawn(10, 6, seed=1).double(), drawn(10, 4, seed=2).double())
    queries = drawn(40, 6, seed=3).double()
    context = ridge_map(queries, layer(queries, shown) - layer(queries), 1e-9)
    for rate in (0.3, 0.05):
        trained = layer.finetuned(shown, rate).weight - layer.weight
        assert weight_cosine(((trained,),), ((context,),)).item() == pytest.approx(1, abs=1e-6)
        assert weight_principal_angles(((trained,),), ((context,),), r=2).item() == pytest.approx(1, abs=1e-6)
        assert weight_norm_explained(((trained,),), ((context,),), r=4).item() == pytest.approx(1, abs=1e-6)
    elsewhere = layer.finetuned(Regression(shown.inputs, -shown.targets), 0.3).weight - layer.weight
    assert weight_cosine(((elsewhere,),), ((context,),)).item() < 0.9


def test_centred_similarity_ignores_what_all_queries_share():
    icl, ft, zsl = (drawn(5, 3, 8, seed=seed) for seed in range(3))
    shift = 100 * drawn(1, 3, 8, seed=9)
    torch.testing.assert_close(sim_centred(icl + shift, ft, zsl), sim_centred(icl, ft, zsl), atol=1e-4, rtol=0)
    x, y = (icl - zsl).double(), (ft - zsl).double()
    x, y = x - x.mean(0), y - y.mean(0)
    torch.testing.assert_close(sim_centred(icl, ft, zsl), torch.cosine_similarity(x, y, dim=-1), atol=1e-6, rtol=0)
    assert sim_centred(icl[:1], ft[:1], zsl[:1]).isnan().all()


def test_additivity_is_one_for_what_adds_up():
    zsl, parts = drawn(5, 3, 8), [drawn(5, 3, 8, seed=seed) for seed in (1, 2)]
    ones = torch.ones(5, 3, dtype=torch.float64)
    torch.testing.assert_close(additivity(zsl + sum(parts), zsl, sum(parts)), ones, atol=1e-5, rtol=0)
    torch.testing.assert_close(additivity(zsl - sum(parts), zsl, sum(parts)), -ones, atol=1e-5, rtol=0)
