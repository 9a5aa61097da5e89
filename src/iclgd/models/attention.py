"""Attention while recording, and what it leaves behind.

One attention function for every family that honours transformers' AttentionInterface. It attends to a prefix shared by
the whole batch without copying it: prefix and own tokens are attended to apart and merged by their log-sum-exp, which
is exact. It makes its own masks (causal, windows, chunks, padding): instead of the mask that transformers would build,
layers are handed how far they see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from iclgd.models.anatomy import UnsupportedModelError
from iclgd.models.attention_pass import AttentionPass, KeyValues, Reach, current_pass, mask_reach, visible_keys

INTERFACE_NAME = "iclgd_recorded"


def recorded_attention(
    module: nn.Module,
    query: Float[Tensor, "example head token head_dim"],
    key: Float[Tensor, "example key_value_head token head_dim"],
    value: Float[Tensor, "example key_value_head token head_dim"],
    attention_mask: Reach | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " head"] | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "example token head value_dim"], None]:
    """The AttentionInterface function. Outside an `attention_pass` it is ordinary causal attention."""
    if isinstance(attention_mask, Tensor):
        raise UnsupportedModelError(f"{type(module).__name__} makes an attention mask of its own")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    reach = Reach(window=sliding_window) if attention_mask is None else attention_mask
    rule = _Rule(scale, reach, softcap, s_aux)
    state = current_pass()
    prefix = None
    if state is not None:
        layer = state.layer_of.get(module, -1)
        prefix = state.shared[layer] if state.shared else None
        state.calls.append(layer)
        keep_queries(state, layer, query, scale)
        if state.keep_keys:
            state.keys_and_values[layer] = (key, value)
        else:
            _record_scores(state, layer, query, key, prefix, rule)
    return _attend(query, key, value, prefix, rule).transpose(1, 2).contiguous(), None


def precise(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is in float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class _Rule:
    scale: float
    reach: Reach
    softcap: float | None
    sink: Float[Tensor, " head"] | None = None  # a score that takes its share of attention without a value

    def scores(self, products: Tensor) -> Tensor:
        scaled = products * self.scale
        return scaled if self.softcap is None else torch.tanh(scaled / self.softcap) * self.softcap


def _record_scores(
    state: AttentionPass, layer: int, query: Tensor, key: Tensor, prefix: KeyValues | None, rule: _Rule
) -> None:
    groups = query.shape[1] // key.shape[1]
    last = precise(state.last(query, 2)).unflatten(1, (key.shape[1], groups))
    scores, context = rule.scores(torch.einsum("bkgd,bktd->bkgt", last, precise(key)).flatten(1, 2)), state.before
    if prefix is not None and state.wanted & {"context_scores", "context_mass"}:
        seen = torch.einsum("bkgd,ktd->bkgt", last, precise(prefix[0][0])).flatten(1, 2)
        scores = torch.cat([rule.scores(seen), scores], dim=-1)
    elif prefix is not None:
        context = 0
    keep_scores(state, layer, scores, context, rule.reach, rule.sink)


def keep_scores(
    state: AttentionPass,
    layer: int,
    scores: Float[Tensor, "example head key"],
    context: int,
    reach: Reach,
    sink: Float[Tensor, " head"] | None = None,
) -> None:
    """Keep the last token's scores, NaN where it does not see: those with own tokens, and what is wanted of the others.

    Args:
        state: of the pass.
        layer: of these scores.
        scores: with `context` tokens of the prefix, if any, and then with own tokens.
        context: how many.
        reach: how far tokens see.
        sink: a score that takes its share of attention without a value.
    """
    first, lengths = state.before - context, state.lengths.to(scores.device)[:, None]
    position = torch.arange(first, first + scores.shape[-1], device=scores.device)[None]
    visible = reach.sees(state.before + lengths - 1, position)
    scores = scores.masked_fill(~visible[:, None], float("nan"))
    state.records["attention_scores"][layer] = scores[..., context:]
    if context and "context_scores" in state.wanted:
        state.records["context_scores"][layer] = scores[..., :context].sum(dim=1)
    if context and "context_mass" in state.wanted:
        shares = with_sink(scores.nan_to_num(nan=float("-inf")), sink).softmax(-1)
        state.records["context_mass"][layer] = shares[..., state.bos : context].sum(-1)


def keep_queries(
    state: AttentionPass, layer: int, query: Float[Tensor, "example head token head_dim"], scale: float
) -> None:
    """Keep what is wanted of the attention queries, scaled as in attention."""
    if "query_vectors" in state.wanted:
        state.records["query_vectors"][layer] = (precise(state.last(query, 2)) * scale).flatten(1)
    if "token_queries" in state.wanted:
        own = precise(query[:, :, len(state.read_again) :])
        state.records["token_queries"][layer] = (own * scale).transpose(1, 2).flatten(2)


def with_sink(
    scores: Float[Tensor, "*example head key"], sink: Float[Tensor, " head"] | None
) -> Float[Tensor, "*example head key_and_sink"]:
    """Scores with that of a sink behind them, where there is one."""
    if sink is None:
        return scores
    return torch.cat([scores, sink.to(scores)[:, None].expand(*scores.shape[:-1], 1)], dim=-1)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, prefix: KeyValues | None, rule: _Rule
) -> Float[Tensor, "example head token value_dim"]:
    before = 0 if prefix is None else prefix[0].shape[2]
    one_each = prefix is not None and len(prefix[0]) > 1  # a prefix of its own for each sequence
    is_plain = rule.softcap is None and rule.sink is None
    if one_each or not is_plain or rule.reach.hides(before + key.shape[2]):
        return _attend_densely(query, key, value, prefix, rule, fused=one_each and is_plain)
    groups = query.shape[1] // key.shape[1]
    if prefix is None:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=rule.scale)
    return _attend_with_prefix(query, key, value, prefix, rule.scale)


def _attend_with_prefix(
    query: Tensor, key: Tensor, value: Tensor, prefix: KeyValues, scale: float
) -> Float[Tensor, "example head token value_dim"]:
    batch, heads, width, depth = query.shape
    shared = key.shape[1]
    groups = heads // shared
    own_key, own_value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    own, own_mass = _with_log_mass(query, own_key, own_value, scale, causal=True)
    # Every token of the batch asks the same prefix: one attention with batch * groups * width queries a shared head.
    pooled = query.view(batch, shared, groups, width, depth).transpose(0, 1).reshape(1, shared, -1, depth)
    far, far_mass = _with_log_mass(pooled, *prefix, scale, causal=False)
    far = far.view(shared, batch, groups, width, -1).transpose(0, 1).reshape(batch, heads, width, -1)
    far_mass = far_mass.view(shared, batch, groups, width).transpose(0, 1).reshape(batch, heads, width)
    share = torch.sigmoid(far_mass - own_mass)[..., None].to(own.dtype)
    return torch.lerp(own, far, share)


def _with_log_mass(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool
) -> tuple[Float[Tensor, "batch head token value_dim"], Float[Tensor, "batch head token"]]:
    """Attention and the log-sum-exp of its scores, by the fused kernel of the device where there is one."""
    # The fused kernels' log-sum-exp has no gradient, and they want keys and values of one size.
    trained = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    fused = not trained and query.shape[-1] == value.shape[-1]
    if fused and query.device.type == "cpu" and query.dtype in (torch.float32, torch.bfloat16):
        out, mass = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=None, scale=scale
        )
        return out, mass
    if fused and query.device.type == "cuda" and query.dtype is not torch.float64:
        out, mass, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, causal, scale=scale
        )
        return out, mass[..., : query.shape[2]]
    scores = (precise(query) @ precise(key).transpose(-1, -2)) * scale
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return (scores.softmax(-1) @ precise(value)).to(query.dtype), scores.logsumexp(-1)


def _attend_densely(
    query: Tensor, key: Tensor, value: Tensor, prefix: KeyValues | None, rule: _Rule, *, fused: bool
) -> Float[Tensor, "example head token value_dim"]:
    """Attention with every score written out: for softcaps, sinks, windows, chunks and prefixes of single sequences."""
    batch = query.shape[0]
    before = 0
    if prefix is not None:
        before = prefix[0].shape[2]
        key = torch.cat([prefix[0].expand(batch, -1, -1, -1), key], dim=2)
        value = torch.cat([prefix[1].expand(batch, -1, -1, -1), value], dim=2)
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    visible = visible_keys(query.shape[2], before, rule.reach, query.device)
    if fused:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=rule.scale)
    scores = rule.scores(precise(query @ key.transpose(-1, -2)))
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if rule.sink is not None:
        scores = torch.cat([scores, rule.sink.to(scores).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)], dim=-1)
    return scores.softmax(-1)[..., : key.shape[2]].to(value.dtype) @ value


AttentionInterface.register(INTERFACE_NAME, recorded_attention)
AttentionMaskInterface.register(INTERFACE_NAME, mask_reach)
