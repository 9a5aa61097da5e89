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
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from iclgd.models.anatomy import Anatomy
from iclgd.models.attention import blank_unseen, precise, record_context
from iclgd.models.attention_pass import AttentionPass, Reach
from iclgd.models.interventions import hooks
from iclgd.models.tracing import BADDBMM, PRODUCTS, SOFTMAX


class _Watch(TorchFunctionMode):
    def __init__(self, anatomy: Anatomy, now: AttentionPass, batch: int) -> None:
        super().__init__()
        self.anatomy, self.now, self.batch = anatomy, now, batch
        self.layer: int | None = None
        self.factors: tuple[Tensor, Tensor] | None = None  # queries and keys, as their product took them
        self.mixes = False  # whether the next product mixes values

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.layer is not None:
            if func in SOFTMAX:
                self.take(args[0])
                self.show(self.layer)
            elif func in PRODUCTS:
                self.factors = args[0], args[1]
                if self.mixes and self.now.watch is not None:
                    self.now.watch(self.layer, "v", args[1].reshape(self.batch, -1, *args[1].shape[-2:]))
                self.mixes = False
            elif func in BADDBMM:
                self.factors = tuple(args[1:]) or (kwargs["batch1"], kwargs["batch2"])
        return func(*args, **kwargs)

    def show(self, layer: int) -> None:
        """Show what made the scores; the next product mixes values by them."""
        self.mixes = True
        if self.now.watch is not None:
            for part, tensor in zip("qk", self.products(), strict=True):
                self.now.watch(layer, part, tensor)

    def take(self, scores: Tensor) -> None:
        now, layer, heads = self.now, self.layer, self.anatomy.shape.heads
        assert layer is not None
        now.calls.append(layer)
        if now.keep_keys:
            return
        scores = precise(scores.detach().reshape(self.batch, heads, scores.shape[-2], scores.shape[-1]))
        least = max(torch.finfo(scores.dtype).min, torch.finfo(torch.float32).min)  # GPT-Neo masks in float32 always
        scores = scores.masked_fill(scores < least / 4, float("nan"))
        before = now.prefix_length() + len(now.read_again())
        last = now.last(scores, 2)  # example head key
        if self.anatomy.layers[layer].biased:
            last = last - self.own_bias(layer, last)[..., None]
        now.scores[layer] = blank_unseen(last[..., before:], now, before, Reach())
        if before:
            record_context(now, layer, last[..., :before], now.scores[layer])
        if now.keep_queries:
            self.take_query(layer)

    def own_bias(self, layer: int, scores: Float[Tensor, "example head key"]) -> Float[Tensor, "example head"]:
        """What is added to the last token's score with itself, whose distance is none."""
        now, (query, key) = self.now, self.products()
        before = now.prefix_length() + len(now.read_again())
        last, own = now.last(query, 2), now.last(key[:, :, before:], 2)
        products = (last * own).sum(-1) * self.anatomy.layers[layer].scale
        return now.last(scores[..., before:], 2) - products

    def products(self) -> tuple[Tensor, Tensor]:
        """Queries and keys, each [example, head, token, head_dim]."""
        query, key = (precise(factor.detach()) for factor in cast("tuple[Tensor, Tensor]", self.factors))
        query, key = (factor.reshape(self.batch, -1, *factor.shape[-2:]) for factor in (query, key))
        return query, key.transpose(-1, -2)

    def enter(self, layer: int, _module: nn.Module, _args: Any, _kwargs: Any) -> None:
        """Attention of this layer begins."""
        self.layer = layer

    def leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Attention of this layer is over."""
        self.layer = None

    def take_query(self, layer: int) -> None:
        now, (query, _) = self.now, self.products()
        query = query * self.anatomy.layers[layer].scale
        if now.keep_queries == "last":
            now.queries[layer] = now.last(query, 2).flatten(1)
        else:
            now.queries[layer] = query[:, :, len(now.read_again()) :].transpose(1, 2).flatten(2)


@contextmanager
def intercepted(anatomy: Anatomy, now: AttentionPass, batch: int) -> Iterator[None]:
    """Within this block, every attention module's scores are recorded into `now`."""
    watch = _Watch(anatomy, now, batch)
    entries = [(module, partial(watch.enter, layer)) for module, layer in anatomy.layer_of.items()]
    with hooks(entries, [(module, watch.leave) for module in anatomy.layer_of]):
        with watch:
            yield
