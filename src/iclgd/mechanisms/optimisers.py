"""How gradients become steps: an optimiser of torch.optim or of the user's, and changes of low rank."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from iclgd.common.seeding import torch_stream
from iclgd.config import ConfigError
from iclgd.config.bounds import imported
from iclgd.mechanisms.parameters import Trained
from iclgd.models.products import HALF

_SHORT = {"sgd": "torch.optim.SGD", "adam": "torch.optim.Adam"}


def optimiser_class(spec: str | Mapping[str, Any]) -> Callable[..., torch.optim.Optimizer]:
    """The class that `finetune.optimizer` names.

    Raises:
        ConfigError: it names no optimiser, or one that asks for the loss again and again, as LBFGS does.
    """
    name = _SHORT[spec] if isinstance(spec, str) else str(spec["_target_"])
    found = imported(name, "finetune.optimizer")
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ConfigError(f"finetune.optimizer: {name} is no subclass of torch.optim.Optimizer")
    closure = list(inspect.signature(found.step).parameters.values())[1:2]
    if closure and closure[0].default is inspect.Parameter.empty:
        raise ConfigError(f"finetune.optimizer: {name} needs the loss as a function, which is not to be had here")
    return found


def optimiser(spec: str | Mapping[str, Any], parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """An optimiser of these parameters, with the arguments that `finetune.optimizer` gives.

    Raises:
        ConfigError: there is no such class, or it refuses its arguments.
    """
    kind = optimiser_class(spec)
    arguments = {} if isinstance(spec, str) else {key: value for key, value in spec.items() if key != "_target_"}
    try:
        return kind(parameters, lr=lr, **arguments)
    except (TypeError, ValueError) as error:
        name = getattr(kind, "__name__", "it")
        raise ConfigError(f"finetune.optimizer: {name} refuses {arguments}: {error}") from error


class Leaf:
    """What the optimiser changes of a trained parameter: the parameter itself, or a copy that it may change as a whole.

    Of a fused projection, only what is trained may lose weight to decay; of a half parameter, small steps have to add
    up in float32.
    """

    def __init__(self, item: Trained) -> None:
        self.item, parameter = item, item.parameter
        if item.rows or parameter.dtype in HALF:
            part = item.part(parameter.detach())
            parameter = nn.Parameter(part.float() if parameter.dtype in HALF else part.clone())
        self.parameters = [parameter]

    def take(self, gradient: Tensor) -> None:
        """Keep the part of the whole parameter's gradient that is the leaf's."""
        self.parameters[0].grad = self.item.part(gradient).to(self.parameters[0])

    def write(self) -> None:
        """Set the parameter to what the optimiser made of its copy."""
        if self.parameters[0] is not self.item.parameter:
            self.item.write(self.item.parameter.data, self.parameters[0].data)


class LowRankLeaf:
    """A trained matrix that changes by `up @ down` only (LoRA, Hu et al. 2021, arXiv 2106.09685).

    `up` starts at zero, so that the model starts unchanged. `down` starts Gaussian with variance
    1 / sqrt(rank * inputs): a first step G at rate lr then changes the weight by lr G down' down, whose norm is on
    average that of lr G, so that full rank's rate fits. (With LoRA's usual 1 / inputs it is sqrt(rank / inputs) of it.)
    Gradients follow from the whole weight's by the chain rule. What is trained of a fused projection shares
    one pair of factors.
    """

    def __init__(self, item: Trained, rank: int, noise: torch.Generator) -> None:
        self.item, self.original = item, item.parameter.detach().clone()
        self.transposed = isinstance(item.module, Conv1D) and item.rows is None
        outputs, inputs = self._matrix(self.original).shape
        down = torch.randn(rank, inputs, generator=noise) / (rank * inputs) ** 0.25
        factors = (torch.zeros(outputs, rank), down)
        self.parameters = [nn.Parameter(factor.to(self.original.device)) for factor in factors]

    def _matrix(self, tensor: Tensor) -> Tensor:
        """[outputs, inputs], whichever way the family keeps it."""
        matrix = self.item.part(tensor).flatten(0, -2)
        return matrix.T if self.transposed else matrix

    def take(self, gradient: Tensor) -> None:
        """Turn the whole weight's gradient into the factors'."""
        (up, down), whole = self.parameters, self._matrix(gradient).float()
        up.grad, down.grad = whole @ down.detach().T, up.detach().T @ whole

    @torch.no_grad()
    def write(self) -> None:
        """Set the weight to what it was plus the product of the factors."""
        up, down = self.parameters
        part, change = self.item.part(self.original).float(), up @ down
        change = change.T if self.transposed else change
        self.item.write(self.item.parameter.data, part + change.reshape(part.shape))


def leaves_of(trained: Sequence[Trained], rank: int | None, seed: int) -> dict[int, Leaf | LowRankLeaf]:
    """What the optimiser changes, by the place of the trained parameter; with a rank, vectors do not change.

    Raises:
        ConfigError: a rank, and no matrix is trained.
    """
    if rank is None:
        return {place: Leaf(item) for place, item in enumerate(trained)}
    noise = torch_stream("low rank", seed)
    matrices = {place: item for place, item in enumerate(trained) if item.parameter.ndim >= 2}
    if not matrices:
        raise ConfigError("finetune.rank changes matrices, and finetune.trainable names none: set it to null")
    return {place: LowRankLeaf(item, rank, noise) for place, item in matrices.items()}
