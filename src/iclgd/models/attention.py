"""Attention while recording, and what it leaves behind.

One attention function for every family that honours transformers' AttentionInterface. It attends to a prefix shared by
the whole batch without copying it: prefix and own tokens are attended to apart and merged by their log-sum-exp, which
is exact. It makes its own masks (causal, windows, chunks, padding): instead of the mask that transformers would build,
layers are handed how far they see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from iclgd.models.anatomy import UnsupportedModelError

INTERFACE_NAME = "iclgd_recorded"

# [batch, key_value_head, prefix, head_dim]; layers may differ in heads and sizes, and keys from values
KeyValues = tuple[Float[Tensor, "_ _ prefix _"], Float[Tensor, "_ _ prefix _"]]


Prefix = list[KeyValues] | tuple[int, ...]


@dataclass
class AttentionPass:
    """One forward pass as attention sees it, and what attention leaves behind, by layer."""

    lengths: Int[Tensor, " example"]  # own tokens of each sequence; the rest of its row is padding
    left: bool = False  # whether padding stands on the left
    # what stands before every sequence: keys and values by layer, shared or one for each sequence, or, where these
    # cannot be shared, the tokens
    prefix: Prefix | None = None
    keep_keys: bool = False  # keep this pass's own keys and values (it is the pass over the prefix itself)
    keep_context: bool = False  # also record scores with the prefix's tokens, summed over heads
    # also record the share of attention that goes to the prefix's tokens from this place on, by head
    mass_from: int | None = None
    # also record the attention queries of the last token (`last`) or of every token (`all`)
    keep_queries: str | None = None
    # own tokens of each sequence's query; what follows is the beginning of a label
    query_lengths: Int[Tensor, " example"] | None = None
    questions: tuple[int, ...] = ()  # by sequence, the number of the question that it is for
    first_position: int | None = None  # of the own tokens; None: right behind the prefix
    layer_of: Mapping[nn.Module, int] = field(default_factory=dict)  # attention modules, set by `forward.forward`
    watch: Callable[[int, str, Tensor], object] | None = None  # is shown each layer's queries, keys and values
    calls: list[int] = field(default_factory=list)
    keys_and_values: dict[int, KeyValues] = field(default_factory=dict)
    scores: dict[int, Float[Tensor, "example head key"]] = field(default_factory=dict)
    context_scores: dict[int, Float[Tensor, "example context"]] = field(default_factory=dict)
    context_mass: dict[int, Float[Tensor, "example head"]] = field(default_factory=dict)
    queries: dict[int, Tensor] = field(default_factory=dict)

    def prefix_length(self) -> int:
        """Tokens that stand before every sequence and are not read again."""
        return self.prefix[0][0].shape[2] if self.prefix and isinstance(self.prefix, list) else 0

    def read_again(self) -> tuple[int, ...]:
        """Tokens that are read before each sequence's own, in the same pass."""
        return self.prefix if isinstance(self.prefix, tuple) else ()

    def key_values(self, layer: int) -> KeyValues | None:
        """The shared prefix in one layer."""
        return self.prefix[layer] if self.prefix and isinstance(self.prefix, list) else None

    def query_ends(self) -> Int[Tensor, " example"]:
        """How many own tokens of each sequence are its query's: all of them, unless a label follows."""
        return (self.lengths if self.query_lengths is None else self.query_lengths).cpu()

    def last(self, tokens: Float[Tensor, "example *head token rest"], axis: int) -> Tensor:
        """The slice at each sequence's last token along `axis`, whether or not the tokens before its own are there."""
        if self.left:
            return tokens.select(axis, -1)
        at = (self.lengths - 1).to(tokens.device)
        if self.read_again():
            at = at + tokens.shape[axis] - int(self.lengths.max())
        index = at.view(-1, *[1] * (tokens.ndim - 1)).expand(
            *[1 if i == axis % tokens.ndim else n for i, n in enumerate(tokens.shape)]
        )
        return tokens.gather(axis % tokens.ndim, index).squeeze(axis)


_current: ContextVar[AttentionPass | None] = ContextVar("attention_pass", default=None)


@contextmanager
def attention_pass(current: AttentionPass) -> Iterator[AttentionPass]:
    """Let attention see `current` and record into it, within this block only."""
    token = _current.set(current)
    try:
        yield current
    finally:
        _current.reset(token)


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
    now = _current.get()
    prefix = None
    if now is not None:
        layer = now.layer_of.get(module, -1)
        prefix = now.key_values(layer)
        if now.watch is not None:
            for part, tensor in (("q", query), ("k", key), ("v", value)):
                now.watch(layer, part, tensor)
        _record(now, layer, query, key, prefix, rule)
        if now.keep_keys:
            now.keys_and_values[layer] = (key, value)
    return _attend(query, key, value, prefix, now, rule).transpose(1, 2).contiguous(), None


def precise(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is in float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Reach:
    """How far back a token sees: `window` tokens with its own, or back to where its `chunk` of positions begins."""

    window: int | None = None
    chunk: int | None = None

    def sees(self, token: Int[Tensor, "*token"], key: Int[Tensor, "*key"]) -> Bool[Tensor, "*pair"]:
        """Whether a token at one position sees a key at another that is not behind it."""
        seen = token >= key
        if self.window is not None:
            seen = seen & (token - key < self.window)
        if self.chunk is not None:
            seen = seen & (token // self.chunk == key // self.chunk)
        return seen

    def __getitem__(self, _: Any) -> Reach:
        """Itself: transformers takes rows of a mask for the tokens it goes on with, which are all (Gemma 4)."""
        return self

    def hides(self, length: int) -> bool:
        """Whether some token of a sequence does not see all before it."""
        return any(size is not None and length > size for size in (self.window, self.chunk))


def mask_reach(
    *_: Any, mask_function: Callable[..., Tensor], local_size: int | None = None, device: Any = None, **__: Any
) -> Reach | None:
    """The AttentionMaskInterface function: how far transformers' own rule lets tokens see; None if it is only causal.

    Raises:
        UnsupportedModelError: by another rule than causality, a window or chunks.
    """
    size = local_size or 1
    tokens = torch.tensor([0, size - 1, size, size + 1, 2 * size - 1, 2 * size, 2 * size + size // 2], device=device)
    first = torch.zeros((), dtype=torch.long, device=device)
    tokens, keys = tokens[:, None], torch.arange(3 * size, device=device)[None]
    allowed = mask_function(first, first, tokens, keys)
    for reach in (Reach(window=local_size), Reach(chunk=local_size)):
        if torch.equal(allowed.expand(len(tokens), -1), reach.sees(tokens, keys)):
            return None if local_size is None else reach
    raise UnsupportedModelError("the attention mask is neither causal nor a window or chunks of it")


@dataclass(frozen=True)
class _Rule:
    scale: float
    reach: Reach
    softcap: float | None
    sink: Float[Tensor, " head"] | None = None  # a score that takes its share of attention without a value

    def scores(self, products: Tensor) -> Tensor:
        scaled = products * self.scale
        return scaled if self.softcap is None else torch.tanh(scaled / self.softcap) * self.softcap


def _record(now: AttentionPass, layer: int, query: Tensor, key: Tensor, prefix: KeyValues | None, rule: _Rule) -> None:
    now.calls.append(layer)
    if now.keep_keys:
        return
    last = precise(now.last(query, 2))  # example head head_dim
    groups = query.shape[1] // key.shape[1]
    grouped = last.unflatten(1, (key.shape[1], groups))
    own = rule.scores(torch.einsum("bkgd,bktd->bkgt", grouped, precise(key)).flatten(1, 2))
    again = len(now.read_again())
    before = again if prefix is None else prefix[0].shape[2]
    seen, own = own[..., :again], own[..., again:]
    now.scores[layer] = blank_unseen(own, now, before, rule.reach)
    if (now.keep_context or now.mass_from is not None) and before:
        if prefix is not None:
            seen = rule.scores(torch.einsum("bkgd,ktd->bkgt", grouped, precise(prefix[0][0]))).flatten(1, 2)
        last_position = before + now.lengths.to(seen.device)[:, None] - 1
        visible = rule.reach.sees(last_position, torch.arange(before, device=seen.device)[None])
        record_context(now, layer, seen.masked_fill(~visible[:, None], float("nan")), now.scores[layer], rule.sink)
    if now.keep_queries == "last":
        now.queries[layer] = (last * rule.scale).flatten(1)
    elif now.keep_queries == "all":
        now.queries[layer] = (precise(query[:, :, again:]) * rule.scale).transpose(1, 2).flatten(2)


def record_context(
    now: AttentionPass,
    layer: int,
    context: Float[Tensor, "example head context"],
    own: Float[Tensor, "example head key"],
    sink: Float[Tensor, " head"] | None = None,
) -> None:
    """Keep what is wanted of the last token's scores with the prefix; NaN where a token is not visible."""
    if now.keep_context:
        now.context_scores[layer] = context.sum(dim=1)
    if now.mass_from is not None:
        shares = with_sink(torch.cat([context, own], dim=-1).nan_to_num(nan=float("-inf")), sink).softmax(-1)
        now.context_mass[layer] = shares[..., now.mass_from : context.shape[-1]].sum(-1)


def with_sink(
    scores: Float[Tensor, "*example head key"], sink: Float[Tensor, " head"] | None
) -> Float[Tensor, "*example head key_and_sink"]:
    """Scores with that of a sink behind them, where there is one."""
    if sink is None:
        return scores
    return torch.cat([scores, sink.to(scores)[:, None].expand(*scores.shape[:-1], 1)], dim=-1)


def blank_unseen(
    own: Float[Tensor, "example head token"], now: AttentionPass, before: int, reach: Reach
) -> Float[Tensor, "example head token"]:
    """Own tokens first, NaN after them and where they are out of reach, behind `before` tokens of a prefix."""
    width = own.shape[-1]
    lengths = now.lengths.to(own.device)[:, None]
    place = torch.arange(width, device=own.device)[None]
    if now.left:
        order = (place + width - lengths) % width
        own = own.gather(2, order[:, None].expand_as(own))
    visible = (place < lengths) & reach.sees(before + lengths - 1, before + place)
    return own.masked_fill(~visible[:, None], float("nan"))


def _attend(
    query: Tensor, key: Tensor, value: Tensor, prefix: KeyValues | None, now: AttentionPass | None, rule: _Rule
) -> Float[Tensor, "example head token value_dim"]:
    before = 0 if prefix is None else prefix[0].shape[2]
    padded = now is not None and now.left and int(now.lengths.min()) < key.shape[2]
    plain = rule.softcap is None and rule.sink is None and not padded and not _one_each(prefix)
    if not plain or rule.reach.hides(before + key.shape[2]):
        return _attend_densely(query, key, value, prefix, now, rule)
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


def _one_each(prefix: KeyValues | None) -> bool:
    """Whether each sequence has a prefix of its own."""
    return prefix is not None and len(prefix[0]) > 1


def _attend_densely(
    query: Tensor, key: Tensor, value: Tensor, prefix: KeyValues | None, now: AttentionPass | None, rule: _Rule
) -> Float[Tensor, "example head token value_dim"]:
    """Attention with every score written out: for softcaps, sinks, windows, chunks and left padding."""
    batch = query.shape[0]
    before = 0
    if prefix is not None:
        before = prefix[0].shape[2]
        key = torch.cat([prefix[0].expand(batch, -1, -1, -1), key], dim=2)
        value = torch.cat([prefix[1].expand(batch, -1, -1, -1), value], dim=2)
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    visible = visible_keys(query.shape[2], before, rule.reach, now, query.device)
    if rule.softcap is None and rule.sink is None and _one_each(prefix):
        shown = visible[:, None].expand(batch, 1, -1, -1)
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=shown, scale=rule.scale)
    scores = rule.scores(precise(query @ key.transpose(-1, -2)))
    scores = scores.masked_fill(~visible[:, None], torch.finfo(scores.dtype).min)
    if rule.sink is not None:
        scores = torch.cat([scores, rule.sink.to(scores).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)], dim=-1)
    return scores.softmax(-1)[..., : key.shape[2]].to(value.dtype) @ value


def visible_keys(
    width: int, before: int, reach: Reach, now: AttentionPass | None, device: torch.device
) -> Bool[Tensor, "example token key"]:
    """Which keys each own token may see; positions are counted without padding."""
    token = torch.arange(width, device=device)
    row, column = token[:, None], torch.arange(-before, width, device=device)[None]
    if now is None or not now.left:
        return reach.sees(before + row, before + column)[None]
    gap = (width - now.lengths.to(device))[:, None, None]  # padding between prefix and own tokens
    seen = reach.sees(before + row - gap, before + column - torch.where(column < 0, 0, gap))
    return seen & ((column >= gap) | (column < 0))


AttentionInterface.register(INTERFACE_NAME, recorded_attention)
AttentionMaskInterface.register(INTERFACE_NAME, mask_reach)
