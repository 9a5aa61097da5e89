"""CKA, subspaces and changes of weights against numpy, scipy, scikit-learn and hand-computed cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from sklearn.decomposition import TruncatedSVD
from sklearn.metrics.pairwise import linear_kernel
from sklearn.preprocessing import KernelCenterer

from iclgd.mechanisms.patches import ridge_map
from iclgd.metrics.geometry import (
    subspace_overlap,
    update_cka,
    weight_cosine,
    weight_norm_explained,
    weight_principal_angles,
)
from linear_attention import LinearAttention, Regression

NAN = math.nan


def updates(example: int, d_model: int, layer: int = 2, seed: int = 0):
    """(icl, ft, zsl) whose update matrices are random, with unequal strengths of their directions."""
    generator = torch.Generator().manual_seed(seed)
    strengths = torch.linspace(3, 0.2, d_model)
    zsl = torch.randn(example, layer, d_model, generator=generator)
    return *(zsl + strengths * torch.randn(example, layer, d_model, generator=generator) for _ in range(2)), zsl


def matrix(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows).float()[:, None, :]


@pytest.mark.parametrize(("example", "d_model"), [(6, 20), (30, 5)])
def test_cka_is_that_of_centred_kernels(example, d_model):
    icl, ft, zsl = updates(example, d_model)
    for layer in range(2):
        kernels = [
            KernelCenterer().fit_transform(linear_kernel((h[:, layer] - zsl[:, layer]).double().numpy()))
            for h in (icl, ft)
        ]
        expected = (kernels[0] * kernels[1]).sum() / np.prod([np.linalg.norm(kernel) for kernel in kernels])
        assert update_cka(icl, ft, zsl)[layer].item() == pytest.approx(expected, abs=1e-6)


def test_cka_undefined():
    icl, ft, zsl = updates(12, 6)
    assert update_cka(icl[:2], ft[:2], zsl[:2]).isnan().all(), "two examples always agree"
    assert update_cka(zsl + 0.1, ft, zsl * 0 + 0.1).shape == (2,)
    assert update_cka(torch.full_like(zsl, 0.1), ft, zsl * 0).isnan().all(), "one update for all queries"
    assert update_cka(zsl, ft, zsl).isnan().all()
    holes = icl.clone()
    holes[3, 0] = NAN
    keep = torch.arange(12) != 3
    expected = update_cka(icl[keep], ft[keep], zsl[keep])[0], update_cka(icl, ft, zsl)[1]
    assert torch.allclose(update_cka(holes, ft, zsl), torch.stack(expected))


@pytest.mark.parametrize(("example", "d_model", "r"), [(10, 30, 3), (40, 8, 3), (40, 8, 1), (8, 8, 5)])
def test_overlap_is_the_mean_squared_cosine_of_scipys_angles(example, d_model, r):
    icl, ft, zsl = updates(example, d_model)
    for layer in range(2):
        bases = []
        for h in (icl, ft):
            svd = TruncatedSVD(r, algorithm="arpack", random_state=0).fit((h - zsl)[:, layer].double().numpy())
            bases.append(svd.components_.T)
        expected = np.mean(np.cos(subspace_angles(*bases)) ** 2)
        assert subspace_overlap(icl, ft, zsl, r=r)[layer].item() == pytest.approx(expected, abs=1e-6)


def test_overlap_by_hand():
    zero, root = torch.zeros(2, 1, 3), math.sqrt(0.5)
    plane = matrix((2, 0, 0), (0, 1, 0))
    assert subspace_overlap(plane, matrix((0, 3, 0), (1, 0, 0)), zero, r=2).item() == pytest.approx(1, abs=1e-12)
    assert subspace_overlap(plane, matrix((0, 0, 3), (1, 0, 0)), zero, r=2).item() == pytest.approx(0.5, abs=1e-12)
    tilted = matrix((root, root, 0), (0, 0, 0.1))
    assert subspace_overlap(plane, tilted, zero, r=1).item() == pytest.approx(0.5, abs=1e-6)
    assert subspace_overlap(plane, matrix((0, 0, 3), (0, 0, 1)), zero, r=2).isnan(), "its rank is 1"
    assert subspace_overlap(plane, plane, zero, r=3).isnan()
    assert subspace_overlap(plane, zero, zero, r=1).isnan()
    with pytest.raises(ValueError, match="r=0"):
        subspace_overlap(plane, plane, zero, r=0)


@given(
    st.integers(0, 1000), st.integers(3, 12), st.integers(2, 12), st.integers(1, 3), st.sampled_from([1e-20, 1, 1e9])
)
@settings(max_examples=40)
def test_bounded_symmetric_and_one_with_itself(seed, example, d_model, r, size):
    icl, ft, zsl = (h * size for h in updates(example, d_model, layer=1, seed=seed))
    for there, back, same in (
        (update_cka(icl, ft, zsl), update_cka(ft, icl, zsl), update_cka(icl, icl, zsl)),
        tuple(subspace_overlap(*h, zsl, r=r) for h in ((icl, ft), (ft, icl), (icl, icl))),
    ):
        assert torch.allclose(there, back, atol=1e-9, equal_nan=True)
        assert there.isnan() or 0 <= there <= 1
        assert same.isnan() or same.item() == pytest.approx(1, abs=1e-6)
        assert not there.isnan() or r > min(example, d_model)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_they_are_what_numpy_says(shape):
    a, b = drawn(*shape), drawn(*shape, seed=1)
    x, y = a.double().numpy(), b.double().numpy()
    (ux, _, vx), (uy, _, vy) = (np.linalg.svd(matrix, full_matrices=False) for matrix in (x, y))
    one = lambda matrix: ((matrix, matrix), (matrix, torch.zeros(shape)))  # noqa: E731
    sides = [subspace_angles(ux[:, :2], uy[:, :2]), subspace_angles(vx[:2].T, vy[:2].T)]
    inside = uy[:, :2].T @ x @ vy[:2].T
    for values, wanted in (
        (weight_cosine(one(a), one(b)), (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y)),
        (weight_principal_angles(one(a), one(b), r=2), np.mean(np.cos(sides) ** 2)),
        (weight_norm_explained(one(a), one(b), r=2), (inside**2).sum() / (x**2).sum()),
    ):
        assert values.shape == (2, 2) and values[1, 1].isnan()
        assert values[0].tolist() == pytest.approx([wanted] * 2, abs=1e-6)


def test_scale_does_not_count_and_random_changes_stand_where_the_docstrings_say():
    a, b = (tuple((drawn(40, 30, seed=seed + i),) for i in range(60)) for seed in (0, 1000))
    smaller = tuple(tuple(1e-6 * matrix for matrix in layer) for layer in a)
    assert weight_cosine(a, smaller).flatten().tolist() == pytest.approx([1] * 60, abs=1e-6)
    assert weight_principal_angles(a, smaller, r=3).flatten().tolist() == pytest.approx([1] * 60, abs=1e-6)
    assert weight_cosine(a, b).mean().abs() < 4 / math.sqrt(1200 * 60)
    assert weight_principal_angles(a, b, r=4).mean() == pytest.approx((4 / 40 + 4 / 30) / 2, rel=0.1)
    assert weight_norm_explained(a, b, r=4).mean() == pytest.approx(16 / 1200, rel=0.15)
    assert weight_principal_angles(((torch.ones(9, 6),),), ((drawn(9, 6),),), r=2).isnan().all()  # of rank 1


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
    elsewhere = layer.finetuned(Regression(shown.inputs, -shown.targets), 0.3).weight - layer.weight
    assert weight_cosine(((elsewhere,),), ((context,),)).item() < 0.9
