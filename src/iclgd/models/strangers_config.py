"""What of a stranger's config.json and tokenizer_config.json is obeyed, and within which bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from iclgd.common.printable import printable
from iclgd.config import ConfigError
from iclgd.models.anatomy import FAMILIES, UnsupportedModelError

# They name code, kernels, files or other places, or say how to compute what iclgd computes in its own way.
_OVERRULED = {
    "attn_implementation",
    "auto_map",
    "compression_config",
    "custom_pipelines",
    "distributed_config",
    "dtype",
    "experts_implementation",
    "fusion_config",
    "kernel_config",
    "name_or_path",
    "torch_dtype",
    "transformers_weights",
    "trust_remote_code",
    "use_kernels",
}
_TOKENIZER_OVERRULED = {"auto_map", "init_inputs", "is_local", "name_or_path", "processor_class", "trust_remote_code"}
_MOST = {  # no known model comes near
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 18,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 12,
    "max_position_embeddings": 1 << 31,
}
_DEEPEST = 40


def refuse_unknown_family(kind: object, name: str) -> None:
    """Refuse an architecture that has no row in `FAMILIES`."""
    if kind not in FAMILIES:
        raise UnsupportedModelError(
            f"model.name={name} is of the family {printable(repr(kind))}, which iclgd does not know; it knows "
            f"{', '.join(sorted(FAMILIES))}"
        )


def cleaned_config(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A config without what is not obeyed: private fields, code, kernels, attention, other places.

    Fields that would replace a part of transformers' config class, such as `to_dict` or `base_model_tp_plan`, go too.
    `quantization_config` stays, so that it can be refused by name.

    Raises:
        ConfigError: an unknown family, or nesting that no config has.
    """
    kind = content.get("model_type")
    if not isinstance(kind, str):
        raise ConfigError(f"{name}: config.json has no model_type that is a text: it says {printable(repr(kind))}")
    refuse_unknown_family(kind, name)
    known = CONFIG_MAPPING[kind]
    fields = {*getattr(known, "__dataclass_fields__", {}), *known.attribute_map, "model_type", "rope_scaling"}
    kept = _without(content, _OVERRULED, name)
    return {key: value for key, value in kept.items() if key in fields or not hasattr(known, key)}


def cleaned_tokenizer_config(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A tokenizer's config without what is not obeyed: code, and files elsewhere."""
    kept = _without(content, _TOKENIZER_OVERRULED, name)
    return {key: value for key, value in kept.items() if not key.endswith(("_file", "_files"))}


def _without(content: Mapping[str, Any], dropped: set[str], name: str, depth: int = 0) -> dict[str, Any]:
    if depth > _DEEPEST:
        raise ConfigError(f"{name}: a config of the model is nested more than {_DEEPEST} deep")
    kept = {key: value for key, value in content.items() if key not in dropped and not key.startswith("_")}
    return {
        key: _without(value, dropped, name, depth + 1) if isinstance(value, Mapping) else value
        for key, value in kept.items()
    }


def check_bounds(config: PretrainedConfig, name: str) -> None:
    """Refuse sizes that are no plain numbers, or that no model has."""
    for key, most in _MOST.items():
        value = getattr(config, key, None)
        if value is None and key == "max_position_embeddings":  # BLOOM and Falcon have no such bound
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise ConfigError(
                f"model.name={name}: {key} in its config is {printable(repr(value))}: expected 1 to {most:,}"
            )
    width, heads = config.hidden_size, config.num_attention_heads
    if width % heads and not getattr(config, "head_dim", None):
        raise ConfigError(f"model.name={name}: hidden_size {width} is no multiple of its {heads} attention heads")
