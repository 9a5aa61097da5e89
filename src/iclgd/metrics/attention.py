"""Likeness of attention: of the query to its own tokens, and of finetuning to its training tokens.

Scores are scaled dot products before softmax. A key that is NaN in any of the maps compared (queries differ in length,
and local layers do not see all of them) is left out of all of them.

ICL's attention to its demonstrations is the softmax, over their tokens, of the query's scores summed over heads.
Finetuning's is the softmax of <q_FT(query), q_FT(training token)>, the weight that a gradient step gives to a training
token in the dual form of gradient descent (Dai et al. 2023, arXiv 2212.10559). Tokens of bos and separators are left
out of both. Passing noise for the ICL scores gives the random baseline.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from iclgd.metrics.numerics import by_examples, cosine, highest

Maps = Float[Tensor, "example layer head key"]  # attention scores of the query's last token, before softmax
ByLayer = Float[Tensor, "example layer"]


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


def sim_am(a: Maps, b: Maps) -> ByLayer:
    """SimAM: the mean of `sim_am_by_head` over heads. Heads without a cosine are left out.

    With a = ICL, b = FT it is SimAM; with b = ZSL it is ZSL SimAM, what the context alone leaves unchanged.
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


def sim_am_delta(a: Maps, b: Maps, zsl: Maps) -> ByLayer:
    """SimAM_delta: the mean of `sim_am_delta_by_head` over heads. Heads without a cosine are left out.

    With a = ICL, b = FT it is SimAM_delta; with a, b two finetuning variants it is alpha, how alike those are.
    """
    return sim_am_delta_by_head(a, b, zsl).nanmean(-1)


Scores = Float[Tensor, "example layer context"]  # ICL's, summed over heads
Queries = Float[Tensor, "example layer heads_x_head_dim"]  # of each query's last token
Keys = Float[Tensor, "context layer heads_x_head_dim"]  # the attention queries of the training tokens
Of = Int[Tensor, " context"]  # the demonstration that a token belongs to; -1 for bos and separators


def attention_kendall(icl: Scores, query: Queries, training: Keys, context_example: Of) -> ByLayer:
    """Kendall's tau between ICL's and finetuning's attention to the training tokens.

    tau_b = (concordant - discordant) / sqrt((pairs - ties_ICL)(pairs - ties_FT)). Softmax keeps the order, so the
    scores themselves are ranked, where no small weight underflows to a false tie. Dai et al. (2023).

    Returns:
        Values in [-1, 1], unaveraged. NaN where fewer than two tokens are visible or all of them tie.
    """
    return _compared(_kendall, icl, query, training, context_example)


def recall_top_tokens(icl: Scores, query: Queries, training: Keys, context_example: Of, k: int = 100) -> ByLayer:
    """Share of ICL's k most attended training tokens that are among finetuning's k.

    |top_k(ICL) & top_k(FT)| / k; of equal weights the earlier token counts. By chance k / tokens. Published code of
    Dai et al. (2023).

    Returns:
        Values in [0, 1], unaveraged. NaN where fewer than k tokens are visible.
    """
    return _compared(lambda a, b, seen: _recall(a, b, seen, k), icl, query, training, context_example)


def recall_top_examples(icl: Scores, query: Queries, training: Keys, context_example: Of, k: int = 5) -> ByLayer:
    """Share of ICL's k most attended demonstrations that are among finetuning's k.

    A demonstration's attention is the sum over its tokens, so that long ones lead. Noise summed in the same way is a
    stricter baseline than the uniform draw in the published code of Dai et al. (2023).

    Returns:
        Values in [0, 1], unaveraged. NaN where fewer than k demonstrations are visible.
    """
    demonstration = context_example[context_example >= 0].unique(return_inverse=True)[1]

    def recall(a: Tensor, b: Tensor, seen: Tensor) -> Tensor:
        a, b = (_summed(x.masked_fill(~seen, -torch.inf), demonstration) for x in (a, b))
        return _recall(a, b, a > -torch.inf, k)

    return _compared(recall, icl, query, training, context_example)


def _compared(compare: Callable[..., Tensor], icl: Tensor, query: Tensor, training: Tensor, of: Tensor) -> Tensor:
    """`compare(ICL scores, FT scores, visible)` over the demonstrations' tokens, layer by layer."""
    tokens, by_layer = of >= 0, []
    for layer in range(icl.shape[1]):
        keys = training[tokens, layer].double()

        def run(icl: Tensor, query: Tensor, keys: Tensor = keys) -> Tensor:
            icl, ft = icl[:, tokens].double(), query.double() @ keys.T
            return compare(icl, ft, ~(icl.isnan() | ft.isnan()))

        by_layer.append(by_examples(run, icl[:, layer], query[:, layer]))
    return torch.stack(by_layer, dim=1)


def _summed(scores: Float[Tensor, "*axes n"], group: Int[Tensor, " n"]) -> Float[Tensor, "*axes group"]:
    """Logarithm of each group's summed softmax weights, up to a constant, whatever the range of the scores."""
    group = group.expand(scores.shape)
    shape = (*scores.shape[:-1], int(group.max()) + 1)
    peak = scores.new_full(shape, -torch.inf).scatter_reduce(-1, group, scores, "amax")
    base = peak.masked_fill(peak == -torch.inf, 0)
    return scores.new_zeros(shape).scatter_add(-1, group, (scores - base.gather(-1, group)).exp()).log() + base


def _recall(
    a: Float[Tensor, "*axes n"], b: Float[Tensor, "*axes n"], seen: Bool[Tensor, "*axes n"], k: int
) -> Float[Tensor, "*axes"]:
    if seen.shape[-1] < k:
        return torch.full(seen.shape[:-1], torch.nan, dtype=torch.float64)
    tops = [highest(x.masked_fill(~seen, -torch.inf), k) for x in (a, b)]
    return ((tops[0] & tops[1]).sum(-1).double() / k).masked_fill(seen.sum(-1) < k, torch.nan)


def _kendall(
    a: Float[Tensor, "example n"], b: Float[Tensor, "example n"], seen: Bool[Tensor, "example n"]
) -> Float[Tensor, " example"]:
    rows = zip(a.numpy(), b.numpy(), seen.numpy(), strict=True)
    taus: list[float] = []
    for x, y, use in rows:
        enough = use.sum() > 1  # scipy warns of fewer
        taus.append(cast(Any, stats.kendalltau(x[use], y[use])).statistic if enough else float("nan"))
    return torch.tensor(taus, dtype=torch.float64)
