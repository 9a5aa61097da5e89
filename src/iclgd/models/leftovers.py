"""What a mechanism may leave on a model by mistake: hooks, changed weights or buffers, another training mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from iclgd.config import ConfigError
from iclgd.models.language_model import LanguageModel

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def unchanged_afterwards(model: LanguageModel, name: str) -> Iterator[None]:
    """Refuse what is different on the model when the block ends: later recordings would be of another model.

    Args:
        model: the model.
        name: the variant whose mechanism works on it.

    Raises:
        ConfigError: something was left, or has gone; the message names it.
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
    state: dict[str, object] = {
        "an intervention": len(model.interventions),
        "a prefix of its own": len(model.prefixes),
    }
    for name, module in model.network.named_modules():
        state[f"hooks of {name or 'the model'}"] = tuple(len(getattr(module, kind)) for kind in _HOOKS)
        state[f"training mode of {name or 'the model'}"] = module.training
    for name, tensor in _tensors(model.network):
        state[name] = _content(tensor)
    return state


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in network.named_parameters():
        yield f"parameter {name}", parameter
    for name, buffer in network.named_buffers():
        yield f"buffer {name}", buffer


@torch.no_grad()
def _content(tensor: Tensor) -> tuple[object, ...]:
    """Shape, whether it is trained, and the sum of its bits, which a change leaves alone only by rare chance."""
    if tensor.is_meta or not tensor.numel():  # waits elsewhere
        return tuple(tensor.shape), tensor.requires_grad
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.detach().contiguous().view(integers)
    return tuple(tensor.shape), tensor.requires_grad, bits.sum(dtype=torch.int64).item()
