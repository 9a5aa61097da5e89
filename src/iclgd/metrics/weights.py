"""Likeness of two changes of weights, matrix by matrix.

`trained` and `context` are finetuning's changes and the static patch's, which is what the context amounts to in weights
(arXiv 2510.08734): by layer, then by feed-forward matrix [d_out, d_in]. A matrix that did not change has no direction
and gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.metrics.numerics import bases, cosine, over_largest
from iclgd.metrics.registry import metric

Changes = tuple[tuple[Float[Tensor, "_ _"], ...], ...]


@metric
def weight_cosine(trained: Changes, context: Changes) -> Float[Tensor, "layer matrix"]:
    """Cosine between the two changes of a matrix, all of its numbers as one vector.

    Returns:
        Values in [-1, 1]; for random changes 0 on average, with standard deviation 1/sqrt(numbers).
    """
    return _by_matrix(lambda a, b: cosine(a.flatten(), b.flatten()), trained, context)


@metric
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


@metric
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


def _by_matrix(compare: Callable[[Tensor, Tensor], Tensor], one: Changes, other: Changes) -> Tensor:
    nothing = torch.tensor(torch.nan, dtype=torch.float64)

    def value(a: Tensor, b: Tensor) -> Tensor:
        return compare(over_largest(a), over_largest(b)).double() if a.any() and b.any() else nothing

    layers = zip(one, other, strict=True)
    return torch.stack([torch.stack([*map(value, first, second)]) for first, second in layers])
