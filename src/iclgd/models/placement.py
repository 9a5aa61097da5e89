"""On which devices a model's layers lie: the arguments for transformers and accelerate, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from iclgd.config import ConfigError, ModelConfig, RuntimeConfig
from iclgd.config.enumerations import Placement

_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def check_placement(runtime: RuntimeConfig) -> None:
    """Refuse settings of `runtime` that do not go together.

    Raises:
        ConfigError: a key of `runtime.placement=auto` is set without it, or a device map is unknown.
    """
    for key in ("device_map", "max_memory", "offload_folder"):
        if getattr(runtime, key) is not None and runtime.placement is not Placement.auto:
            raise ConfigError(f"runtime.{key} is for runtime.placement=auto, not {runtime.placement}: leave it null")
    device_map = runtime.device_map
    if device_map is not None and not isinstance(device_map, Mapping) and device_map not in _DEVICE_MAPS:
        raise ConfigError(
            f"runtime.device_map={device_map} is not known: write one of {', '.join(_DEVICE_MAPS)}, or a device for "
            "each module"
        )


def refuse_quantised(model: ModelConfig, config: PretrainedConfig) -> None:
    """Refuse a quantised model before any weight is read; a GGUF file becomes ordinary weights as it is read."""
    quantisation = getattr(config, "quantization_config", None)
    if quantisation is None or model.file is not None:
        return
    is_mapping = isinstance(quantisation, Mapping)
    method = quantisation.get("quant_method") if is_mapping else getattr(quantisation, "quant_method", None)
    raise ConfigError(
        f"model.name={model.name} holds weights quantised by {method or 'an unknown method'}, whose keys and values "
        "cannot be trained: take the unquantised model (runtime.dtype=float32_from_bfloat16 halves its memory), or a "
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


def place(network: PreTrainedModel, runtime: RuntimeConfig, device: torch.device) -> PreTrainedModel:
    """Put a model on its devices, unless `from_pretrained` has done so already."""
    if runtime.placement is Placement.single:
        return cast(PreTrainedModel, cast(nn.Module, network).to(device))
    if hasattr(network, "hf_device_map"):
        return network
    return dispatch(network, loading_arguments(runtime))


def dispatch(network: PreTrainedModel, arguments: Mapping[str, Any]) -> PreTrainedModel:
    """Deal out a model that lies in CPU memory, by the arguments of `loading_arguments`."""
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    device_map, max_memory = arguments["device_map"], arguments.get("max_memory")
    if not isinstance(device_map, Mapping):
        whole = list(network._no_split_modules or ())
        if device_map != "sequential":
            max_memory = get_balanced_memory(network, max_memory, whole, low_zero=device_map == "balanced_low_0")
        device_map = infer_auto_device_map(network, max_memory, whole)
    placed = dispatch_model(network, dict(device_map), offload_dir=arguments.get("offload_folder"))
    return cast(PreTrainedModel, placed)


def devices_of(network: nn.Module) -> tuple[str, ...]:
    """Every device that holds a part of a model, `cpu` and `disk` among them where weights wait there."""
    device_map = getattr(network, "hf_device_map", None)
    if device_map is None:
        return (str(next(network.parameters()).device),)
    names = {f"cuda:{device}" if isinstance(device, int) else str(device) for device in device_map.values()}
    return tuple(sorted(names))
