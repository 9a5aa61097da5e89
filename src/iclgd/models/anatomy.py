"""Where each architecture keeps its parts: a table of data, to which a family is added as a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from iclgd.common.printable import printable
from iclgd.config import ConfigError
from iclgd.models.layout import LAYOUTS, Layout, Shape
from iclgd.models.placement import resident
from iclgd.models.products import linear


class UnsupportedModelError(ConfigError):
    """A model whose anatomy is not known, or in which recording would give wrong numbers."""


@dataclass(frozen=True)
class Family:
    """One architecture. Paths are attribute names joined by dots; a path that ends in `?` may be absent."""

    blocks: str  # the list of blocks, from the model
    attention: str  # the attention module, from a block
    projection: str  # attention's output projection, from a block
    key_value: tuple[str, ...]  # the projections that make keys and values, from the attention module
    final: tuple[str, ...]  # what stands between the last block and the unembedding, in order, from the model
    # the module whose output attention adds to the residual stream, from a block, where it is a norm after `projection`
    added: str | None = None
    query: str = "q_proj"  # the projection that makes queries, unless it is that of `key_value`
    layout: str = "separate"  # how a fused projection holds queries, keys and values: a key of `LAYOUTS`
    mlp: tuple[str, ...] = ("mlp",)  # the feed-forward modules, from a block
    mlp_in: tuple[str, ...] = ()  # the projections that read the feed-forward part's input, from a block
    mlp_out: str | None = None  # the one that is added to the residual stream, from a block; None where a norm follows
    positions: tuple[str, ...] = ()  # the learned position embeddings, from the model
    interface: bool = True  # whether attention is computed through transformers' AttentionInterface
    # without the interface: whether dot products are scaled after the product (so that recorded queries are not scaled)
    scales_scores: bool = False
    local_mask: str | None = None  # without the interface: the attention module's buffer with a local layer's mask


def _llama_like(**changes: Any) -> Family:
    parts: dict[str, Any] = {
        "blocks": "model.layers",
        "attention": "self_attn",
        "projection": "self_attn.o_proj",
        "key_value": ("k_proj", "v_proj"),
        "final": ("model.norm",),
        "mlp_in": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp_out": "mlp.down_proj",
    }
    return Family(**{**parts, **changes})


_NORM_AFTER_ATTENTION = {"added": "post_attention_layernorm", "mlp_out": None}
_FC = {"mlp_in": ("mlp.fc1",), "mlp_out": "mlp.fc2"}
_FC_IN_BLOCK = {"mlp": ("fc1", "fc2"), "mlp_in": ("fc1",), "mlp_out": "fc2"}
_DENSE = {"mlp_in": ("mlp.dense_h_to_4h",), "mlp_out": "mlp.dense_4h_to_h"}
_FUSED: dict[str, Any] = {
    "blocks": "transformer.h",
    "attention": "self_attention",
    "projection": "self_attention.dense",
    "key_value": ("query_key_value",),
    "final": ("transformer.ln_f",),
    "interface": False,
    "scales_scores": True,
    **_DENSE,
}
_CONV = {"mlp_in": ("mlp.c_fc",), "mlp_out": "mlp.c_proj"}

FAMILIES: dict[str, Family] = {
    "llama": _llama_like(),
    "mistral": _llama_like(),
    "qwen2": _llama_like(),
    "qwen3": _llama_like(),
    "smollm3": _llama_like(),
    "gemma2": _llama_like(**_NORM_AFTER_ATTENTION),
    "gemma3_text": _llama_like(**_NORM_AFTER_ATTENTION),
    "olmo2": _llama_like(**_NORM_AFTER_ATTENTION),
    "phi": _llama_like(projection="self_attn.dense", final=("model.final_layernorm",), **_FC),
    "phi3": _llama_like(key_value=("qkv_proj",), layout="rows", mlp_in=("mlp.gate_up_proj",)),
    "opt": _llama_like(
        blocks="model.decoder.layers",
        projection="self_attn.out_proj",
        final=("model.decoder.final_layer_norm?", "model.decoder.project_out?"),
        positions=("model.decoder.embed_positions",),
        **_FC_IN_BLOCK,
    ),
    "gpt2": Family(
        blocks="transformer.h",
        attention="attn",
        projection="attn.c_proj",
        key_value=("c_attn",),
        layout="columns",
        final=("transformer.ln_f",),
        positions=("transformer.wpe",),
        **_CONV,
    ),
    "gpt_neox": Family(
        blocks="gpt_neox.layers",
        attention="attention",
        projection="attention.dense",
        key_value=("query_key_value",),
        layout="heads",
        final=("gpt_neox.final_layer_norm",),
        **_DENSE,
    ),
    "xglm": _llama_like(projection="self_attn.out_proj", final=("model.layer_norm",), interface=False, **_FC_IN_BLOCK),
    "gpt_neo": Family(
        blocks="transformer.h",
        attention="attn.attention",
        projection="attn.attention.out_proj",
        key_value=("k_proj", "v_proj"),
        final=("transformer.ln_f",),
        positions=("transformer.wpe",),
        interface=False,
        local_mask="bias",
        **_CONV,
    ),
    "gptj": Family(
        blocks="transformer.h",
        attention="attn",
        projection="attn.out_proj",
        key_value=("k_proj", "v_proj"),
        final=("transformer.ln_f",),
        interface=False,
        scales_scores=True,
        mlp_in=("mlp.fc_in",),
        mlp_out="mlp.fc_out",
    ),
    "bloom": Family(layout="heads", **_FUSED),
    "falcon": Family(layout="falcon", **_FUSED),
}


def shape_of(config: Any) -> Shape:
    """The sizes that a transformers config states."""
    heads = int(config.num_attention_heads)
    key_value_heads = getattr(config, "num_key_value_heads", None)
    if config.model_type == "falcon":
        key_value_heads = config.num_kv_heads if config.new_decoder_architecture else 1 if config.multi_query else heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    window = None if config.model_type == "bloom" else getattr(config, "max_position_embeddings", None)
    return Shape(int(config.num_hidden_layers), heads, int(key_value_heads or heads), int(head_dim), window)


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model in memory."""

    family: Family
    shape: Shape
    network: PreTrainedModel
    blocks: tuple[nn.Module, ...]
    final: tuple[nn.Module, ...]
    unembedding: nn.Module
    softcap: float | None  # of the logits (Gemma2)
    layout: Layout | None  # of a fused projection; None where q, k and v have projections of their own

    def part(self, layer: int, path: str) -> nn.Module:
        """A module of one block, by its path in the family's row."""
        return self.blocks[layer].get_submodule(path)

    def attention(self, layer: int) -> nn.Module:
        """The attention module of one block."""
        return self.part(layer, self.family.attention)

    def attention_window(self, layer: int) -> int | None:
        """How many tokens back, itself included, a token of this block attends to; None where that is not limited."""
        module: Any = self.attention(layer)
        if hasattr(module, "attention_type"):  # GPT-Neo
            return module.config.window_size if module.attention_type == "local" else None
        return getattr(module, "sliding_window", getattr(self.network.config, "sliding_window", None))

    def added(self, layer: int) -> nn.Module:
        """The module whose output attention adds to the residual stream."""
        return self.part(layer, self.family.added or self.family.projection)

    def projection(self, layer: int, part: str) -> nn.Module:
        """The projection that makes queries (`q`), keys (`k`) or values (`v`), or attention's output (`o`)."""
        if part == "o":
            return self.part(layer, self.family.projection)
        names = self.family.key_value
        separate = {"q": self.family.query, "k": names[0], "v": names[-1]}
        return self.attention(layer).get_submodule(names[0] if self.layout else separate[part])

    def key_value_view(self, parameter: Tensor) -> Tensor:
        """The keys' and values' part of a projection's parameter (or of its gradient), as a view."""
        return self.layout.of_parameter(parameter, "kv") if self.layout else parameter

    def finish(self, hidden: Tensor) -> Tensor:
        """What the unembedding reads, from what a block puts out: the model's own final norm."""
        for module in self.final:
            hidden = module(hidden)
        return hidden

    def unembed(self, finished: Tensor) -> Tensor:
        """Logits in float32 (float64 of a float64 model), from `finish`ed hidden states [..., d_model].

        Half products would tie labels.
        """
        with resident([self.unembedding]):
            weight = cast(Tensor, self.unembedding.weight)
            bias = cast("Tensor | None", getattr(self.unembedding, "bias", None))
            precision = torch.promote_types(weight.dtype, torch.float32)
            bias = None if bias is None else bias.to(precision)
            logits = linear(finished.to(weight.device, precision), weight, bias)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def norms(self) -> tuple[nn.Module, ...]:
        """Every normalisation layer of the model."""
        return tuple(module for module in self.network.modules() if type(module).__name__.lower().endswith("norm"))

    def embeddings(self) -> tuple[nn.Module, ...]:
        """Input, position and output embeddings."""
        positions = [self.network.get_submodule(path) for path in self.family.positions]
        return (self.network.get_input_embeddings(), *positions, self.unembedding)


def family_of(kind: object, name: str) -> Family:
    """The row of a model's family, by `model_type`; `name` is for the message.

    Raises:
        UnsupportedModelError: the family is not in the table; the message names it and those that are.
    """
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UnsupportedModelError(
            f"{name} is of the family {printable(repr(kind))}, which iclgd does not know; it knows "
            f"{', '.join(sorted(FAMILIES))}; a family is added as a row of iclgd/models/anatomy.py"
        )
    return FAMILIES[kind]


def dissect(network: PreTrainedModel) -> Anatomy:
    """The anatomy of a loaded model.

    Raises:
        UnsupportedModelError: its family is not in the table.
    """
    family = family_of(network.config.model_type, type(network).__name__)
    final = [_optional(network, path) for path in family.final]
    shape = shape_of(network.config)
    return Anatomy(
        family=family,
        shape=shape,
        network=network,
        blocks=tuple(cast(nn.ModuleList, network.get_submodule(family.blocks))),
        final=tuple(module for module in final if module is not None),
        unembedding=cast(nn.Module, network.get_output_embeddings()),
        softcap=getattr(network.config, "final_logit_softcapping", None),
        layout=None if family.layout == "separate" else LAYOUTS[family.layout](shape, network.config),
    )


def _optional(network: nn.Module, path: str) -> nn.Module | None:
    owner, _, name = path.rstrip("?").rpartition(".")
    return getattr(network.get_submodule(owner), name)
