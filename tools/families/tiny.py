"""A tiny random model of any causal language model that transformers registers, made from its default config."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY, LAYERS = 97, 4
MODEL_TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

# Patterns of a field's whole name, and its small value; the first that fits counts.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size|vocab_size_per_layer_input|unpadded_vocab_size", VOCABULARY),
    (r"pad_token_id", 0),
    (r"bos_token_id", 1),
    (r"eos_token_id", 2),
    (r"num_hidden_layers|n_layers?|num_layers|\w+coder_layers|depth|num_decoder_layers|num_blocks", LAYERS),
    (r"(num_attention|n|num|decoder_attention|encoder_attention|attention|swa_num_attention)_heads?", 4),
    (r"n_head|index_n_heads|linear_num_value_heads|linear_num_heads|mamba_n_heads|mamba_num_heads", 4),
    (
        r"\w*num_key_value_heads|num_kv_heads|kv_n_heads|linear_num_key_heads|num_global_key_value_heads|n_mamba_heads",
        2,
    ),
    (r"q_lora_rank|kv_lora_rank|o_lora_rank|hc_lowrank|laurel_rank|gated_norm_rank|mamba_d_head|mamba_dt_rank", 16),
    (r"qk_head_dim", 16),
    (r"mamba_d_ssm|attention_hidden_size", 64),
    (r"qk_(nope|rope)_head_dim|\w*head_dim|kv_channels|dim_head|d_kv|mamba_d_state|state_size|ssm_state_size", 8),
    (r"\w*dim_model_base|hidden_size_per_layer_input|ple_embed_dim", 8),
    (r"(\w*_)?hidden_size|d_model|n_embd|dim|embed_dim|word_embed_proj_dim|embedding_size|vision_output_dim", 32),
    (r"\w*intermediate_size\w*|\w*ffn_dim|\w*ffn_hidden_size|dim_ff|dff|d_ff|n_inner", 48),
    (r"num_(local_)?experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts", 2),
    (r"n_group|topk_group|num_expert_group|n_groups|mamba_n_groups|mamba_ngroups|o_groups", 1),
    (r"num_shared_experts|n_shared_experts|moe_num_shared_experts|first_k_dense_replace|num_dense_layers", 1),
    (r"zero_expert_num", 2),
    (r"sliding_window(_size)?|window_size|attention_window_size|attention_chunk_size|local_attention", 6),
    (r"chunk_size|mamba_chunk_size|block_size|index_block_size", 8),
    (r"\w*max_position_embeddings|n_positions|max_seq_len|n_ctx|context_length|max_length|rel_extent", 128),
    (r"query_pre_attn_scalar|rotary_dim", 8),
    (r"num_kv_shared_layers|max_window_layers", 2),
    (r"index_topk\w*", 8),
)

# Factors that default configs leave at one, and that models of the hub do not.
_FACTORS = {
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.4,
    "logits_scaling": 3.0,
    "embedding_multiplier": 2.0,
    "attention_out_multiplier": 0.7,
    "key_multiplier": 0.8,
    "ssm_out_multiplier": 0.6,
    "lm_head_multiplier": 0.5,
}
# Of fields that are null in the default config and that a model needs.
_NULLS = {"head_dim": 8, "num_experts_per_tok": 2, "num_key_value_heads": 4, "indexer_block_size": 8}

_ALTERNATING = ["sliding_attention", "full_attention"] * 2
_HYBRID = ["linear_attention", "full_attention"] * 2

# What the names of the fields do not tell.
_EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"layer_types": _ALTERNATING},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "falcon": {"new_decoder_architecture": True, "bias": False},
    "gemma3n_text": {"intermediate_size": 48},
    "gemma4_text": {"global_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": _HYBRID},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "qwen2": {"use_sliding_window": True},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {"attention_hidden_size": 64, "attention_head_dim": 16},
    "zaya": {"num_experts_per_tok": 1},
}


class NotTinyError(Exception):
    """A model that cannot be made small this way."""


def tiny_config(model_type: str) -> PretrainedConfig:
    """A small config of this family."""
    kind = CONFIG_MAPPING[model_type]
    changes = dict(_EXCEPTIONS.get(model_type, {}))
    default = kind(**changes.pop("default", {}))
    return kind(**{**_small(default), **changes})


def _small(config: PretrainedConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            fields[name] = _small(value)
        elif name in ("layer_types", "layers_block_type") and value:
            fields[name] = _small_pattern(value)
        elif value is None and name in _NULLS:
            fields[name] = _NULLS[name]
        elif value == 1.0 and name in _FACTORS:
            fields[name] = _FACTORS[name]
        elif isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_"):
            size = next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), None)
            if size is not None:
                fields[name] = size
    heads, pairs = (config.attribute_map.get(n, n) for n in ("num_attention_heads", "num_key_value_heads"))
    if getattr(config, pairs, None) == getattr(config, heads, 0) and pairs in fields and heads in fields:
        fields[pairs] = fields[heads]  # a family without groups may not have them
    return fields


def _small_pattern(kinds: list[str]) -> list[str]:
    """Every kind of layer, in the order in which each comes first, and again."""
    distinct = list(dict.fromkeys(kinds))
    return (distinct * LAYERS)[: max(LAYERS, len(distinct))]


def tiny_network(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model whose random weights are large enough for attention to be uneven."""
    config = tiny_config(model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.device("meta"):
            count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if count > 2_000_000:
            raise NotTinyError(f"{count} parameters")
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 else 0.05))
    return network.eval()
