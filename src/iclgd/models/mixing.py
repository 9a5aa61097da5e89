"""Which modules of a block mix tokens: what they put out for one token depends on what they read of others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from iclgd.models.interventions import hidden_of
from iclgd.models.placement import device_of
from iclgd.models.tracing import implementation

_LEAST = 1e-3  # by how much of its size an output has to change; grouped experts change by rounding


@torch.no_grad()
def mixing_modules(
    network: PreTrainedModel, tokens: Int[Tensor, " token"], blocks: Sequence[nn.Module]
) -> dict[nn.Module, list[nn.Module]]:
    """The children of each block that mix tokens, in the order of their calls.

    Each is called a second time with other hidden states at all tokens but the last, and the last is compared.
    """
    mixing: dict[nn.Module, list[nn.Module]] = {block: [] for block in blocks}
    again = False  # whether a second call goes on

    def watch(block: nn.Module, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal again
        before = hidden_of(output)
        if again or not _is_hidden(before, tokens) or module in mixing[block]:
            return
        again = True
        try:
            named = {name: moved(value) if name == "hidden_states" else value for name, value in kwargs.items()}
            after = hidden_of(module(*map(moved, args), **named))
        finally:
            again = False
        if (after - before)[0, -1].abs().max() > _LEAST * before[0, -1].abs().max():
            mixing[block].append(module)

    def moved(value: Any) -> Any:
        if not _is_hidden(value, tokens):
            return value
        other = value.clone()
        other[:, :-1] = value[:, :-1].flip(-1) + value.abs().mean()
        return other

    with ExitStack() as stack:
        for block in blocks:
            for child in block.children():
                stack.callback(child.register_forward_hook(partial(watch, block), with_kwargs=True).remove)
        with implementation(network, "eager"):
            network(input_ids=tokens[None].to(device_of(network.get_input_embeddings())), use_cache=False)
    return mixing


def _is_hidden(value: Any, tokens: Tensor) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.shape[:2] == (1, len(tokens))
        and value.ndim == 3
    )
