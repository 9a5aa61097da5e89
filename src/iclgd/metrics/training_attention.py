"""Scores of whether finetuning attends to its training tokens as in-context learning does to its demonstrations.

ICL's attention is the softmax, over the demonstrations' tokens, of the query's scores summed over heads. Finetuning's
is the softmax of <q_FT(query), q_FT(training token)>, the weight that a gradient step gives to a training token in the
dual form of gradient descent (Dai et al. 2023, arXiv 2212.10559). Tokens of bos and separators, and
tokens that either does not see (NaN), are left out of both. Passing noise for the ICL scores gives the random baseline.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from iclgd.metrics.numerics import by_examples, highest
from iclgd.metrics.registry import metric

Scores = Float[Tensor, "example layer context"]  # ICL's, summed over heads
Queries = Float[Tensor, "example layer heads_x_head_dim"]  # of each query's last token
Keys = Float[Tensor, "context layer heads_x_head_dim"]  # the attention queries of the training tokens
Of = Int[Tensor, " context"]  # the demonstration that a token belongs to; -1 for bos and separators
ByLayer = Float[Tensor, "example layer"]


@metric
def attention_kendall(icl: Scores, query: Queries, training: Keys, context_example: Of) -> ByLayer:
    """Kendall's tau between ICL's and finetuning's attention to the training tokens.

    tau_b = (concordant - discordant) / sqrt((pairs - ties_ICL)(pairs - ties_FT)). Softmax keeps the order, so the
    scores themselves are ranked, where no small weight underflows to a false tie. Dai et al. (2023).

    Returns:
        Values in [-1, 1], unaveraged. NaN where fewer than two tokens are visible or all of them tie.
    """
    return _compared(_kendall, icl, query, training, context_example)


@metric
def recall_top_tokens(icl: Scores, query: Queries, training: Keys, context_example: Of, k: int = 100) -> ByLayer:
    """Share of ICL's k most attended training tokens that are among finetuning's k.

    |top_k(ICL) & top_k(FT)| / k; of equal weights the earlier token counts. By chance k / tokens. Published code of
    Dai et al. (2023).

    Returns:
        Values in [0, 1], unaveraged. NaN where fewer than k tokens are visible.
    """
    return _compared(lambda a, b, seen: _recall(a, b, seen, k), icl, query, training, context_example)


@metric
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
    a: Float[Tensor, "*axes n"], b: Float[Tensor, "*axes n"], seen: Bool[Tensor, "*axes n"]
) -> Float[Tensor, "*axes"]:
    """Tau-b by Knight's method: order by a, then count the inversions that are left in b; n log n for each pair."""
    a, b = a.masked_fill(~seen, torch.inf), b.masked_fill(~seen, torch.inf)  # the unseen come last in both
    order = b.argsort(dim=-1, stable=True)
    order = order.gather(-1, a.gather(-1, order).argsort(dim=-1, stable=True))
    a, b_by_a, b = a.gather(-1, order), b.gather(-1, order), b.sort(-1).values
    count = seen.sum(-1)
    ties_a, ties_b = _tied_pairs(count, a), _tied_pairs(count, b)
    pairs = count * (count - 1) // 2
    surplus = pairs - ties_a - ties_b + _tied_pairs(count, a, b_by_a) - 2 * _inversions(b_by_a)
    return surplus / ((pairs - ties_a).double().sqrt() * (pairs - ties_b).double().sqrt())


def _tied_pairs(count: Int[Tensor, "*axes"], *ordered: Float[Tensor, "*axes n"]) -> Int[Tensor, "*axes"]:
    """Pairs that are equal in all of these, among the first `count` entries; equal ones stand side by side."""
    position = torch.arange(ordered[0].shape[-1]).expand(ordered[0].shape)
    fresh = torch.stack([x.diff(dim=-1, prepend=x[..., :1] - 1) != 0 for x in ordered]).any(0)
    start = (position * fresh).cummax(-1).values
    return ((position - start) * (position < count[..., None])).sum(-1)


def _inversions(values: Float[Tensor, "*axes n"]) -> Int[Tensor, "*axes"]:
    """Pairs that stand in the wrong order, by merge sort over all rows at once."""
    size = 1 << (values.shape[-1] - 1).bit_length()
    padded = torch.nn.functional.pad(values, (0, size - values.shape[-1]), value=torch.inf)
    inversions, width = torch.zeros(values.shape[:-1], dtype=torch.long), 1
    while width < size:
        halves = padded.unflatten(-1, (-1, 2, width))
        left, right = halves[..., 0, :].contiguous(), halves[..., 1, :].contiguous()
        inversions += (width - torch.searchsorted(left, right, right=True)).sum((-1, -2))
        padded = halves.flatten(-2).sort(-1).values.flatten(-2)
        width *= 2
    return inversions
