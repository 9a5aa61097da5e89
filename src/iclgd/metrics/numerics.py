"""Cosines, lengths and singular vectors in float64, a few examples at a time.

A vector is divided by its largest entry before it is squared, so that differences of any size neither underflow nor
overflow. Nothing is added to a denominator: the cosine of an exactly zero vector is NaN, not 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ELEMENTS_AT_ONCE = 2**21  # of the largest argument: 16 MiB for each temporary


def by_examples(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors)`, computed for a few examples (their first axis) at a time to bound memory."""
    largest = max(tensor[:1].numel() for tensor in tensors)
    size = max(1, ELEMENTS_AT_ONCE // max(1, largest))
    starts = range(0, max(1, tensors[0].shape[0]), size)
    return torch.cat([function(*(tensor[start : start + size] for tensor in tensors)) for start in starts])


def difference(after: Float[Tensor, "*axes"], before: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """What changed, in float64 (exact for float32 numbers of like size)."""
    return after.double() - before


def scaled(vectors: Float[Tensor, "*axes n"]) -> Float[Tensor, "*axes n"]:
    """Each vector over its largest absolute entry, in float64; NaN where it is zero or not finite."""
    vectors = vectors.double()
    return vectors / torch.linalg.vector_norm(vectors, float("inf"), dim=-1, keepdim=True)


def unit(vectors: Float[Tensor, "*axes n"]) -> Float[Tensor, "*axes n"]:
    """Each vector at length 1, in float64; NaN where it is zero or not finite."""
    vectors = scaled(vectors)
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)


def norm(vectors: Float[Tensor, "*axes n"]) -> Float[Tensor, "*axes"]:
    """Euclidean length in float64; NaN where an entry is NaN."""
    vectors = vectors.double()
    largest = torch.linalg.vector_norm(vectors, float("inf"), dim=-1, keepdim=True)
    divisor = largest.where(largest != 0, torch.ones_like(largest))
    return torch.linalg.vector_norm(vectors / divisor, dim=-1) * largest[..., 0]


def cosine(a: Float[Tensor, "*axes n"], b: Float[Tensor, "*axes n"]) -> Float[Tensor, "*axes"]:
    """Cosine between the vectors of the last axis, in [-1, 1]; NaN where either is exactly zero or not finite."""
    a, b = scaled(a), scaled(b)
    lengths = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    return (torch.linalg.vecdot(a, b) / lengths).clamp(-1, 1)


def over_largest(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """A matrix over its largest absolute entry, in float64; NaN where it is zero."""
    return matrix.double() / matrix.abs().max() if matrix.numel() else matrix.double()


def bases(matrix: Float[Tensor, "rows columns"], r: int) -> tuple[Float[Tensor, "rows r"], Float[Tensor, "columns r"]]:
    """The first r left and right singular vectors, from the smaller Gram matrix; NaN where the rank is below r."""
    tall = matrix.shape[0] >= matrix.shape[1]
    thin = matrix if tall else matrix.T
    vectors, others = (thin.new_full((size, r), torch.nan) for size in (thin.shape[1], thin.shape[0]))
    if thin.shape[1] >= r and not matrix.isnan().any():
        strengths, eigenvectors = torch.linalg.eigh(thin.T @ thin)
        if strengths[-r] > strengths[-1] * max(matrix.shape) * torch.finfo(torch.float64).eps:
            vectors = eigenvectors[:, -r:]
            others = torch.linalg.qr(thin @ vectors).Q
    return (others, vectors) if tall else (vectors, others)


def highest(scores: Float[Tensor, "*axes n"], k: int) -> Bool[Tensor, "*axes n"]:
    """Which entries are the k highest of the last axis; among equals the first ones. Entries must not be NaN."""
    threshold = scores.topk(k, dim=-1).values[..., -1:]
    above, level = scores > threshold, scores == threshold
    room = k - above.sum(-1, keepdim=True)
    return above | (level & (level.cumsum(-1) <= room))


def predicted(label_scores: Float[Tensor, "*axes label"]) -> Int[Tensor, "*axes"]:
    """The index of the best option, -1 where no option has a score."""
    missing = label_scores.isnan()
    best = label_scores.masked_fill(missing, -torch.inf).argmax(-1)
    return best.masked_fill(missing.all(-1), -1)
