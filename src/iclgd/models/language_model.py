"""What the rest of the program holds when it holds a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from iclgd.models.anatomy import Anatomy
from iclgd.models.half_precision_storage import used_dtype
from iclgd.models.placement import device_of


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
        """In which precision it computes; its weights may rest in another."""
        return used_dtype(self.network)

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
