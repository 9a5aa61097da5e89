"""Weights that accelerate keeps elsewhere (CPU memory, disk) and brings in for each module's turn.

Outside its turn such a module's parameters are on the meta device, without numbers. Whoever reads or trains them must
have them stay: `resident`. Whoever needs them again for the backward pass reads them again: `read_again`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def _hook(module: nn.Module) -> Any:
    """The hook of accelerate that brings this module's own parameters in; None where they are at hand."""
    return next((hook for hook in _hooks(module) if getattr(hook, "offload", False)), None)


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    hook = getattr(module, "_hf_hook", None)
    return tuple(getattr(hook, "hooks", (hook,)))


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes."""
    for hook in _hooks(module):
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return next(module.parameters()).device


@contextmanager
def resident(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block these modules hold their parameters; afterwards they are elsewhere again, as they were."""
    with ExitStack() as stack:
        for module in dict.fromkeys(modules):
            for part in module.modules():
                hook = _hook(part)
                if hook is not None:
                    hook.pre_forward(part)
                    hook.offload = False
                    stack.callback(_send_away, hook, part)
        yield


def _send_away(hook: Any, module: nn.Module) -> None:
    hook.offload = True
    hook.post_forward(module, None)


@contextmanager
def read_again(network: nn.Module) -> Iterator[None]:
    """Within the block, a backward pass reads offloaded weights again.

    Autograd would otherwise keep every weight that a forward pass used, so that the whole model would be in memory at
    the end of it.
    """
    modules = [module for module in network.modules() if _hook(module) is not None]
    if not modules:
        yield
        return
    running: list[nn.Module] = []

    def enter(module: nn.Module, _args: Any) -> None:
        running.append(module)

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        running.pop()

    def pack(tensor: Tensor) -> Any:
        for name, own in running[-1].named_parameters(recurse=False) if running else ():
            if own.untyped_storage()._cdata == tensor.untyped_storage()._cdata:
                return partial(_view, running[-1], name, tensor.shape, tensor.stride(), int(tensor.storage_offset()))
        return tensor

    def unpack(kept: Any) -> Tensor:
        return kept() if isinstance(kept, partial) else kept

    handles = [module.register_forward_pre_hook(enter) for module in modules]
    handles += [module.register_forward_hook(leave, always_call=True) for module in modules]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _view(module: nn.Module, name: str, shape: torch.Size, stride: tuple[int, ...], offset: int) -> Tensor:
    with resident([module]):
        weight = module.get_parameter(name).detach()
    return weight.as_strided(shape, stride, offset)
