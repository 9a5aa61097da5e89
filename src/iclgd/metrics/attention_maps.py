"""Likeness of the query's attention scores to its own tokens, with context, finetuned, and with neither.

Scores are scaled dot products before softmax. Queries differ in length and local layers do not see all of them: a key
that is NaN in any of the maps compared is left out of all of them.
"""

from __future__ import annotations

from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.metrics.numerics import by_examples, cosine

Maps = Float[Tensor, "example layer head key"]  # attention scores of the query's last token, before softmax


def _visible(*maps: Maps) -> list[Maps]:
    """The maps in float64, with 0 at keys that are NaN in any of them: a 0 in both leaves a cosine alone."""
    hidden = reduce(torch.logical_or, [attention.isnan() for attention in maps])
    return [attention.double().masked_fill(hidden, 0) for attention in maps]


def sim_am_by_head(a: Maps, b: Maps) -> Float[Tensor, "example layer head"]:
    """SimAM of every head: cosine over keys between two settings' attention scores, cos(m_a, m_b).

    Dai et al. (2023), arXiv 2212.10559, before its mean over heads.

    Returns:
        Values in [-1, 1], unaveraged. NaN where a map is exactly zero or no key is visible in both.
    """
    return by_examples(lambda *maps: cosine(*_visible(*maps)), a, b)


def sim_am(a: Maps, b: Maps) -> Float[Tensor, "example layer"]:
    """SimAM: mean over heads of the cosine between two settings' attention scores, mean_heads cos(m_a, m_b).

    With a = ICL, b = FT it is SimAM; with b = ZSL it is ZSL SimAM, what the context alone leaves unchanged.
    Dai et al. (2023), arXiv 2212.10559.

    Returns:
        Values in [-1, 1], averaged over heads only. Heads without a cosine are left out; NaN where none has one.
    """
    return sim_am_by_head(a, b).nanmean(-1)


def sim_am_delta_by_head(a: Maps, b: Maps, zsl: Maps) -> Float[Tensor, "example layer head"]:
    """SimAM_delta of every head: cosine over keys between two changes of the attention scores.

    cos(m_a - m_ZSL, m_b - m_ZSL). Deutch et al. (2024), arXiv 2311.07772, before its mean over heads.

    Returns:
        Values in [-1, 1], unaveraged. NaN where a change is exactly zero or no key is visible in all three.
    """

    def similarity(*maps: Tensor) -> Tensor:
        first, second, start = _visible(*maps)
        return cosine(first.sub_(start), second.sub_(start))

    return by_examples(similarity, a, b, zsl)


def sim_am_delta(a: Maps, b: Maps, zsl: Maps) -> Float[Tensor, "example layer"]:
    """SimAM_delta: mean over heads of the cosine between two changes of the attention scores.

    mean_heads cos(m_a - m_ZSL, m_b - m_ZSL). With a = ICL, b = FT it is SimAM_delta; with a, b two finetuning
    variants it is alpha, how alike those are. Deutch et al. (2024), arXiv 2311.07772.

    Returns:
        Values in [-1, 1], averaged over heads only. Heads without a cosine are left out; NaN where none has one.
    """
    return sim_am_delta_by_head(a, b, zsl).nanmean(-1)


def context_mass(mass: Float[Tensor, "example layer head"]) -> Float[Tensor, "example layer head"]:
    """The share l of the query's attention that goes to the context, bos left out.

    Attention with context is exactly A(C, x) = l A_C + (1 - l) A_x, with A_C and A_x its output over the context's
    tokens and over all others: a context can move a head no further than this share.

    Returns:
        Values in [0, 1], unaveraged.
    """
    return mass
