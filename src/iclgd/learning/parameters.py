"""Which numbers does finetuning change, and how are they put back?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iclgd import ranks
from iclgd.choices import Trainable
from iclgd.config import ConfigError
from iclgd.models.half_at_rest import in_float32
from iclgd.models.language_model import LanguageModel
from iclgd.models.offload import resident


@dataclass(frozen=True)
class Trained:
    """One parameter of one layer that is trained, whole or (in a fused projection) its keys and values only.

    Attributes:
        layer: the block.
        name: the parameter's, from the block.
        module: what owns it.
        key: what it is called there.
        key_value_only: whether only the keys' and values' part of it is trained.
        model: the model.
    """

    layer: int
    name: str
    module: nn.Module
    key: str
    key_value_only: bool
    model: LanguageModel

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as it is now: where weights wait elsewhere, another object at each of its turns."""
        return self.module.get_parameter(self.key)

    def part(self, tensor: Tensor) -> Tensor:
        """What is trained of the parameter, or of a tensor of its shape: a view, or a copy where processes share it."""
        tensor = ranks.whole(tensor)
        return self.model.anatomy.key_value_view(tensor) if self.key_value_only else tensor

    def write(self, tensor: Tensor, part: Tensor) -> None:
        """Set what is trained of the parameter, or of a tensor of its shape."""
        whole = ranks.whole(tensor)
        self.part(whole).copy_(part)
        if ranks.is_split(tensor):
            ranks.put(tensor, whole)


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
                Trained(layer, f"{prefix}.{name}", module, name, key_value_only, model)
                for name, _ in module.named_parameters()
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
    with resident(item.module for item in trained):
        parameters = [item.parameter for item in trained]
        with in_float32(parameters, trained[0].model.dtype if trained else torch.float32):
            before = [parameter.detach().clone() for parameter in parameters]
            try:
                for parameter in parameters:
                    parameter.requires_grad_(True)
                yield before
            finally:
                with torch.no_grad():
                    for parameter, original in zip(parameters, before, strict=True):
                        parameter.requires_grad_(False)
                        parameter.grad = None
                        parameter.copy_(original)


def layer_norms(trained: Sequence[Trained], tensors: Sequence[Tensor], layers: int) -> Float[Tensor, " layer"]:
    """The l2 norm over each layer's trained numbers; NaN in layers without any."""
    norms = torch.full((layers,), float("nan"))
    if trained:
        parts = [item.part(tensor).detach().float() for item, tensor in zip(trained, tensors, strict=True)]
        each = [torch.linalg.vector_norm(part) for part in parts]
        squares = torch.stack([norm.to(each[0].device) for norm in each]).cpu().double().square()
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
