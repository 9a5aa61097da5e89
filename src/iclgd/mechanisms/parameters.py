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
from iclgd.models.anatomy import LanguageModel
from iclgd.models.placement import resident
from iclgd.models.projections import Rows, rows_of

# What attention's parts are called in `finetune.trainable`, and the projections that make them.
_LETTERS: dict[str, str] = {
    Trainable.q: "q",
    Trainable.k: "k",
    Trainable.v: "v",
    Trainable.o: "o",
    Trainable.attn_kv: "kv",
}


@dataclass(frozen=True)
class Trained:
    """One parameter of one layer that is trained, whole or, in a fused projection, the rows of some of q, k and v."""

    layer: int
    name: str  # the parameter's, from the block
    module: nn.Module  # what owns it
    key: str  # what it is called there
    rows: Rows | None  # which rows are trained; None for the whole parameter
    model: LanguageModel

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as it is now: where weights wait elsewhere, another object at each of its turns."""
        return self.module.get_parameter(self.key)

    def part(self, tensor: Tensor) -> Tensor:
        """What is trained of the parameter, or of a tensor of its shape, to be read; `write` changes it."""
        return self.rows.read(tensor) if self.rows else tensor

    def matrices(self, part: Tensor) -> list[Tensor]:
        """The matrices of which `part` is made, as views: in a fused projection, queries, keys and values apart."""
        return self.rows.split(part) if self.rows else [part]

    def write(self, tensor: Tensor, part: Tensor) -> None:
        """Set what is trained of the parameter, or of a tensor of its shape."""
        if self.rows:
            self.rows.write(tensor, part)
        else:
            tensor.copy_(part)


def trained_parameters(model: LanguageModel, kind: str | Sequence[str], layers: Sequence[int] | None) -> list[Trained]:
    """The parameters that a variant trains in these layers (None: all), from the input side up.

    `kind` is one choice or several: `q`, `k`, `v`, `o` (weights and biases of these projections), `attn_kv` (keys and
    values), `attention`, `mlp`, `all` (the whole block), or a regular expression that is searched for in the names of a
    block's parameters. Embeddings, the final norm and the unembedding are never trained.

    Raises:
        ConfigError: a layer that the model does not have, or a choice that names no parameter of any chosen layer.
    """
    chosen = range(model.layers) if layers is None else layers
    beyond = [layer for layer in chosen if layer >= model.layers]
    if beyond:
        raise ConfigError(
            f"finetune.layers names layer {beyond[0]}, but the model's layers are 0 to {model.layers - 1}"
        )
    choices, blocks = [kind] if isinstance(kind, str) else kind, model.anatomy.blocks
    for choice in choices:  # layers may differ: blocks of a hybrid, or keys and values taken over from below (Gemma 4)
        if not any(_rows_by_name(model, [choice], layer) for layer in chosen):
            names = ", ".join(name for name, _ in blocks[chosen[0]].named_parameters())
            raise ConfigError(
                f"finetune.trainable={choice} names no parameter of the chosen layers: choose one of "
                f"{', '.join(Trainable)}, or a regular expression for one of {names}"
            )
    trained = []
    for layer in chosen:
        rows = _rows_by_name(model, choices, layer)
        for name, _ in blocks[layer].named_parameters():
            if name in rows:
                owner, _, key = name.rpartition(".")
                trained.append(Trained(layer, name, blocks[layer].get_submodule(owner), key, rows[name], model))
    return trained


def _rows_by_name(model: LanguageModel, choices: Sequence[str], layer: int) -> dict[str, Rows | None]:
    """The chosen parameters of a block, with the rows that are trained of each; None for all."""
    letters = {letter for choice in choices for letter in _LETTERS.get(choice, "")}
    rows = _made_by(model, layer, "".join(letter for letter in "qkvo" if letter in letters))
    for choice in choices:
        if choice not in _LETTERS:
            rows |= dict.fromkeys(_named(model, choice, layer))
    return rows


def _made_by(model: LanguageModel, layer: int, letters: str) -> dict[str, Rows | None]:
    """Weights and biases of the projections that make some of `q`, `k`, `v` and `o`."""
    paths = {module: path for path, module in model.anatomy.blocks[layer].named_modules()}
    return {
        f"{paths[module]}.{name}": rows
        for module, rows in rows_of(model.anatomy.layers[layer].projections, letters).items()
        for name, _ in module.named_parameters(recurse=False)
    }


def _named(model: LanguageModel, choice: str, layer: int) -> set[str]:
    """The parameters of a block that a choice of modules or a regular expression names."""
    anatomy = model.anatomy
    names = [name for name, _ in anatomy.blocks[layer].named_parameters()]
    if choice == Trainable.attention:
        attention = {parameter for part in anatomy.layers[layer].mixing for parameter in part.parameters()}
        return {name for name in names if anatomy.blocks[layer].get_parameter(name) in attention}
    if choice == Trainable.mlp:
        starts = tuple(f"{path}." for path in anatomy.feed_forward_paths(layer))
        return {name for name in names if name.startswith(starts)}
    return {name for name in names if choice == Trainable.all or re.search(choice, name)}


@contextmanager
def trainable(trained: Sequence[Trained]) -> Iterator[list[Tensor]]:
    """Let these parameters be trained within the block; afterwards they are, bit for bit, what they were.

    Yields:
        What each parameter was.
    """
    with resident(item.module for item in trained):
        parameters = [item.parameter for item in trained]
        before = [parameter.detach().clone() for parameter in parameters]
        try:
            for parameter in parameters:
                parameter.requires_grad_(True)
            yield before
        finally:
            with torch.no_grad():
                for parameter, was in zip(parameters, before, strict=True):
                    parameter.requires_grad_(False)
                    parameter.grad = None
                    parameter.copy_(was)


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
