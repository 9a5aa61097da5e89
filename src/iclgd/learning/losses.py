"""What is the loss of hidden states under the frozen unembedding, without ever holding all their logits?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from iclgd.models.language_model import LanguageModel

_CHUNK = 512  # rows of logits held at once


@dataclass(frozen=True)
class Sequence:
    """One training sequence.

    Attributes:
        token_ids: bos and a demonstration.
        predicted: which tokens have a loss; the first never has, since nothing precedes it.
        demonstration: which demonstration it is, or is a part of.
    """

    token_ids: Int[Tensor, " token"]
    predicted: Bool[Tensor, " token"]
    demonstration: int = -1

    def sources(self) -> Int[Tensor, " predicted"]:
        """The positions that predict."""
        return self.predicted.nonzero().squeeze(1) - 1

    def targets(self) -> Int[Tensor, " predicted"]:
        """What they should predict."""
        return self.token_ids[self.predicted]


class _UnembeddedLoss(torch.autograd.Function):
    """Weighted cross-entropy of rows under the unembedding, a chunk of rows at a time.

    The gradient with respect to the rows is made in the same pass, so that each chunk of logits is made once; the
    unembedding is frozen and has none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        targets: Tensor,
        share: Tensor,
    ) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(rows) if rows.requires_grad else None
        losses = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
        for start in range(0, len(rows), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            logits = rows[chunk] @ weight.T
            if bias is not None:
                logits += bias
            logits = logits.float()
            bent = None
            if softcap is not None:
                bent = torch.tanh(logits / softcap)
                logits = bent * softcap
            target = targets[chunk, None]
            mass = logits.logsumexp(dim=-1, keepdim=True)
            losses[chunk] = (mass - logits.gather(1, target)).squeeze(1)
            if gradient is not None:
                slope = logits.sub_(mass).exp_()
                slope.scatter_add_(1, target, torch.full_like(mass, -1.0))
                slope *= share[chunk, None]
                if bent is not None:
                    slope *= 1 - bent.square()
                gradient[chunk] = slope.to(weight.dtype) @ weight
        ctx.gradient = gradient
        ctx.mark_non_differentiable(losses)
        return (losses * share).sum(), losses

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None, None, None]:  # pyright: ignore
        return ctx.gradient * outputs[0], None, None, None, None, None


def unembedded_loss(
    model: LanguageModel,
    hidden: Float[Tensor, "row d_model"],
    targets: Int[Tensor, " row"],
    share: Float[Tensor, " row"],
) -> tuple[Float[Tensor, ""], Float[Tensor, " row"]]:
    """Cross-entropy of block outputs read by the model's own final norm and unembedding, both frozen.

    Args:
        model: the model.
        hidden: outputs of blocks, before the final norm.
        targets: the token that each row should predict.
        share: each row's weight in the sum.

    Returns:
        The weighted sum, differentiable in `hidden`, and each row's loss in nats.
    """
    finished = model.anatomy.finish(hidden)
    unembedding: Any = model.anatomy.unembedding
    bias = getattr(unembedding, "bias", None)
    return _UnembeddedLoss.apply(finished, unembedding.weight, bias, model.anatomy.softcap, targets, share)  # pyright: ignore
