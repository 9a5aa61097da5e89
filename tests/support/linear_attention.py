"""Linear attention built by construction so that reading demonstrations is one step of gradient descent on them.

von Oswald et al. (2023), arXiv 2212.07677, proposition 1. A token holds an input and its target, e = (x, y). With
    W_K = W_Q = (I 0; 0 0), W_V = (0 0; W -I) and P = -(rate / n) I
the layer adds P W_V E (W_K E)^T W_Q e to a token e, whose lower part is -rate/n sum_i (W x_i - y_i) <x_i, x>: the
change that one step of gradient descent on 1/(2n) sum_i |W x_i - y_i|^2 makes to W x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Regression:
    """Demonstrations of a linear map: inputs x_i and targets y_i."""

    inputs: Float[Tensor, "n d_in"]
    targets: Float[Tensor, "n d_out"]


class LinearAttention:
    """One layer: a linear map W of the query, which finetuning trains, and linear attention to a context beside it."""

    def __init__(self, weight: Float[Tensor, "d_out d_in"], rate: float) -> None:
        self.weight, self.rate = weight, rate

    def __call__(
        self, queries: Float[Tensor, "example d_in"], context: Regression | None = None
    ) -> Float[Tensor, "example d_out"]:
        """What the layer puts out at each query, read after the context, or alone."""
        alone = queries @ self.weight.T
        return alone if context is None else alone + self._attended(queries, context)

    def _attended(self, queries: Tensor, context: Regression) -> Tensor:
        d_out, d_in = self.weight.shape
        n = len(context.inputs)
        key = query = torch.zeros(d_in + d_out, d_in + d_out, dtype=self.weight.dtype)
        key[:d_in, :d_in] = torch.eye(d_in, dtype=self.weight.dtype)
        value = torch.zeros_like(key)
        value[d_in:, :d_in], value[d_in:, d_in:] = self.weight, -torch.eye(d_out, dtype=self.weight.dtype)
        tokens = torch.cat([context.inputs, context.targets], dim=1).T
        asking = torch.cat([queries, torch.zeros(len(queries), d_out, dtype=self.weight.dtype)], dim=1).T
        added = -self.rate / n * (value @ tokens) @ ((key @ tokens).T @ (query @ asking))
        return added[d_in:].T

    def finetuned(self, data: Regression, rate: float) -> LinearAttention:
        """The layer after one step of plain gradient descent on W, with autograd's gradient."""
        weight = self.weight.clone().requires_grad_(True)
        loss = (data.inputs @ weight.T - data.targets).square().sum() / (2 * len(data.inputs))
        (gradient,) = torch.autograd.grad(loss, weight)
        return LinearAttention((weight - rate * gradient).detach(), self.rate)
