"""Where each family keeps what is recorded and trained, by hand: the truth that discovery is compared with.

Names of modules are those of transformers' own code. What a layer adds to the residual stream was read off its forward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from iclgd.verify.network import Parts

# Modules of a block that mix tokens, and its feed-forward modules.
_ATTENTION = ("self_attn", "attention", "attn", "self_attention", "self_att", "multi_head_attention", "rel_attn")
_OTHER_MIXERS = ("mamba", "linear_attn", "conv", "mixer", "temporal_block", "mlstm_layer")
_MLP = ("mlp", "feed_forward", "block_sparse_moe", "shared_mlp", "ffn", "fc1", "fc2", "mlp_block", "mlps")
# A norm behind attention's output, if the block also has one of these.
_NORMS_AFTER = (
    ("post_self_attn_layernorm", ()),
    ("post_operator_norm", ()),
    ("post_attention_layernorm", ("post_feedforward_layernorm", "post_mlp_layernorm")),
)
_FACTORS = {
    "falcon_h1": {"mamba": "ssm_out_multiplier", "self_attn": "attention_out_multiplier"},
    **dict.fromkeys(
        ("granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared"),
        dict.fromkeys(("self_attn", "mamba"), "residual_multiplier"),
    ),
}
_WITHOUT_SOFTMAX = ("DeltaAttention", "LightningAttention", "RwkvSelfAttention")
_SEPARATE = (
    ("k_proj", "v_proj"),
    ("kv_a_proj_with_mqa", "kv_b_proj"),  # latent attention
    ("attention.k_proj", "attention.v_proj"),
    ("k_proj",),
    ("kv_proj",),
    ("Wk", "Wv"),
)


def parts_of(network: PreTrainedModel) -> Parts:
    """The parts of a network of any family whose names are usual, or stand in the tables above.

    Raises:
        LookupError: a part is called otherwise.
    """
    path, blocks = _blocks(network)
    layers = [_layer(network, f"{path}.{number}", block) for number, block in enumerate(blocks)]
    return Parts(*(tuple(layer[part] for layer in layers) for part in range(6)))


def _blocks(network: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    text = network.config.get_text_config(decoder=True)
    lists = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) >= text.num_hidden_layers
        if name == "git.encoder.layer"
        or not any(part in name for part in ("vision", "audio", "encoder.layer", "experts"))
    ]
    if not lists:
        raise LookupError("no list of blocks")
    return lists[0]


def _layer(network: PreTrainedModel, path: str, block: nn.Module) -> tuple[Any, ...]:
    if network.config.model_type == "git":  # as BERT's
        attention = f"{path}.attention.self"
        return (
            path,
            (f"{path}.attention",),
            attention,
            ((f"{path}.attention.output.dense", 1.0),),
            (f"{path}.intermediate", f"{path}.output"),
            ((f"{attention}.key", None), (f"{attention}.value", None)),
        )
    names = [name for name, _ in block.named_children()]
    mixers = [name for name in (*_OTHER_MIXERS, *_ATTENTION) if name in names]
    if not mixers:
        raise LookupError(f"{path} has no mixer among {', '.join(names)}")
    mlp = [name for name in _MLP if name in names]
    if mixers == ["mixer"] and type(block.mixer).__name__.endswith(("MoE", "MLP")):  # of Nemotron-H: mixes no tokens
        mixers, mlp = [], ["mixer"]
    kinds = {name: type(getattr(block, name)).__name__ for name in mixers}
    softmax = [name for name, kind in kinds.items() if "Attention" in kind and not kind.endswith(_WITHOUT_SOFTMAX)]
    attention = f"{path}.{softmax[0]}" if softmax else None
    return (
        path,
        tuple(f"{path}.{name}" for name in mixers),
        attention,
        _added(network.config, path, names, mixers),
        tuple(f"{path}.{name}" for name in mlp),
        _key_value(network, attention) if attention else (),
    )


def _added(config: Any, path: str, names: Sequence[str], mixers: Sequence[str]) -> tuple[tuple[str, float], ...]:
    for norm, others in _NORMS_AFTER:
        if norm in names and (not others or any(other in names for other in others)):
            return ((f"{path}.{norm}", 1.0),)
    if config.model_type == "bloom":  # whose attention adds the residual stream itself
        return ((f"{path}.self_attention.dense", 1.0),)
    if config.model_type == "hyperclovax" and config.use_post_norm:
        return ((f"{path}.post_norm1", float(config.residual_multiplier)),)
    factors = _FACTORS.get(config.model_type, {})
    if config.model_type == "minicpm3":
        return ((f"{path}.self_attn", config.scale_depth / math.sqrt(config.num_hidden_layers)),)
    return tuple(
        (f"{path}.{name}", float(getattr(config, factors[name])) if name in factors else 1.0) for name in mixers
    )


def _key_value(network: PreTrainedModel, attention: str) -> tuple[tuple[str, Tensor | None], ...]:
    module, config = network.get_submodule(attention), network.config.get_text_config(decoder=True)
    inner = dict(module.named_modules())
    for names in _SEPARATE:
        if all(name in inner for name in names):
            return tuple((f"{attention}.{name}", None) for name in names)
    if "q_proj" in inner:  # keys and values are those of a layer below
        return ()
    heads = config.num_attention_heads
    pairs = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kind = config.model_type
    names = ("qkv_proj", "c_attn", "query_key_value", "Wqkv")
    for name in names:
        if name not in inner:
            continue
        if kind in ("gpt_neox", "gpt_neox_japanese", "bloom", "persimmon", "fuyu", "codegen"):
            chosen = torch.arange(3 * heads) % 3 > 0  # query, key and value of each head in turn
        elif kind == "falcon":
            group = heads // config.num_kv_heads + 2
            chosen = torch.arange(config.num_kv_heads * group) % group >= group - 2
        else:
            pairs = 1 if kind == "gpt_bigcode" and config.multi_query else pairs
            chosen = torch.arange(heads + 2 * pairs) >= heads
        return ((f"{attention}.{name}", chosen.repeat_interleave(head_dim)),)
    raise LookupError(f"{attention} has no keys and values among {', '.join(inner)}")
