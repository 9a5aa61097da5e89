"""The parts of one model in memory, as `models.discovery` finds them and `models.proofs` proves them.

`LanguageModel` is what the rest of the program holds when it holds a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from iclgd.config import ConfigError
from iclgd.models.placement import device_of, resident
from iclgd.models.products import linear
from iclgd.models.projections import Projections


class UnsupportedModelError(ConfigError):
    """A model whose parts are not found, or in which recording would give wrong numbers."""


def refuse(network: nn.Module, what: str) -> NoReturn:
    """Refuse a model, with what one may do."""
    is_half = getattr(network, "dtype", None) in (torch.float16, torch.bfloat16)
    precision = "runtime.dtype=float32 (rounding alone may be what failed), " if is_half else ""
    raise UnsupportedModelError(
        f"{type(network).__name__}: {what}; it is not measured. Choose {precision}another model, or describe its parts "
        "in model.anatomy (docs/guide/model.md)"
    )


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, whatever its config calls them; where layers differ, the largest."""

    layers: int
    heads: int
    head_dim: int  # of queries and keys
    window: int | None  # how many positions there are; None where positions are not bounded


@dataclass(frozen=True)
class Layer:
    """The parts of one block."""

    attention: nn.Module | None  # the module that computes softmax attention; None in a layer without
    # Modules and factors: the sum of their outputs, times these, is what mixing tokens (by attention, a state space, a
    # convolution) adds to the residual stream. Empty in a block that mixes no tokens.
    added: tuple[tuple[nn.Module, float], ...]
    mixers: tuple[nn.Module, ...]  # the modules that mix tokens, with all of their weights
    projections: Projections
    scale: float = 1.0  # of the product of a query and a key
    biased: bool = False  # whether something else is added to it (ALiBi)
    window: int | None = None  # how many tokens back, itself included, a token attends to
    chunk: int | None = None  # the length of stretches of positions beyond which it does not attend

    @property
    def mixing(self) -> tuple[nn.Module, ...]:
        """The modules that mix tokens, and the projection of attention's output where it lies beside them (GIT)."""
        inside = {part for mixer in self.mixers for part in mixer.modules()}
        return (*self.mixers, *(each.module for each in self.projections["o"] if each.module not in inside))


@dataclass(frozen=True)
class Exit:
    """What stands between the last block and the logits."""

    modules: tuple[nn.Module, ...]  # in order, up to what the unembedding reads
    unembedding: nn.Module
    scale: float = 1.0  # of the unembedding's products
    softcap: float | None = None  # of the logits after that (Gemma 2)


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward part of every block, by paths from the block."""

    modules: tuple[str, ...]  # all that has matrices and is not attention
    # Where a block puts out input + attention + feed-forward part, the projections of which the latter is made: those
    # that read its input, and the one that is added. Empty and None where it has no such form.
    reads: tuple[str, ...] = ()
    adds: str | None = None


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model."""

    network: PreTrainedModel
    interface: bool  # whether attention is computed through transformers' AttentionInterface
    shape: Shape
    blocks: tuple[nn.Module, ...]
    layers: tuple[Layer, ...]
    exit: Exit
    feed_forward: FeedForward
    positions: tuple[nn.Module, ...] = ()  # embeddings beside those of the tokens

    @property
    def body(self) -> nn.Module:
        """What runs tokens through the blocks and the final norm."""
        base = self.network.base_model
        if base is not self.network:
            return base
        return next(child for child in base.children() if any(each is self.blocks[0] for each in child.modules()))

    def part(self, layer: int, path: str) -> nn.Module:
        """A module of one block, by its path."""
        return self.blocks[layer].get_submodule(path)

    @cached_property
    def layer_of(self) -> dict[nn.Module, int]:
        """The layer of each attention module."""
        return {layer.attention: number for number, layer in enumerate(self.layers) if layer.attention is not None}

    def feed_forward_paths(self, layer: int) -> tuple[str, ...]:
        """Paths of what one block has of the feed-forward part; other blocks' paths may be its mixers (Nemotron-H)."""
        block = self.blocks[layer]
        mixing = {part for mixer in self.layers[layer].mixers for part in mixer.modules()}
        modules = dict(block.named_modules())
        paths = [path for path in self.feed_forward.modules if path in modules]
        return tuple(path for path in paths if mixing.isdisjoint(modules[path].modules()))

    def output_projection(self, layer: int) -> nn.Module:
        """The last projection of attention."""
        return self.layers[layer].projections["o"][-1].module

    @property
    def unembedding(self) -> nn.Module:
        """What turns finished hidden states into logits."""
        return self.exit.unembedding

    def finish(self, hidden: Tensor) -> Tensor:
        """What the unembedding reads, from what a block puts out: the model's own final norm."""
        for module in self.exit.modules:
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
        logits = logits if self.exit.scale == 1 else logits * self.exit.scale
        cap = self.exit.softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def norms(self) -> tuple[nn.Module, ...]:
        """Every normalisation layer of the model."""
        return tuple(module for module in self.network.modules() if "norm" in type(module).__name__.lower())

    def embeddings(self) -> tuple[nn.Module, ...]:
        """Input, position and output embeddings."""
        return (self.network.get_input_embeddings(), *self.positions, self.unembedding)


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model, its parts and its tokenizer.

    Attributes:
        identity: what its numbers depend on (name, revision, weights, dtype, sha256 of its files), for cache keys
            and environment.json.
        first_layer_sees_context: whether the first layer's attention scores with a query's own tokens depend on what
            stands before it; under rotary positions they do not.
        interventions: what acts on recorded passes now, and `prefixes`, of which the last stands before queries instead
            of what the tokens there give (`models.interventions`).
        notes: what a reader should know, such as that input and output embeddings are tied.
    """

    network: PreTrainedModel
    anatomy: Anatomy
    tokenizer: Any
    identity: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    first_layer_sees_context: bool = True
    interventions: list[Any] = field(default_factory=list)
    prefixes: list[list[Any]] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return device_of(self.network.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """In which precision it computes."""
        return self.network.dtype

    @property
    def window(self) -> int | None:
        """How many positions the model has; None where they are not bounded."""
        return self.anatomy.shape.window

    @property
    def shares_prefix(self) -> bool:
        """Whether keys and values are all that layers keep of the tokens before, so that sequences can share them."""
        return all(layer.attention is not None and len(layer.mixers) == 1 for layer in self.anatomy.layers)

    @property
    def layers(self) -> int:
        """How many blocks the model has."""
        return len(self.anatomy.blocks)
