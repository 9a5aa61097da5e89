"""Attention scores of families that do not honour AttentionInterface.

They compute attention eagerly in their own forward, so the argument of the one softmax inside each attention module is
exactly the scores before softmax (with masked places at the lowest float), and the left factor of the product before it
is the queries. A torch function mode sees both without touching the modules.

ALiBi's biases (Press et al. 2022, arXiv 2108.12409) are part of the scores, as distances to the last token.
Transformers counts them from the first token instead, which softmax cannot tell, but which would make the scores of a
query depend on how long the context before it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from iclgd.models.anatomy import Anatomy
from iclgd.models.attention import AttentionPass, blank_unseen, precise, record_context, visible_keys
from iclgd.models.interventions import hooks

_SOFTMAX = {functional.softmax, torch.softmax, Tensor.softmax}
_PRODUCTS = {torch.bmm, torch.matmul, Tensor.matmul, Tensor.__matmul__}
_BADDBMM = {torch.baddbmm, Tensor.baddbmm}


class _Watch(TorchFunctionMode):
    def __init__(self, anatomy: Anatomy, now: AttentionPass, batch: int) -> None:
        super().__init__()
        self.anatomy, self.now, self.batch = anatomy, now, batch
        self.layer: int | None = None
        self.query: Tensor | None = None
        self.bias: Tensor | None = None  # ALiBi's at the last token [example head]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.layer is not None:
            if func in _SOFTMAX:
                self.take(args[0])
            elif func in _PRODUCTS:
                self.query = args[0]
            elif func in _BADDBMM:
                self.query = args[1] if len(args) > 1 else kwargs["batch1"]
        return func(*args, **kwargs)

    def take(self, scores: Tensor) -> None:
        now, layer, heads = self.now, self.layer, self.anatomy.shape.heads
        assert layer is not None
        now.calls.append(layer)
        if now.keep_keys:
            return
        scores = precise(scores.detach().reshape(self.batch, heads, scores.shape[-2], scores.shape[-1]))
        least = max(torch.finfo(scores.dtype).min, torch.finfo(torch.float32).min)  # GPT-Neo masks in float32 always
        scores = scores.masked_fill(scores < least / 4, float("nan"))
        before = now.prefix_length()
        last = now.last(scores, 2)  # example head key
        if self.bias is not None:
            last = last - self.bias[..., None]
        now.scores[layer] = blank_unseen(last[..., before:], now)
        if before:
            record_context(now, layer, last[..., :before], now.scores[layer])
        if now.keep_queries and self.query is not None:
            self.take_query(layer, self.query)

    def enter(self, layer: int, module: nn.Module, _args: Any, kwargs: Any) -> None:
        """Attention of this layer begins."""
        self.layer, self.bias = layer, None
        if (alibi := kwargs.get("alibi")) is not None:
            own = alibi.reshape(self.batch, self.anatomy.shape.heads, -1)[..., self.now.prefix_length() :]
            self.bias = precise(self.now.last(own, 2)) * float(cast(Any, module).beta)

    def leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Attention of this layer is over."""
        self.layer = None

    def take_query(self, layer: int, query: Tensor) -> None:
        now, shape = self.now, self.anatomy.shape
        query = precise(query.detach().reshape(self.batch, shape.heads, -1, shape.head_dim))
        if self.anatomy.family.scales_scores:
            query = query * shape.head_dim**-0.5
        if now.keep_queries == "last":
            now.queries[layer] = now.last(query, 2).flatten(1)
        else:
            now.queries[layer] = query.transpose(1, 2).flatten(2)


@contextmanager
def intercepted(anatomy: Anatomy, now: AttentionPass, batch: int, width: int) -> Iterator[None]:
    """Within this block, every attention module's scores are recorded into `now`."""
    watch, modules = _Watch(anatomy, now, batch), [anatomy.attention(layer) for layer in range(len(anatomy.blocks))]
    entries = [(module, partial(watch.enter, layer)) for layer, module in enumerate(modules)]
    with hooks(entries, [(module, watch.leave) for module in modules]):
        with watch, _windows_without_padding(anatomy, now, width):
            yield


@contextmanager
def _windows_without_padding(anatomy: Anatomy, now: AttentionPass, width: int) -> Iterator[None]:
    """Within this block, local layers do not count padding between prefix and own tokens as distance.

    GPT-Neo reads a local layer's mask [1, 1, row, key] from a buffer by place, so such padding would narrow its window.
    """
    name, before = anatomy.family.local_mask, now.prefix_length()
    if name is None or not now.left or not before:
        yield
        return
    modules = [anatomy.attention(layer) for layer in range(len(anatomy.blocks))]
    local = [module for module in modules if cast(Any, module).attention_type == "local"]
    masks = [getattr(module, name) for module in local]
    window = cast(Any, anatomy.network.config).window_size
    try:
        for module, mask in zip(local, masks, strict=True):
            visible = visible_keys(width, before, window, now, mask.device)
            setattr(module, name, functional.pad(visible, (0, 0, before, 0))[:, None])
        yield
    finally:
        for module, mask in zip(local, masks, strict=True):
            setattr(module, name, mask)
