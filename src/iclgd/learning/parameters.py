"""Which numbers does finetuning change, and how are they put back?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iclgd.choices import Trainable
from iclgd.config import ConfigError
from iclgd.models.language_model import LanguageModel


@dataclass(frozen=True)
class Trained:
    """One parameter of one layer that is trained, whole or (in a fused projection) its keys and values only."""

    layer: int
    name: str
    parameter: nn.Parameter
    key_value_only: bool
    model: LanguageModel

    def part(self, tensor: Tensor) -> Tensor:
        """What is trained of the parameter, or of a tensor of its shape: a view."""
        return self.model.anatomy.key_value_view(tensor) if self.key_value_only else tensor

    def matrices(self, tensor: Tensor) -> list[Tensor]:
        """The trained part as views of its matrices: in a fused projection, keys and values apart."""
        layout = self.model.anatomy.layout
        if layout is None or not self.key_value_only:
            return [tensor]
        return [layout.of_parameter(tensor, part) for part in ("k", "v")]


def trained_parameters(model: LanguageModel, kind: Trainable, layers: Sequence[int] | None) -> list[Trained]:
    """The parameters that a variant trains, from the input side up.

    Args:
        model: the model.
        kind: keys and values (weights and biases of their projections), all of attention, the feed-forward part, or
            the whole block. Embeddings, the final norm and the unembedding are never trained.
        layers: which blocks; None for all.

    Raises:
        ConfigError: a layer that the model does not have.
    """
    chosen = range(model.layers) if layers is None else layers
    beyond = [layer for layer in chosen if layer >= model.layers]
    if beyond:
        raise ConfigError(
            f"finetune.layers names layer {beyond[0]}, but the model's layers are 0 to {model.layers - 1}"
        )
    found = []
    for layer in chosen:
        for module, prefix, key_value_only in _modules(model, kind, layer):
            found += [
                Trained(layer, f"{prefix}.{name}", parameter, key_value_only, model)
                for name, parameter in module.named_parameters()
            ]
    return found


def _modules(model: LanguageModel, kind: Trainable, layer: int) -> list[tuple[nn.Module, str, bool]]:
    family = model.anatomy.family
    if kind is Trainable.attn_kv:
        fused = model.anatomy.layout is not None
        attention = model.anatomy.attention(layer)
        return [(attention.get_submodule(name), f"{family.attention}.{name}", fused) for name in family.key_value]
    if kind is Trainable.attention:
        return [(model.anatomy.attention(layer), family.attention, False)]
    if kind is Trainable.mlp:
        return [(model.anatomy.part(layer, name), name, False) for name in family.mlp]
    return [(model.anatomy.blocks[layer], "block", False)]


@contextmanager
def trainable(trained: Sequence[Trained]) -> Iterator[list[Tensor]]:
    """Let these parameters be trained within the block; afterwards they are, bit for bit, what they were.

    Yields:
        What each parameter was.
    """
    before = [item.parameter.detach().clone() for item in trained]
    try:
        for item in trained:
            item.parameter.requires_grad_(True)
        yield before
    finally:
        with torch.no_grad():
            for item, original in zip(trained, before, strict=True):
                item.parameter.requires_grad_(False)
                item.parameter.grad = None
                item.parameter.copy_(original)


def layer_norms(trained: Sequence[Trained], tensors: Sequence[Tensor], layers: int) -> Float[Tensor, " layer"]:
    """The l2 norm over each layer's trained numbers; NaN in layers without any."""
    norms = torch.full((layers,), float("nan"))
    if trained:
        parts = [item.part(tensor).detach().float() for item, tensor in zip(trained, tensors, strict=True)]
        squares = torch.stack([torch.linalg.vector_norm(part) for part in parts]).cpu().double().square()
        places = torch.tensor([item.layer for item in trained])
        norms[places] = torch.zeros(layers, dtype=torch.float64).index_add_(0, places, squares).sqrt().float()[places]
    return norms


def update_ranks(trained: Sequence[Trained], before: Sequence[Tensor], layers: int) -> Float[Tensor, " layer"]:
    """The largest numerical rank of a layer's weight changes; NaN in layers without any.

    Rank counts singular values above `max(shape) * eps * largest`, in float64, with eps of the weights' own dtype: a
    change smaller than the weights' rounding is rounding.
    """
    ranks = torch.full((layers,), float("nan"))
    for item, original in zip(trained, before, strict=True):
        part, was = item.part(item.parameter.detach()), item.part(original)
        if part.ndim < 2 or (item.key_value_only and original.ndim < 2):
            continue
        change = (part.double() - was.double()).flatten(0, -2)
        values = torch.linalg.svdvals(change)
        largest = torch.maximum(part.abs().max(), was.abs().max()).double()
        rounding = torch.finfo(original.dtype).eps * largest * max(change.shape) ** 0.5
        rank = float((values > torch.maximum(rounding, values.max() * max(change.shape) * 1e-12)).sum())
        ranks[item.layer] = max(rank, float(torch.nan_to_num(ranks[item.layer], nan=0.0)))
    return ranks
