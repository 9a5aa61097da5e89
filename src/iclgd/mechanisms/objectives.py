"""The gradient that a demonstration gives: one function a variant, which adds to `.grad` and returns its loss.

A user's own objective is a function of the same form, named in its yaml by a dotted path. The loss of hidden states
under the frozen unembedding is taken without ever holding all their logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from iclgd.config import ConfigError
from iclgd.config.bounds import imported
from iclgd.config.enumerations import Exit, Site
from iclgd.models.anatomy import LanguageModel
from iclgd.models.interventions import at_site, ending_at, hooks
from iclgd.models.placement import read_again, resident
from iclgd.models.products import linear

_LOGITS_ON_CPU, _LOGITS_ON_GPU = 2**21, 2**26  # held at once: what stays in the cache, what fills a GPU
_WHOLE = (torch.float32, torch.float64)
_NARROWEST = 512  # columns of logits, however many rows there are
_HEADROOM = 40.0  # how far a block's logits may exceed the first's before all is rescaled: e^40 is far from overflow
_ROWS = 512  # layer-causal exits are gathered until they fill one product with the unembedding


@dataclass(frozen=True)
class TrainingSequence:
    """One training sequence.

    Attributes:
        token_ids: bos and a demonstration.
        predicted: which tokens have a loss; the first never has, since nothing precedes it.
        demonstration: which demonstration it is, or is a part of.
    """

    token_ids: Int[Tensor, " token"]
    predicted: Bool[Tensor, " token"]
    demonstration: int = -1

    def sources(self) -> Int[Tensor, " predicted"]:
        """The positions that predict."""
        return self.predicted.nonzero().squeeze(1) - 1

    def targets(self) -> Int[Tensor, " predicted"]:
        """What they should predict."""
        return self.token_ids[self.predicted]


class _UnembeddedLoss(torch.autograd.Function):
    """Summed cross-entropy of rows under the unembedding, some columns of the logits at a time.

    The gradient with respect to the rows is made in the same pass, as flash attention makes its output: it is the
    rows' attention to the unembedding, rescaled where a later block's logits would overflow. Each logit is made once
    and never leaves the cache; the unembedding is frozen and has no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        targets: Tensor,
        scale: float = 1.0,
    ) -> Tensor:
        held = _LOGITS_ON_CPU if rows.device.type == "cpu" else _LOGITS_ON_GPU
        width = max(_NARROWEST, held // max(1, len(rows)))
        headroom = _HEADROOM if rows.dtype in _WHOLE else 0.0
        precision = torch.promote_types(rows.dtype, torch.float32)
        shift = torch.full((len(rows), 1), -math.inf, dtype=precision, device=rows.device)
        mass = torch.zeros_like(shift)  # the sum of exponentials
        aimed, bend = torch.zeros_like(shift), torch.ones_like(shift)  # the targets' logits and slopes
        gradient = torch.zeros(rows.shape, dtype=precision, device=rows.device) if rows.requires_grad else None
        for start in range(0, len(weight), width):
            columns = weight[start : start + width].to(rows.dtype)
            columns = columns if scale == 1 else columns * scale
            logits, slope = _cap(linear(rows, columns), None if bias is None else bias[start : start + width], softcap)
            column = targets[:, None] - start
            is_in_block, column = (column >= 0) & (column < len(columns)), column.clamp(0, len(columns) - 1)
            aimed = torch.where(is_in_block, logits.gather(1, column), aimed)
            if slope is not None:
                bend = torch.where(is_in_block, slope.gather(1, column), bend)
            highest = logits.amax(dim=1, keepdim=True)
            if start == 0 or (highest > shift + headroom).any():
                raised = torch.maximum(shift, highest)
                shrink = (shift - raised).exp()
                shift, mass = raised, mass.mul_(shrink)
                if gradient is not None:
                    gradient.mul_(shrink)
            exponentials = logits.sub_(shift).exp_()
            part = exponentials.sum(dim=1, keepdim=True)
            mass.add_(part)
            if gradient is not None:
                gradient.add_(_pull(exponentials if slope is None else exponentials.mul_(slope), part, columns))
        if gradient is not None:
            ctx.gradient = gradient.div_(mass).sub_(weight[targets] * scale * bend).to(rows.dtype)
        return (mass.log() + shift - aimed).sum()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None, None, None]:  # pyright: ignore
        return ctx.gradient * outputs[0], None, None, None, None, None


def _pull(exponentials: Tensor, part: Tensor, columns: Tensor) -> Tensor:
    """Where the rows are drawn by these columns; in half precision as shares of their sum, which cannot overflow."""
    if columns.dtype in _WHOLE:
        return linear(exponentials, columns.T)
    shares = exponentials / part.clamp(min=torch.finfo(part.dtype).tiny)  # all zero where other columns outweigh these
    return linear(shares.to(columns.dtype), columns.T).float() * part


def _cap(products: Tensor, bias: Tensor | None, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """Logits in float32 or float64, and how fast they change with the products where there is a softcap."""
    logits = products if bias is None else products + bias
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if softcap is None:
        return logits, None
    squashed = torch.tanh(logits / softcap)
    return squashed * softcap, 1 - squashed.square()


def unembedded_loss(
    model: LanguageModel, hidden: Float[Tensor, "row d_model"], targets: Int[Tensor, " row"]
) -> Float[Tensor, ""]:
    """Cross-entropy of block outputs read by the model's own final norm and unembedding, both frozen.

    Returns:
        The sum over rows in nats, differentiable in `hidden`.
    """
    finished, exit_ = model.anatomy.finish(hidden), model.anatomy.exit
    unembedding: Any = model.anatomy.unembedding
    with resident([unembedding]):
        weight, bias = unembedding.weight, getattr(unembedding, "bias", None)
        bias = bias if bias is None or exit_.scale == 1 else bias * exit_.scale
        rows, targets = finished.to(weight.device), targets.to(weight.device)
        return _UnembeddedLoss.apply(rows, weight, bias, exit_.softcap, targets, exit_.scale)  # pyright: ignore


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


Objective = Callable[[LanguageModel, TrainingSequence, ObjectiveOptions], float]


def gd(model: LanguageModel, sequence: TrainingSequence, options: ObjectiveOptions) -> float:
    """Mean cross-entropy at the output of the whole model, in nats per predicted token (Dai et al. 2023, sec. 3)."""
    return _loss_at(model, sequence, model.layers - 1)


def short_circuit(model: LanguageModel, sequence: TrainingSequence, options: ObjectiveOptions) -> float:
    """Mean cross-entropy at the output of block `exit_layer`, in nats per predicted token; those above are cut off.

    Raises:
        ConfigError: no such block.
    """
    layer = model.layers - 1 if options.exit_layer is None else options.exit_layer
    if not 0 <= layer < model.layers:
        raise ConfigError(f"finetune.exit_layer={layer} does not exist: the model's layers are 0 to {model.layers - 1}")
    return _loss_at(model, sequence, layer)


def lcgd(model: LanguageModel, sequence: TrainingSequence, options: ObjectiveOptions) -> float:
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


class _Exits:
    """Outputs of blocks that wait for their loss."""

    def __init__(self, model: LanguageModel, sequence: TrainingSequence) -> None:
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
            raise ConfigError(
                "protocol.exit=attention_output leaves a block before all that finetune.trainable names: set "
                "protocol.exit=block_output, or train attention too"
            )
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


def _loss_at(model: LanguageModel, sequence: TrainingSequence, layer: int) -> float:
    with torch.enable_grad(), read_again(model.network):
        with ending_at(model.anatomy.blocks[layer]) as outputs:
            _run(model, sequence)
        rows = outputs[0][0, sequence.sources().to(outputs[0].device)]
        loss = unembedded_loss(model, rows, sequence.targets()) / len(rows)
        if loss.requires_grad:
            loss.backward()
    return loss.item()


def _run(model: LanguageModel, sequence: TrainingSequence) -> None:
    model.anatomy.body(input_ids=sequence.token_ids[None].to(model.device), use_cache=False)


_OBJECTIVES: dict[str, Objective] = {"gd": gd, "lcgd": lcgd, "short_circuit": short_circuit}


def resolve_objective(name: str, key: str = "finetune.objective") -> Objective:
    """The objective of a name: one of this module's, or a dotted path to a function of yours."""
    return _OBJECTIVES.get(name) or imported(name, key)
