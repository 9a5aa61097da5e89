"""The parameters that finetuning changes, chosen by name, and how they are put back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iclgd.config import ConfigError
from iclgd.config.enumerations import Trainable
from iclgd.models.half_precision_storage import in_float32
from iclgd.models.language_model import LanguageModel
from iclgd.models.placement import resident


@dataclass(frozen=True)
class Trained:
    """One parameter of one layer that is trained, whole or, in a fused projection, some of queries, keys and values."""

    layer: int
    name: str  # the parameter's, from the block
    module: nn.Module  # what owns it
    key: str  # what it is called there
    parts: str  # which of `q`, `k` and `v` of a fused projection are trained; empty for the whole parameter
    model: LanguageModel

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as it is now: where weights wait elsewhere, another object at each of its turns."""
        return self.module.get_parameter(self.key)

    def part(self, tensor: Tensor) -> Tensor:
        """What is trained of the parameter, or of a tensor of its shape, to be read; `write` changes it."""
        layout = self.model.anatomy.layout
        return layout.of_parameter(tensor, self.parts) if layout and self.parts else tensor

    def matrices(self, part: Tensor) -> list[Tensor]:
        """The matrices of which `part` is made, as views: in a fused projection, queries, keys and values apart."""
        layout = self.model.anatomy.layout
        return layout.apart(part, self.parts) if layout and self.parts else [part]

    def write(self, tensor: Tensor, part: Tensor) -> None:
        """Set what is trained of the parameter, or of a tensor of its shape."""
        layout = self.model.anatomy.layout
        if layout and self.parts:
            layout.write(tensor, self.parts, part)
        else:
            tensor.copy_(part)


def trained_parameters(model: LanguageModel, kind: str | Sequence[str], layers: Sequence[int] | None) -> list[Trained]:
    """The parameters that a variant trains, from the input side up.

    Args:
        model: the model.
        kind: one choice or several: `q`, `k`, `v`, `o` (weights and biases of these projections), `attn_kv` (keys and
            values), `attention`, `mlp`, `all` (the whole block), or a regular expression that is searched for in the
            names of a block's parameters. Embeddings, the final norm and the unembedding are never trained.
        layers: which blocks; None for all.

    Raises:
        ConfigError: a layer that the model does not have, or a choice that names no parameter.
    """
    chosen = range(model.layers) if layers is None else layers
    beyond = [layer for layer in chosen if layer >= model.layers]
    if beyond:
        raise ConfigError(
            f"finetune.layers names layer {beyond[0]}, but the model's layers are 0 to {model.layers - 1}"
        )
    found = []
    for layer in chosen:
        parts = _parts(model, [kind] if isinstance(kind, str) else kind, layer)
        block = model.anatomy.blocks[layer]
        for name, _ in block.named_parameters():
            if name in parts:
                owner, _, key = name.rpartition(".")
                found.append(Trained(layer, name, block.get_submodule(owner), key, parts[name], model))
    return found


def _parts(model: LanguageModel, choices: Sequence[str], layer: int) -> dict[str, str]:
    """What is trained of each chosen parameter of a block: letters of a fused projection, or all of it (empty)."""
    names = [name for name, _ in model.anatomy.blocks[layer].named_parameters()]
    parts: dict[str, str] = {}
    for choice in choices:
        matches = _matches(model, choice, layer, names)
        if not matches:
            raise ConfigError(
                f"finetune.trainable={choice} names no parameter of block {layer}: choose one of "
                f"{', '.join(Trainable)}, or a regular expression for one of {', '.join(names)}"
            )
        for name, letters in matches.items():
            before = parts.get(name, letters)
            parts[name] = "".join(p for p in "qkv" if p in before + letters) if before and letters else ""
    return parts


def _matches(model: LanguageModel, choice: str, layer: int, names: Sequence[str]) -> dict[str, str]:
    anatomy = model.anatomy
    if choice in (Trainable.q, Trainable.k, Trainable.v, Trainable.o, Trainable.attn_kv):
        paths = {module: path for path, module in anatomy.blocks[layer].named_modules()}
        letters = "kv" if choice == Trainable.attn_kv else str(choice)
        fused = letters if anatomy.layout and letters != "o" else ""
        prefixes = [paths[anatomy.projection(layer, letter)] for letter in letters]
        return {name: fused for name in names if any(name.startswith(f"{prefix}.") for prefix in prefixes)}
    if choice in (Trainable.attention, Trainable.mlp):
        prefixes = [anatomy.family.attention] if choice == Trainable.attention else anatomy.family.mlp
        return {name: "" for name in names if any(name.startswith(f"{prefix}.") for prefix in prefixes)}
    return {name: "" for name in names if choice == Trainable.all or re.search(choice, name)}


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
        if original.ndim < 2:
            continue
        change = (part.double() - was.double()).flatten(0, -2)
        values = torch.linalg.svdvals(change)
        largest = torch.maximum(part.abs().max(), was.abs().max()).double()
        rounding = torch.finfo(original.dtype).eps * largest * max(change.shape) ** 0.5
        rank = float((values > torch.maximum(rounding, values.max() * max(change.shape) * 1e-12)).sum())
        ranks[item.layer] = max(rank, float(torch.nan_to_num(ranks[item.layer], nan=0.0)))
    return ranks
