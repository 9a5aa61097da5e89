"""Hooks on a model's modules that are gone when their block ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


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


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a block or an attention module put out: a tensor or a tuple, by family."""
    return output[0] if isinstance(output, tuple) else output


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states that a block was given, by place or by name."""
    return args[0] if args else kwargs["hidden_states"]
