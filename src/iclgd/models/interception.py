"""Attention scores of families that do not honour AttentionInterface.

They compute attention eagerly in their own forward, so the argument of the one softmax inside each attention module is
exactly the scores before softmax (with masked places at the lowest float), and the left factor of the product before it
is the queries. A torch function mode sees both without touching the modules.

ALiBi's biases (Press et al. 2022, arXiv 2108.12409) are part of the scores, as distances to the last token.
Transformers counts them from another token, which softmax cannot tell, but which would make the scores of a query
depend on how long the context before it, or another query beside it, is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from iclgd.models.anatomy import Anatomy
from iclgd.models.attention import keep_queries, keep_scores, precise
from iclgd.models.attention_pass import AttentionPass, Reach
from iclgd.models.interventions import hooks

_SOFTMAX = {functional.softmax, torch.softmax, Tensor.softmax}
_PRODUCTS = {torch.bmm, torch.matmul, Tensor.matmul, Tensor.__matmul__}
_BADDBMM = {torch.baddbmm, Tensor.baddbmm}


class EagerAttention(TorchFunctionMode):
    """Sees a product of queries and keys, a softmax of it, and the product with values, where `watches` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.factors: tuple[Tensor, Tensor] | None = None  # queries and keys, as their product took them
        self.mixes = False  # whether the next product is that with values

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not self.watches():
            return output
        if func in _SOFTMAX and self.factors is not None:
            self.mixes = self.scored(args[0], *self.factors)
        elif func in _PRODUCTS and self.mixes:
            self.mixes = False
            return self.mixed(args[1], output)
        elif func in _PRODUCTS:
            self.factors = args[0], args[1]
        elif func in _BADDBMM:
            self.factors = tuple(args[1:]) or (kwargs["batch1"], kwargs["batch2"])
        return output

    def watches(self) -> bool:
        """Whether what is computed may be attention."""
        raise NotImplementedError

    def scored(self, scores: Tensor, query: Tensor, key: Tensor) -> bool:
        """A softmax was taken of scores, after a product of two factors; returns whether `mixed` is to be called."""
        raise NotImplementedError

    def mixed(self, value: Tensor, output: Tensor) -> Tensor:
        """Values were mixed; returns what the model gets."""
        raise NotImplementedError


class _Watch(EagerAttention):
    def __init__(self, anatomy: Anatomy, state: AttentionPass, batch: int) -> None:
        super().__init__()
        self.anatomy, self.state, self.batch = anatomy, state, batch
        self.layer: int | None = None

    def watches(self) -> bool:
        return self.layer is not None

    def by_head(self, tensor: Tensor) -> Float[Tensor, "example head rows columns"]:
        return tensor.reshape(self.batch, -1, *tensor.shape[-2:])

    def scored(self, scores: Tensor, query: Tensor, key: Tensor) -> bool:
        state, layer = self.state, self.layer
        assert layer is not None
        state.calls.append(layer)
        query, key = (self.by_head(precise(factor.detach())) for factor in (query, key.transpose(-1, -2)))
        keep_queries(state, layer, query, self.anatomy.layers[layer].scale)
        if state.keep_keys:
            return False
        scores = self.by_head(precise(scores.detach()))
        least = max(torch.finfo(scores.dtype).min, torch.finfo(torch.float32).min)  # GPT-Neo masks in float32 always
        last = state.last(scores.masked_fill(scores < least / 4, float("nan")), 2)
        if self.anatomy.layers[layer].biased:
            last = last - self.own_bias(layer, last, query, key)[..., None]
        keep_scores(state, layer, last, state.before, Reach())
        return False  # the product with values is as it was

    def own_bias(
        self, layer: int, scores: Float[Tensor, "example head key"], query: Tensor, key: Tensor
    ) -> Float[Tensor, "example head"]:
        """What is added to the last token's score with itself, whose distance is none."""
        state = self.state
        last, own = state.last(query, 2), state.last(key[:, :, state.before :], 2)
        products = (last * own).sum(-1) * self.anatomy.layers[layer].scale
        return state.last(scores[..., state.before :], 2) - products

    def enter(self, layer: int, _module: nn.Module, _args: Any, _kwargs: Any) -> None:
        """Attention of this layer begins."""
        self.layer = layer

    def leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Attention of this layer is over."""
        self.layer = None


@contextmanager
def intercepted(anatomy: Anatomy, state: AttentionPass, batch: int) -> Iterator[None]:
    """Within this block, every attention module's scores are recorded into `state`."""
    watch = _Watch(anatomy, state, batch)
    before = [(module, partial(watch.enter, layer)) for module, layer in anatomy.layer_of.items()]
    with hooks(before, [(module, watch.leave) for module in anatomy.layer_of]), watch:
        yield
