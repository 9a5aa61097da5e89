"""Distances between two settings' predicted distributions, over the whole vocabulary or over the label options.

The distances take unnormalised log-probabilities: softmax leaves those of the vocabulary as they are and turns label
scores into a distribution over the options. Options that are NaN in either setting (a query with fewer) are left out of
both. ICL and GD are compared by their output distributions in Shen, Mishra and Khashabi (2024), arXiv 2310.08540.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.metrics.numerics import by_examples, highest

Options = Float[Tensor, "example option"]  # log-probabilities of all tokens, or scores of the label options
ByExample = Float[Tensor, " example"]


def next_token_overlap(a: Options, b: Options, k: int = 10) -> ByExample:
    """Overlap of the k likeliest next tokens of two settings.

    |top_k(a) & top_k(b)| / k; of equal probabilities the token with the lower id counts. Shen, Mishra and Khashabi
    (2024), arXiv 2310.08540 (token overlap, with K = 10).

    Returns:
        Values in [0, 1], unaveraged. NaN where a log-probability is NaN.

    Raises:
        ValueError: the vocabulary has fewer than k tokens.
    """
    if not 1 <= k <= a.shape[-1]:
        raise ValueError(f"params.k={k}, but a vocabulary of {a.shape[-1]} tokens has a top 1 to {a.shape[-1]}")

    def overlap(a: Tensor, b: Tensor) -> Tensor:
        undefined = (a.isnan() | b.isnan()).any(-1)
        a, b = a.masked_fill(undefined[:, None], 0), b.masked_fill(undefined[:, None], 0)
        shared = (highest(a, k) & highest(b, k)).sum(-1)
        return (shared.double() / k).masked_fill(undefined, torch.nan)

    return by_examples(overlap, a, b)


def total_variation(a: Options, b: Options) -> ByExample:
    """Total variation distance between two predicted distributions, sum |p - q| / 2.

    Returns:
        Values in [0, 1], unaveraged: the largest difference in probability that any set of outcomes has. NaN where no
        option is defined in both.
    """

    def distance(a: Tensor, b: Tensor) -> Tensor:
        p, q = _distributions(a, b)
        return ((p - q).abs().sum(-1) / 2).clamp(max=1)

    return by_examples(distance, a, b)


LEAST_EFFECT = 0.01  # total variation between ICL and zero-shot below which there is nothing to recover


def recovered(
    icl: Float[Tensor, "example option"], ft: Float[Tensor, "example option"], zsl: Float[Tensor, "example option"]
) -> Float[Tensor, " example"]:
    """The share of ICL's change of the predictions that FT makes too, 1 - TV(ft, icl) / TV(zsl, icl).

    Returns:
        Values up to 1, unaveraged: 1 where FT predicts what ICL does, 0 where it is no nearer to ICL than zero-shot
        is, below 0 where it is further. NaN where TV(zsl, icl) is below `LEAST_EFFECT`, and where it is NaN.
    """
    return _recovered_share(total_variation(ft, icl), total_variation(zsl, icl))


def graft(
    distance: Float[Tensor, "example layer"],
    icl: Float[Tensor, "example option"],
    zsl: Float[Tensor, "example option"],
) -> Float[Tensor, "example layer"]:
    """The share of ICL's effect that is there when some layers' attention outputs alone are put in.

    Args:
        distance: total variation between ICL and the model without context with those outputs put in, by layer.
        icl: log-probabilities of the next token with context.
        zsl: the same without context.

    Returns:
        As `recovered`, for each layer.
    """
    return _recovered_share(distance, total_variation(zsl, icl)[:, None])


def _recovered_share(distance: Tensor, effect: Tensor) -> Tensor:
    """1 - distance / effect; NaN where the effect is below `LEAST_EFFECT`."""
    return 1 - distance.double() / effect.where(effect >= LEAST_EFFECT, torch.nan)


def jensen_shannon(a: Options, b: Options) -> ByExample:
    """Jensen-Shannon distance between two predicted distributions.

    sqrt((KL(p, m) + KL(q, m)) / 2) with m = (p + q) / 2 and logarithms to base 2. The square root makes it a metric
    (Endres and Schindelin 2003).

    Returns:
        Values in [0, 1], unaveraged. NaN where no option is defined in both.
    """

    def distance(a: Tensor, b: Tensor) -> Tensor:
        p, q = _distributions(a, b)
        middle = (p + q) / 2
        bits = [torch.xlogy(x, x / middle).where(x > 0, 0).sum(-1) for x in (p, q)]
        divergence = (bits[0] + bits[1]) / (2 * torch.log(torch.tensor(2.0, dtype=torch.float64)))
        return divergence.clamp(0, 1).sqrt().where(~p.isnan().any(-1), torch.nan)

    return by_examples(distance, a, b)


def _distributions(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    missing = a.isnan() | b.isnan()
    p, q = (x.double().masked_fill(missing, -torch.inf).softmax(-1) for x in (a, b))
    return p, q
