"""Tiny random models of every architecture, built from a config in memory."""

from __future__ import annotations

from functools import cache

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from iclgd.models.anatomy import LanguageModel
from iclgd.models.loading import assemble

VOCABULARY = 97

_LLAMA = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
_WITHOUT_HEAD_DIM = {key: value for key, value in _LLAMA.items() if key != "head_dim"}
_GPT = dict(vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2)
_SIZES = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
_OPT = _GPT | _SIZES | dict(ffn_dim=48, max_position_embeddings=128, word_embed_proj_dim=32, pad_token_id=0)

CONFIGS: dict[str, dict] = {
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": 6},
    "qwen2": {**_LLAMA, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3": _LLAMA,
    "smollm3": {**_LLAMA, "no_rope_layers": [1, 0, 1]},
    "gemma2": {**_LLAMA, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        **_LLAMA,
        "sliding_window": 6,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "olmo2": _LLAMA,
    "phi": {**_WITHOUT_HEAD_DIM, "num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "phi3": {**_WITHOUT_HEAD_DIM, "rope_scaling": None, "original_max_position_embeddings": 128},
    "opt": _OPT,
    "opt_norm_after": {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},  # as OPT-350M
    "gpt2": _GPT | dict(n_embd=32, n_layer=3, n_head=4, n_positions=128),
    "gpt_neox": _GPT | _SIZES | dict(intermediate_size=48, max_position_embeddings=128),
    "xglm": _GPT
    | dict(d_model=32, ffn_dim=48, num_layers=3, attention_heads=4, max_position_embeddings=128, pad_token_id=0),
    "gpt_neo": _GPT
    | dict(hidden_size=32, intermediate_size=48, num_layers=4, num_heads=4, max_position_embeddings=128)
    | dict(attention_types=[[["global", "local"], 2]], window_size=6),
    "gptj": _GPT | dict(n_embd=32, n_layer=3, n_head=4, n_positions=128, rotary_dim=4),
    "bloom": _GPT | dict(hidden_size=32, n_layer=3, n_head=4),
    "falcon": _GPT | _SIZES | dict(new_decoder_architecture=True, num_kv_heads=2, bias=False),
    "falcon_multi_query": _GPT | _SIZES | dict(multi_query=True),
    "falcon_alibi": _GPT | _SIZES | dict(multi_query=False, alibi=True, bias=True, parallel_attn=False),
}


def tiny_network(name: str, seed: int = 0, **changes) -> PreTrainedModel:
    """A tiny model whose random weights are large enough for attention to be uneven."""
    kind = name if name in CONFIG_MAPPING else name.partition("_")[0]  # a variant of a family: falcon_alibi
    config = AutoConfig.for_model(kind, **{**CONFIGS[name], **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 else 0.05))
    assert sum(parameter.numel() for parameter in network.parameters()) < 100_000, f"{name} is not tiny"
    return network.eval()


# Transformers counts ALiBi twice in eager Falcon, so iclgd refuses it.
RECORDABLE = tuple(name for name in CONFIGS if name != "falcon_alibi")


def tiny_model(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> LanguageModel:
    """The same, ready to be recorded; it has no tokenizer."""
    return assemble(tiny_network(name, seed, **changes).to(dtype), None)


@cache
def shared_model(name: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """The same, made once, for tests that leave its weights as they are."""
    return tiny_model(name, dtype=dtype)
