"""Changes of what a model computes without context: a prefix of its own, or activations at the query's last tokens.

They act in every pass that `recorder.record` makes, and nowhere else, and are gone when their block ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from iclgd.config.enumerations import Site
from iclgd.models.attention import AttentionPass, KeyValues
from iclgd.models.hooks import hidden_of, hooks
from iclgd.models.language_model import LanguageModel

Intervention = Callable[[Int[Tensor, "example token"], AttentionPass], AbstractContextManager[object]]
Rewrite = Callable[[int, Float[Tensor, "row d_model"]], Float[Tensor, "row d_model"]]


@contextmanager
def intervening(model: LanguageModel, intervention: Intervention) -> Iterator[None]:
    """Within this block an intervention is entered around every recorded pass, with its tokens and its state."""
    model.interventions.append(intervention)
    try:
        yield
    finally:
        model.interventions.remove(intervention)


@contextmanager
def own_prefix(model: LanguageModel, prefix: Sequence[KeyValues]) -> Iterator[None]:
    """Within this block recorded passes see these keys and values instead of those of the tokens before the query."""
    model.prefixes.append(list(prefix))
    try:
        yield
    finally:
        model.prefixes.pop()


@contextmanager
def entered(model: LanguageModel, token_ids: Int[Tensor, "example token"], now: AttentionPass) -> Iterator[None]:
    """Within this block the model's interventions act on this pass."""
    with ExitStack() as stack:
        for intervention in model.interventions:
            stack.enter_context(intervention(token_ids, now))
        yield


def last_tokens(now: AttentionPass, width: int) -> Bool[Tensor, "example token"]:
    """The query's last token and the label tokens behind it."""
    return own_tokens(now, width, now.query_ends() - 1)


def own_tokens(
    now: AttentionPass, width: int, first: Int[Tensor, " example"], end: Int[Tensor, " example"] | None = None
) -> Bool[Tensor, "example token"]:
    """Each sequence's own tokens from `first` on, up to `end` if given; both are counted without padding."""
    lengths = now.lengths.cpu()
    start = width - lengths if now.left else torch.zeros_like(lengths)
    position = torch.arange(width)[None] - start[:, None]
    return (position >= first[:, None]) & (position < (lengths if end is None else end)[:, None])


def module_at(model: LanguageModel, site: Site, layer: int) -> nn.Module:
    """The module whose output is at a site."""
    return model.anatomy.added(layer) if site is Site.attention_output else model.anatomy.blocks[layer]


def rewriting(
    model: LanguageModel,
    site: Site,
    layers: Sequence[int],
    tokens: Bool[Tensor, "example token"],
    rewrite: Rewrite,
) -> AbstractContextManager[None]:
    """Within this block `rewrite(layer, rows)` replaces the activations of these layers at these tokens of a batch.

    Rows are in order of sequences, then tokens.
    """

    def change(layer: int, _module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = hidden_of(output)
        chosen = tokens.to(hidden.device)
        changed = hidden.clone()
        changed[chosen] = rewrite(layer, hidden[chosen]).to(hidden)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hooks(after=[(module_at(model, site, layer), partial(change, layer)) for layer in layers])


def reading(
    model: LanguageModel,
    site: Site,
    layers: Sequence[int],
    tokens: Bool[Tensor, "example token"],
    into: dict[int, Float[Tensor, "row d_model"]],
) -> AbstractContextManager[None]:
    """Within this block the activations of these layers at these tokens of a batch are put into `into`."""

    def keep(layer: int, _module: nn.Module, _args: Any, output: Any) -> None:
        hidden = hidden_of(output)
        into[layer] = hidden[tokens.to(hidden.device)]

    return hooks(after=[(module_at(model, site, layer), partial(keep, layer)) for layer in layers])
