"""One forward pass as attention sees it: how far back tokens see, lengths, prefix, and what is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from iclgd.models.anatomy import UnsupportedModelError


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


def visible_keys(width: int, before: int, reach: Reach, device: torch.device) -> Bool[Tensor, "token key"]:
    """Which keys each own token may see, behind `before` tokens of a prefix."""
    token = torch.arange(before, before + width, device=device)
    return reach.sees(token[:, None], torch.arange(before + width, device=device)[None])


# [batch, key_value_head, prefix, head_dim]; layers may differ in heads and sizes, keys from values, prefixes in length
KeyValues = tuple[Float[Tensor, "_ _ _ _"], Float[Tensor, "_ _ _ _"]]
Prefix = list[KeyValues] | tuple[int, ...]


@dataclass
class AttentionPass:
    """One forward pass as attention sees it, and what attention leaves behind, by layer.

    Sequences are padded behind their own tokens, where nothing sees it.
    """

    lengths: Int[Tensor, " example"]  # own tokens of each sequence; the rest of its row is padding
    # what stands before every sequence: keys and values by layer, shared or one for each sequence, or, where these
    # cannot be shared, the tokens, which are read again
    prefix: Prefix | None = None
    keep_keys: bool = False  # keep this pass's own keys and values (it is the pass over the prefix itself)
    # of `context_scores`, `context_mass` and `query_vectors` of `Recording`, and `token_queries`, those of every token
    wanted: frozenset[str] = frozenset()
    bos: int = 0  # how many tokens of the prefix do not count for `context_mass`
    # own tokens of each sequence's query; what follows is the beginning of a label
    query_lengths: Int[Tensor, " example"] | None = None
    questions: tuple[int, ...] = ()  # by sequence, the number of the question that it is for
    first_position: int | None = None  # of the own tokens; None: right behind the prefix
    layer_of: Mapping[nn.Module, int] = field(default_factory=dict)  # attention modules, set by `forward.forward`
    calls: list[int] = field(default_factory=list)
    keys_and_values: dict[int, KeyValues] = field(default_factory=dict)
    # what was recorded: `attention_scores` always, and what is wanted; by name and layer
    records: dict[str, dict[int, Tensor]] = field(default_factory=lambda: defaultdict(dict))

    @property
    def shared(self) -> list[KeyValues] | None:
        """The keys and values of a prefix, by layer."""
        return self.prefix if isinstance(self.prefix, list) else None

    @property
    def read_again(self) -> tuple[int, ...]:
        """Tokens that are read before each sequence's own, in the same pass."""
        return self.prefix if isinstance(self.prefix, tuple) else ()

    @property
    def prefix_length(self) -> int:
        """Tokens that stand before every sequence and are not read again."""
        return self.shared[0][0].shape[2] if self.shared else 0

    @property
    def before(self) -> int:
        """Tokens that stand before every sequence's own."""
        return self.prefix_length + len(self.read_again)

    def query_ends(self) -> Int[Tensor, " example"]:
        """How many own tokens of each sequence are its query's: all of them, unless a label follows."""
        return (self.lengths if self.query_lengths is None else self.query_lengths).cpu()

    def last(self, tokens: Float[Tensor, "example *head token rest"], axis: int) -> Tensor:
        """The slice at each sequence's last token along `axis`, whether or not the tokens before its own are there."""
        index = (self.lengths - 1).to(tokens.device)
        if self.read_again:
            index = index + tokens.shape[axis] - int(self.lengths.max())
        shape = [1 if number == axis else size for number, size in enumerate(tokens.shape)]
        return tokens.gather(axis, index.view(-1, *[1] * (tokens.ndim - 1)).expand(shape)).squeeze(axis)


_current: ContextVar[AttentionPass | None] = ContextVar("attention_pass", default=None)


def current_pass() -> AttentionPass | None:
    """The pass that goes on; None outside of recordings."""
    return _current.get()


@contextmanager
def attention_pass(current: AttentionPass) -> Iterator[None]:
    """Let attention see `current` and record into it, within this block only."""
    token = _current.set(current)
    try:
        yield
    finally:
        _current.reset(token)
