"""The gradient that a demonstration gives: one function a variant, which adds to `.grad` and returns its loss.

A user's own objective is a function of the same form, named in its yaml by a dotted path.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from iclgd.config import ConfigError
from iclgd.config.enumerations import Exit, Site
from iclgd.config.functions import imported
from iclgd.mechanisms.losses import Sequence, unembedded_loss
from iclgd.models.interventions import at_site, ending_at, hooks
from iclgd.models.language_model import LanguageModel
from iclgd.models.placement import read_again

_ROWS = 512  # layer-causal exits are gathered until they fill one product with the unembedding


@dataclass(frozen=True)
class ObjectiveOptions:
    """What an objective may depend on beside the model and the demonstration.

    Attributes:
        layers: the blocks that are trained.
        exit: where layer-causal losses leave a block.
        exit_layer: the block whose output `short_circuit` reads.
    """

    layers: tuple[int, ...]
    exit: Exit = Exit.block_output
    exit_layer: int | None = None


Objective = Callable[[LanguageModel, Sequence, ObjectiveOptions], float]


def gd(model: LanguageModel, sequence: Sequence, options: ObjectiveOptions) -> float:
    """Mean cross-entropy at the output of the whole model, in nats per predicted token (Dai et al. 2023, sec. 3)."""
    return _loss_at(model, sequence, model.layers - 1)


def short_circuit(model: LanguageModel, sequence: Sequence, options: ObjectiveOptions) -> float:
    """Mean cross-entropy at the output of block `exit_layer`, in nats per predicted token; those above are cut off.

    Raises:
        ConfigError: no such block.
    """
    layer = model.layers - 1 if options.exit_layer is None else options.exit_layer
    if not 0 <= layer < model.layers:
        raise ConfigError(f"finetune.exit_layer={layer} does not exist: the model's layers are 0 to {model.layers - 1}")
    return _loss_at(model, sequence, layer)


def lcgd(model: LanguageModel, sequence: Sequence, options: ObjectiveOptions) -> float:
    """Layer-causal gradient descent (Deutch et al. 2024, sec. 4): no gradient flows from a block to one below it.

    Every block's input is detached, and its output goes through the model's own final norm and unembedding. The loss is
    the sum over trained blocks of the mean cross-entropies, in nats per predicted token. Exits of consecutive blocks
    share one product with the unembedding, after which those blocks' activations are freed: memory does not grow with
    depth.
    """
    exits = _Exits(model, sequence)
    site = Site.attention_output if options.exit is Exit.attention_output else Site.block_output
    leaving = at_site(model, site, options.layers, lambda _layer, hidden: exits.add(hidden))
    with torch.enable_grad(), read_again(model.network), _detached(model), leaving:
        _run(model, sequence)
        exits.flush()
    return exits.total


def refuse_unreached() -> NoReturn:
    """Say that the exits of layer-causal losses lie before all that is trained."""
    raise ConfigError(
        "protocol.exit=attention_output leaves a block before all that finetune.trainable names: set "
        "protocol.exit=block_output, or train attention too"
    )


class _Exits:
    """Outputs of blocks that wait for their loss."""

    def __init__(self, model: LanguageModel, sequence: Sequence) -> None:
        self.model = model
        self.sources, self.targets = sequence.sources(), sequence.targets()
        self.waiting: list[Tensor] = []
        self.total = 0.0

    def add(self, output: Tensor) -> None:
        self.waiting.append(output[0, self.sources.to(output.device)])
        if len(self.waiting) * len(self.sources) >= _ROWS:
            self.flush()

    def flush(self) -> None:
        if not self.waiting:
            return
        rows = torch.cat([output.to(self.waiting[-1].device) for output in self.waiting])
        if not rows.requires_grad:
            refuse_unreached()
        leaf = rows.detach().requires_grad_(True)
        loss = unembedded_loss(self.model, leaf, self.targets.repeat(len(self.waiting))) / len(self.sources)
        loss.backward()
        rows.backward(leaf.grad)
        self.total += loss.item()
        self.waiting = []


def _detached(model: LanguageModel) -> AbstractContextManager[None]:
    def cut(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (args[0].detach(), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach()}

    return hooks([(block, cut) for block in model.anatomy.blocks])


def _loss_at(model: LanguageModel, sequence: Sequence, layer: int) -> float:
    with torch.enable_grad(), read_again(model.network):
        with ending_at(model.anatomy.blocks[layer]) as kept:
            _run(model, sequence)
        rows = kept[0][0, sequence.sources().to(kept[0].device)]
        loss = unembedded_loss(model, rows, sequence.targets()) / len(rows)
        if loss.requires_grad:
            loss.backward()
    return loss.item()


def _run(model: LanguageModel, sequence: Sequence) -> None:
    model.anatomy.body(input_ids=sequence.token_ids[None].to(model.device), use_cache=False)


_OBJECTIVES: dict[str, Objective] = {"gd": gd, "lcgd": lcgd, "short_circuit": short_circuit}


def resolve_objective(name: str, key: str = "finetune.objective") -> Objective:
    """The objective of a name: one of this module's, or a dotted path to a function of yours."""
    if name in _OBJECTIVES:
        return _OBJECTIVES[name]
    found = imported(name, key)
    if not callable(found):
        raise ConfigError(f"{key}={name} is a {type(found).__name__}: an objective is a function")
    return cast(Objective, found)
