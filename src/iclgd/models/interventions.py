"""Temporary changes of what a model computes: hooks, interventions on recorded passes, and the check that none stays.

An intervention gives a model without context a prefix of its own, or changes activations at the query's last tokens. It
acts in every pass that `recorder.record` makes, and nowhere else. All of them are gone when their block ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from iclgd.config import ConfigError
from iclgd.config.enumerations import Site
from iclgd.models.anatomy import LanguageModel
from iclgd.models.attention_pass import AttentionPass, KeyValues

Intervention = Callable[[Int[Tensor, "example token"], AttentionPass], AbstractContextManager[object]]
Rewrite = Callable[[int, Float[Tensor, "row d_model"]], Float[Tensor, "row d_model"]]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def hooks(
    before: Iterable[tuple[nn.Module, Callable[..., Any]]] = (),
    after: Iterable[tuple[nn.Module, Callable[..., Any]]] = (),
) -> Iterator[None]:
    """Within this block, functions are called before or after modules.

    Args:
        before: pairs of a module and `function(module, args, kwargs)`, which may return changed (args, kwargs).
        after: pairs of a module and `function(module, args, output)`, which may return a changed output.
    """
    with ExitStack() as stack:
        for module, function in before:
            stack.callback(module.register_forward_pre_hook(function, with_kwargs=True).remove)
        for module, function in after:
            stack.callback(module.register_forward_hook(function).remove)
        yield


class _ReachedError(Exception):
    """Ends a pass."""


@contextmanager
def ending_at(module: nn.Module) -> Iterator[list[Tensor]]:
    """Within this block a pass ends behind a module, whose hidden states are yielded."""
    outputs: list[Tensor] = []

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        outputs.append(hidden_of(output))
        raise _ReachedError

    with hooks(after=[(module, leave)]), suppress(_ReachedError):
        yield outputs


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a block or an attention module put out: a tensor or a tuple, by family."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """What a module put out, with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def at_site(
    model: LanguageModel, site: Site, layers: Iterable[int], function: Callable[[int, Tensor], Tensor | None]
) -> AbstractContextManager[None]:
    """Within this block `function(layer, hidden)` is given what is at a site, and may return what is to be there.

    At `attention_output` that is all that mixing tokens adds to the residual stream: where several modules do so side
    by side their sum, and nothing but zeros in a block that mixes no tokens, where a return counts for nothing.
    """

    def block(layer: int, _module: nn.Module, _args: Any, output: Any) -> Any:
        changed = function(layer, hidden_of(output))
        return None if changed is None else with_hidden(output, changed)

    def nothing(layer: int, _module: nn.Module, _args: Any, output: Any) -> None:
        function(layer, torch.zeros_like(hidden_of(output)))

    after: list[tuple[nn.Module, Callable[..., Any]]] = []
    for layer in layers:
        terms = model.anatomy.layers[layer].added
        if site is Site.block_output or not terms:
            hook = block if site is Site.block_output else nothing
            after.append((model.anatomy.blocks[layer], partial(hook, layer)))
        else:
            total = _Total(layer, len(terms), function)
            after += [(module, partial(total.take, factor)) for module, factor in terms]
    return hooks(after=after)


class _Total:
    """The sum of what the modules of one layer put out, complete when the last of them has run."""

    def __init__(self, layer: int, count: int, function: Callable[[int, Tensor], Tensor | None]) -> None:
        self.layer, self.count, self.function = layer, count, function
        self.others: list[Tensor] = []

    def take(self, factor: float, _module: nn.Module, _args: Any, output: Any) -> Any:
        """A module has put out its term, to be multiplied by `factor`."""
        term = hidden_of(output) if factor == 1 else hidden_of(output) * factor
        if len(self.others) < self.count - 1:
            self.others.append(term)
            return None
        others, self.others = self.others, []
        changed = self.function(self.layer, sum(others, term))
        if changed is None:
            return None
        own = changed - sum(others, torch.zeros_like(changed)) if others else changed
        return with_hidden(output, own if factor == 1 else own / factor)


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
def entered(model: LanguageModel, token_ids: Int[Tensor, "example token"], state: AttentionPass) -> Iterator[None]:
    """Within this block the model's interventions act on this pass."""
    with ExitStack() as stack:
        for intervention in model.interventions:
            stack.enter_context(intervention(token_ids, state))
        yield


def last_tokens(state: AttentionPass, width: int) -> Bool[Tensor, "example token"]:
    """The query's last token and the label tokens behind it."""
    return own_tokens(state, width, state.query_ends() - 1)


def own_tokens(
    state: AttentionPass, width: int, first: Int[Tensor, " example"], end: Int[Tensor, " example"] | None = None
) -> Bool[Tensor, "example token"]:
    """Each sequence's own tokens from `first` on, up to `end` if given."""
    position = torch.arange(width)[None]
    return (position >= first[:, None]) & (position < (state.lengths.cpu() if end is None else end)[:, None])


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

    def change(layer: int, hidden: Tensor) -> Tensor:
        chosen = _among(hidden, tokens)
        changed = hidden.clone()
        changed[chosen] = rewrite(layer, hidden[chosen]).to(hidden)
        return changed

    return at_site(model, site, layers, change)


def reading(
    model: LanguageModel,
    site: Site,
    layers: Sequence[int],
    tokens: Bool[Tensor, "example token"],
    into: dict[int, Float[Tensor, "row d_model"]],
) -> AbstractContextManager[None]:
    """Within this block the activations of these layers at these tokens of a batch are put into `into`."""

    def read(layer: int, hidden: Tensor) -> None:
        into[layer] = hidden[_among(hidden, tokens)]

    return at_site(model, site, layers, read)


def _among(hidden: Float[Tensor, "example token d_model"], own: Bool[Tensor, "example own"]) -> Bool[Tensor, "..."]:
    """Own tokens among all that a pass reads: with those before them, where these are read again."""
    return functional.pad(own, (hidden.shape[1] - own.shape[1], 0)).to(hidden.device)


@contextmanager
def unchanged_afterwards(model: LanguageModel, name: str) -> Iterator[None]:
    """Refuse a variant of this name that leaves the model changed: later recordings would be of another model.

    Raises:
        ConfigError: hooks, weights, buffers or training modes differ when the block ends; the message names the first.
    """
    before = _state(model)
    yield
    after = _state(model)
    different = [part for part in {**before, **after} if before.get(part) != after.get(part)]
    if different:
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise ConfigError(
            f"finetune={name} leaves the model changed ({different[0]}{more}): what it does to the model has to be "
            "undone when its block ends, hooks included"
        )


def _state(model: LanguageModel) -> dict[str, object]:
    """By what may change, a value that tells whether it has."""
    state: dict[str, object] = {"an intervention": len(model.interventions)}
    state["a prefix of its own"] = len(model.prefixes)
    for name, module in model.network.named_modules():
        state[f"hooks of {name or 'the model'}"] = tuple(len(getattr(module, kind)) for kind in _HOOKS)
        state[f"training mode of {name or 'the model'}"] = module.training
    state |= {f"parameter {name}": _content(tensor) for name, tensor in model.network.named_parameters()}
    return state | {f"buffer {name}": _content(tensor) for name, tensor in model.network.named_buffers()}


@torch.no_grad()
def _content(tensor: Tensor) -> tuple[object, ...]:
    """Shape, whether it is trained, and the sum of its bits, which a change leaves alone only by rare chance."""
    if tensor.is_meta or not tensor.numel():  # offloaded
        return tuple(tensor.shape), tensor.requires_grad
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.detach().contiguous().view(integers)
    return tuple(tensor.shape), tensor.requires_grad, bits.sum(dtype=torch.int64).item()
