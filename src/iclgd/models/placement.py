"""Where a model's layers lie: their devices, and weights that accelerate keeps elsewhere (CPU memory, disk).

Offloaded weights are brought in for each module's turn. Outside it such a module's parameters are on the meta device,
without numbers: code that reads or trains them keeps them in place by `resident`, and a backward pass reads them a
second time by `read_again`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from iclgd.config import ConfigError, ModelConfig, RuntimeConfig
from iclgd.config.enumerations import Placement


def check_placement(runtime: RuntimeConfig) -> None:
    """Refuse settings of `runtime` that do not go together.

    Raises:
        ConfigError: a key of `runtime.placement=auto` is set without it.
    """
    for key in ("device_map", "max_memory", "offload_folder"):
        if getattr(runtime, key) is not None and runtime.placement is not Placement.auto:
            raise ConfigError(f"runtime.{key} is for runtime.placement=auto, not {runtime.placement}: leave it null")


def refuse_quantised(model: ModelConfig, config: PretrainedConfig) -> None:
    """Refuse a quantised model before any weight is read; a GGUF file becomes ordinary weights as it is read."""
    quantisation = getattr(config, "quantization_config", None)
    if quantisation is None or model.file is not None:
        return
    is_mapping = isinstance(quantisation, Mapping)
    method = quantisation.get("quant_method") if is_mapping else getattr(quantisation, "quant_method", None)
    raise ConfigError(
        f"model.name={model.name} holds weights quantised by {method or 'an unknown method'}, whose keys and values "
        "cannot be trained: take the unquantised model (runtime.placement=auto), or a "
        "GGUF file (model.file), which is read as ordinary weights"
    )


def loading_arguments(runtime: RuntimeConfig) -> dict[str, Any]:
    """The arguments about devices for `from_pretrained`; empty for a single device."""
    if runtime.placement is Placement.single:
        return {}
    arguments: dict[str, Any] = {"device_map": _accelerate_names(runtime.device_map or "auto")}
    if runtime.max_memory is not None:
        arguments["max_memory"] = _accelerate_names(runtime.max_memory)
    if runtime.offload_folder is not None:
        arguments["offload_folder"] = runtime.offload_folder
    return arguments


def _accelerate_names(value: Any) -> Any:
    """Devices as accelerate writes them: a GPU is a number."""
    if isinstance(value, Mapping):
        return {_accelerate_names(key): _accelerate_names(each) for key, each in value.items()}
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def devices_of(network: nn.Module) -> tuple[str, ...]:
    """Every device that holds a part of a model, `cpu` and `disk` among them where weights wait there."""
    device_map = getattr(network, "hf_device_map", None)
    if device_map is None:
        return (str(next(network.parameters()).device),)
    names = {f"cuda:{device}" if isinstance(device, int) else str(device) for device in device_map.values()}
    return tuple(sorted(names))


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    """The hooks of accelerate on one module."""
    hook = getattr(module, "_hf_hook", None)
    return tuple(getattr(hook, "hooks", (hook,)))


def _offload_hook(module: nn.Module) -> Any:
    """The hook that brings this module's own parameters in; None where they are at hand."""
    return next((hook for hook in _hooks(module) if getattr(hook, "offload", False)), None)


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
                hook = _offload_hook(part)
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
    modules = [module for module in network.modules() if _offload_hook(module) is not None]
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

    def unpack(stored: Any) -> Tensor:
        return stored() if isinstance(stored, partial) else stored

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
