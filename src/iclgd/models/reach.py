"""How far back tokens see: windows and chunks, read from the mask rule that transformers hands to layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

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
