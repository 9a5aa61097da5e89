"""On which devices a model lies: what a config asks of transformers and accelerate, and what cannot work, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from iclgd.common import ranks
from iclgd.config import ConfigError, ModelConfig, RuntimeConfig
from iclgd.config.enumerations import Placement, Weights
from iclgd.models.anatomy import dissect
from iclgd.models.half_precision_storage import stored_apart

_WAYS = ("auto", "balanced", "balanced_low_0", "sequential")


def _gathered(blocks: str, outward: tuple[str, ...], inward: tuple[str, ...]) -> dict[str, str]:
    """A plan that splits matrices but not attention, which every process computes whole."""
    return {
        **{f"{blocks}.*.{name}": "colwise_gather_output" for name in outward},
        **{f"{blocks}.*.{name}": "rowwise_split_input" for name in inward},
    }


_QKV = ("q_proj", "k_proj", "v_proj")
_FUSED = (("self_attention.query_key_value", "mlp.dense_h_to_4h"), ("self_attention.dense", "mlp.dense_4h_to_h"))
_OPT = ((*(f"self_attn.{name}" for name in _QKV), "fc1"), ("self_attn.out_proj", "fc2"))

# Families for which transformers has no plan. GPT-2's matrices are no linear layers, and Falcon adds to them in place.
_PLANS = {
    "opt": _gathered("model.decoder.layers", *_OPT),
    "xglm": _gathered("model.layers", *_OPT),
    "gpt_neo": _gathered(
        "transformer.h",
        (*(f"attn.attention.{name}" for name in _QKV), "mlp.c_fc"),
        ("attn.attention.out_proj", "mlp.c_proj"),
    ),
    "gptj": _gathered(
        "transformer.h", (*(f"attn.{name}" for name in _QKV), "mlp.fc_in"), ("attn.out_proj", "mlp.fc_out")
    ),
    "bloom": _gathered("transformer.h", *_FUSED),
}


def refuse_impossible(model: ModelConfig, runtime: RuntimeConfig, config: PretrainedConfig) -> None:
    """Refuse a placement that cannot work, before any weight is read."""
    check_processes(runtime)
    _refuse_quantised(model, config)
    if runtime.placement is Placement.tensor_parallel:
        _refuse_split(model, runtime, config, ranks.count())


def check_processes(runtime: RuntimeConfig) -> None:
    """Refuse settings that do not go with how this process was started."""
    for key in ("device_map", "max_memory", "offload_folder"):
        if getattr(runtime, key) is not None and runtime.placement is not Placement.auto:
            raise ConfigError(f"runtime.{key} is for runtime.placement=auto, not {runtime.placement}: leave it null")
    way = runtime.device_map
    if way is not None and not isinstance(way, Mapping) and way not in _WAYS:
        raise ConfigError(
            f"runtime.device_map={way} is not known: write one of {', '.join(_WAYS)}, or a device for each module"
        )
    split, count = runtime.placement is Placement.tensor_parallel, ranks.count()
    if split and count == 1:
        raise ConfigError(
            "runtime.placement=tensor_parallel needs several processes: start them with "
            "torchrun --nproc-per-node=NUMBER_OF_GPUS -m iclgd ..."
        )
    if not split and count > 1:
        raise ConfigError(
            f"torchrun started {count} processes, but runtime.placement={runtime.placement} needs one: "
            "set runtime.placement=tensor_parallel, or start iclgd without torchrun"
        )


def _refuse_quantised(model: ModelConfig, config: PretrainedConfig) -> None:
    how = getattr(config, "quantization_config", None)
    if how is None or model.file is not None:  # a GGUF file becomes ordinary weights as it is read
        return
    method = how.get("quant_method") if isinstance(how, Mapping) else getattr(how, "quant_method", None)
    raise ConfigError(
        f"model.name={model.name} holds weights quantised by {method or 'an unknown method'}, whose keys and values "
        "cannot be trained: take the unquantised model (runtime.dtype=float32_from_bfloat16 halves its memory), or a "
        "GGUF file (model.file), which is read as ordinary weights"
    )


def _refuse_split(model: ModelConfig, runtime: RuntimeConfig, config: PretrainedConfig, count: int) -> None:
    plan, asked = plan_of(config), f"runtime.placement=tensor_parallel with {count} processes"
    if plan is None:
        raise ConfigError(
            f"{asked} cannot split the family {config.model_type!r}: set runtime.placement=auto, which deals out layers"
        )
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if splits_heads(config) and heads % count:
        raise ConfigError(
            f"{asked} cannot split {heads} key and value heads evenly: start a number of processes that divides {heads}"
        )
    reasons = {
        f"model.weights={model.weights}": model.weights is not Weights.pretrained,
        "a GGUF file (model.file)": model.file is not None and model.source != "package",
        f"runtime.dtype={runtime.dtype}": stored_apart(runtime.dtype),
        "runtime.device=cpu beside GPUs (hide them with CUDA_VISIBLE_DEVICES=)": runtime.device == "cpu"
        and torch.cuda.is_available(),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"{asked} does not go with {reason}: set runtime.placement=auto")


def plan_of(config: PretrainedConfig) -> dict[str, str] | None:
    """How a family's matrices are split over processes; None where that is not known."""
    return getattr(config, "base_model_tp_plan", None) or _PLANS.get(config.model_type)


def splits_heads(config: PretrainedConfig) -> bool:
    """Whether each process computes some of the attention heads only."""
    plan = plan_of(config) or {}
    return any(path.endswith(("k_proj", "query_key_value")) and how == "colwise" for path, how in plan.items())


def loading_arguments(runtime: RuntimeConfig, config: PretrainedConfig) -> dict[str, Any]:
    """What transformers' `from_pretrained` is told about devices; empty for a single one."""
    if runtime.placement is Placement.single:
        return {}
    if runtime.placement is Placement.tensor_parallel:
        ranks.connect()
        plan = _PLANS.get(config.model_type)  # None: transformers' own
        return {"distributed_config": DistributedConfig(tp_size=ranks.count(), tp_plan=plan)}
    chosen: dict[str, Any] = {"device_map": _plain(runtime.device_map or "auto")}
    if runtime.max_memory is not None:
        chosen["max_memory"] = _plain(runtime.max_memory)
    if runtime.offload_folder is not None:
        chosen["offload_folder"] = runtime.offload_folder
    return chosen


def _plain(value: Any) -> Any:
    """Devices as accelerate writes them: a GPU is a number."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def placement_key(runtime: RuntimeConfig) -> str:
    """What tells placements apart."""
    return str((str(runtime.placement), runtime.device_map, runtime.max_memory, ranks.count()))


def placed(network: PreTrainedModel, runtime: RuntimeConfig, device: torch.device) -> PreTrainedModel:
    """The model where it belongs: transformers has placed one that was read, but not one that was made in memory."""
    if runtime.placement is Placement.single:
        return cast(PreTrainedModel, cast(nn.Module, network).to(device))
    if runtime.placement is Placement.tensor_parallel or hasattr(network, "hf_device_map"):
        return network
    return dispatched(network, loading_arguments(runtime, network.config))


def dispatched(network: PreTrainedModel, arguments: Mapping[str, Any]) -> PreTrainedModel:
    """A model in CPU memory, dealt out by accelerate as `loading_arguments` says."""
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    way, room = arguments["device_map"], arguments.get("max_memory")
    if isinstance(way, list):
        way = dealt_out(network, way)
    if not isinstance(way, Mapping):
        whole = list(network._no_split_modules or ())
        if way != "sequential":
            room = get_balanced_memory(network, room, whole, low_zero=way == "balanced_low_0")
        way = infer_auto_device_map(network, room, whole)
    placed = dispatch_model(network, dict(way), offload_dir=arguments.get("offload_folder"))
    return cast(PreTrainedModel, placed)


def spread(runtime: RuntimeConfig) -> list[Any]:
    """The devices among which accelerate may deal a model out, as it writes them."""
    if isinstance(runtime.device_map, Mapping):
        return list(dict.fromkeys(_plain(runtime.device_map).values()))
    if isinstance(runtime.max_memory, Mapping):
        return list(_plain(runtime.max_memory))
    return list(range(torch.cuda.device_count()))


def dealt_out(network: PreTrainedModel, devices: Sequence[Any]) -> dict[str, Any]:
    """A device for each module: blocks in turn, embeddings first, the rest last, tied weights together."""
    anatomy, names = dissect(network), {module: name for name, module in network.named_modules()}
    blocks = [names[block] for block in anatomy.blocks]
    way = {name: devices[i * len(devices) // len(blocks)] for i, name in enumerate(blocks)}
    tied = bool(network.config.tie_word_embeddings)
    last = {*anatomy.final, *(() if tied else (anatomy.unembedding,))}
    for name, module in network.named_modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own and not any(f"{name}.".startswith(f"{block}.") for block in blocks):
            way[name] = devices[-1] if module in last else devices[0]
    return way


def devices_of(network: nn.Module) -> tuple[str, ...]:
    """Every device that holds a part of a model, `cpu` and `disk` among them where weights wait there."""
    if ranks.is_split(next(network.parameters())) or ranks.count() > 1:
        kind = next(network.parameters()).device.type
        return tuple(f"{kind}:{number}" for number in range(ranks.count()))
    placed = getattr(network, "hf_device_map", None)
    if placed is None:
        return (str(next(network.parameters()).device),)
    named = {f"cuda:{device}" if isinstance(device, int) else str(device) for device in placed.values()}
    return tuple(sorted(named))
