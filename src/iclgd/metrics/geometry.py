"""Scores of whether context and finetuning move the queries through the same subspace, and by what change of weights.

Of queries, they compare whole update matrices D = h - h_ZSL, of shape [example, d_model], layer by layer. Examples with
a NaN in either are left out. Both measures are larger by chance where examples are few. Of weights, they compare
finetuning's change of each feed-forward matrix with the static patch's, which is what the context amounts to in weights
(arXiv 2510.08734). A matrix that did not change has no direction and gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.metrics.numerics import bases, cosine, difference, over_largest
from iclgd.metrics.updates import Outputs

Changes = tuple[tuple[Float[Tensor, "_ _"], ...], ...]  # by layer, then by matrix [d_out, d_in]


def update_cka(icl: Outputs, ft: Outputs, zsl: Outputs) -> Float[Tensor, " layer"]:
    """Linear CKA between the update matrices of ICL and FT: do they treat the same queries alike?

    |X'Y|_F^2 / (|X'X|_F |Y'Y|_F), X and Y the updates with their mean over examples taken away. It ignores rotation
    and scale and the part of an update that all queries share. Kornblith et al. (2019), arXiv 1905.00414.

    Returns:
        Values in [0, 1] by layer. NaN with fewer than three examples (two always give 1), or where all updates agree.
    """

    def similarity(x: Tensor, y: Tensor) -> Tensor:
        if x.shape[0] < 3:
            return torch.tensor(torch.nan, dtype=torch.float64)
        x, y = over_largest(x - x.mean(0)), over_largest(y - y.mean(0))
        if x.shape[0] <= x.shape[1]:
            first, second = x @ x.T, y @ y.T
            shared = (first * second).sum()
        else:
            first, second = x.T @ x, y.T @ y
            shared = (x.T @ y).square().sum()
        return (shared / (first.norm() * second.norm())).clamp(0, 1)

    return _by_layer(similarity, icl, ft, zsl)


def subspace_overlap(icl: Outputs, ft: Outputs, zsl: Outputs, r: int = 8) -> Float[Tensor, " layer"]:
    """Overlap of the r main directions of ICL's updates with those of finetuning's.

    Mean of cos^2 of the principal angles between the spans of the first r right singular vectors of the two update
    matrices (not centred), |U'V|_F^2 / r. Two random subspaces have r / d_model. Björck and Golub (1973); as a
    comparison of updates Hu et al. (2021, LoRA, arXiv 2106.09685), sec. 7.2.

    Returns:
        Values in [0, 1] by layer. NaN where an update matrix has a numerical rank below r.

    Raises:
        ValueError: r is not positive.
    """
    if r < 1:
        raise ValueError(f"params.r={r} spans nothing: give 1 or more")

    def similarity(x: Tensor, y: Tensor) -> Tensor:
        return (bases(x.T, r)[0].T @ bases(y.T, r)[0]).square().sum().clamp(max=r) / r

    return _by_layer(similarity, icl, ft, zsl)


def weight_cosine(trained: Changes, context: Changes) -> Float[Tensor, "layer matrix"]:
    """Cosine between the two changes of a matrix, all of its numbers as one vector.

    Returns:
        Values in [-1, 1]; for random changes 0 on average, with standard deviation 1/sqrt(numbers).
    """
    return _by_matrix(lambda a, b: cosine(a.flatten(), b.flatten()), trained, context)


def weight_principal_angles(trained: Changes, context: Changes, r: int = 8) -> Float[Tensor, "layer matrix"]:
    """Mean cos^2 of the principal angles between the r main directions of the two changes, of inputs and outputs alike.

    |U'V|_F^2 / r, the mean of that over left and over right singular vectors. Björck and Golub (1973); Hu et al. (2021,
    LoRA, arXiv 2106.09685), sec. 7.2.

    Returns:
        Values in [0, 1]; for random changes r / d, the mean over both sides.
    """

    def angles(a: Tensor, b: Tensor) -> Tensor:
        sides = zip(bases(a, r), bases(b, r), strict=True)
        return torch.stack([(mine.T @ its).square().sum() / r for mine, its in sides]).mean().clamp(max=1)

    return _by_matrix(angles, trained, context)


def weight_norm_explained(trained: Changes, context: Changes, r: int = 8) -> Float[Tensor, "layer matrix"]:
    """Share of finetuning's change, in squared norm, that lies in the r main directions of the context's change.

    |U U' dW V V'|_F^2 / |dW|_F^2 with U and V the context's first r left and right singular vectors.

    Returns:
        Values in [0, 1]; for random changes r^2 / (d_out d_in).
    """

    def explained(a: Tensor, b: Tensor) -> Tensor:
        left, right = bases(b, r)
        return (left.T @ a @ right).square().sum() / a.square().sum()

    return _by_matrix(explained, trained, context)


def _by_layer(similarity, icl: Tensor, ft: Tensor, zsl: Tensor) -> Float[Tensor, " layer"]:
    values = []
    for layer in range(zsl.shape[1]):
        x, y = (difference(h[:, layer], zsl[:, layer]) for h in (icl, ft))
        defined = (x.isfinite() & y.isfinite()).all(-1)
        values.append(similarity(over_largest(x[defined]), over_largest(y[defined])))
    return torch.stack(values)


def _by_matrix(compare: Callable[[Tensor, Tensor], Tensor], one: Changes, other: Changes) -> Tensor:
    nothing = torch.tensor(torch.nan, dtype=torch.float64)

    def value(a: Tensor, b: Tensor) -> Tensor:
        return compare(over_largest(a), over_largest(b)).double() if a.any() and b.any() else nothing

    layers = zip(one, other, strict=True)
    return torch.stack([torch.stack([*map(value, first, second)]) for first, second in layers])
