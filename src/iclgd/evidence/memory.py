"""Whether a model fits on its device, before its weights are read."""

from __future__ import annotations

import psutil
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from iclgd.config import Config, ConfigError
from iclgd.config.enumerations import Placement
from iclgd.models.loading import resolve_device, resolve_dtype

GB = 1e9


def weights_size(settings: PretrainedConfig, config: Config) -> float:
    """GB of weights as they are stored, counted on a network of this architecture without any."""
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(settings, attn_implementation="eager")
    stored = resolve_dtype(config.runtime.dtype, config.model)
    return sum(parameter.numel() for parameter in network.parameters()) * stored.itemsize / GB


def refuse_too_large(weights: float, config: Config) -> None:
    """Refuse a run whose weights alone, in GB, do not fit on its one device.

    Raises:
        ConfigError: naming the settings that would help.
    """
    device = resolve_device(config.runtime.device)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if config.runtime.placement is Placement.single and weights > free / GB:
        raise ConfigError(
            f"{device} has {free / GB:.1f} GB free, but the model has {weights:.1f} GB of weights: set "
            "runtime.placement=auto (several GPUs, CPU memory, disk) or runtime.dtype=bfloat16"
        )
