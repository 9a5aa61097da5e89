"""Equations between tensors of one pass, by which the parts of a model are found and proven."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_ROUNDINGS = 4  # how many roundings of each term a sum may be off by


def is_sum(total: Tensor, terms: Sequence[Tensor]) -> bool:
    """Whether `total` is the sum of `terms` in every element, but for rounding."""
    rounding = _ROUNDINGS * torch.finfo(total.dtype).eps
    size = sum((term.double().abs() for term in terms), total.double().abs())
    difference = (total.double() - sum(term.double() for term in terms)).abs()
    return bool((difference <= (rounding * size).clamp(min=torch.finfo(torch.float32).tiny)).all())


def multiples(
    total: Tensor, base: Tensor, terms: Sequence[Tensor], numbers: Iterable[float]
) -> tuple[float, ...] | None:
    """The factors with which `base` + factors * `terms` is `total`; None if there are none.

    A factor that is nearly one of `numbers` is that number.
    """
    if total.shape != base.shape or any(term.shape != base.shape for term in terms):
        return None
    if is_sum(total, (base, *terms)):  # as nearly always
        return (1.0,) * len(terms)
    matrix = torch.stack([term.double().flatten() for term in terms], dim=1)
    target = (total.double() - base.double()).flatten()
    solution = torch.linalg.pinv(matrix.T @ matrix) @ (matrix.T @ target)
    factors = tuple(nearest(value, numbers) for value in solution.tolist())
    if not all(factors) or not is_sum(total, [base, *(f * term for f, term in zip(factors, terms, strict=True))]):
        return None
    return factors


def nearest(value: float, numbers: Iterable[float]) -> float:
    """The number that a value is but for rounding, or the value."""
    return next((number for number in (1.0, *numbers) if abs(value - number) <= 1e-4 * abs(number)), value)


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, bit for bit."""
    return one.shape == other.shape and torch.equal(one, other)


def bent(
    products: Float[Tensor, "*token vocabulary"], logits: Tensor, numbers: Sequence[float]
) -> tuple[float, float | None] | None:
    """The scale and softcap with which products are logits, of `numbers` and their inverses; None if there are none.

    The best counts, for in half precision a mild softcap is hardly more than rounding.
    """
    if same(products.to(logits), logits):  # as nearly always
        return 1.0, None
    rounding = 8 * torch.finfo(logits.dtype).eps
    some = logits.double().flatten().abs().topk(min(1000, logits.numel())).indices  # where a softcap shows most
    given, wanted = products.double().flatten()[some], logits.double().flatten()[some]
    scales = (1.0, *numbers, *(1 / number for number in numbers))
    forms = [((scale, None), given * scale) for scale in scales]
    forms += [((1.0, cap), torch.tanh(given / cap) * cap) for cap in numbers]
    error, form = min(
        ((((values - wanted).norm() / wanted.norm()).item(), form) for form, values in forms), key=lambda each: each[0]
    )
    return form if error <= rounding else None
