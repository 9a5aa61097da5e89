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


class LowRank:
    """Each trained matrix changes by `up @ down` only (LoRA, Hu et al. 2021, arXiv 2106.09685); vectors do not change.

    `up` starts at zero, so that the model starts unchanged. `down` starts Gaussian with variance
    1 / sqrt(rank * inputs): a first step G at rate lr then changes the weight by lr G down' down, whose norm is on
    average that of lr G, so that full rank's rate fits. (With LoRA's usual 1 / inputs it is sqrt(rank / inputs) of it.)
    Gradients follow from the whole weight's by the chain rule. What is trained of a fused projection shares
    one pair of factors.
    """

    def __init__(self, trained: Sequence[Trained], rank: int, seed: int) -> None:
        noise = torch_stream("low rank", seed)
        self.pairs: list[tuple[Trained, Tensor, nn.Parameter, nn.Parameter]] = []
        for item in trained:
            if item.parameter.ndim < 2:
                continue
            matrix = self._matrix(item, item.parameter.detach())
            down = torch.randn(rank, matrix.shape[1], generator=noise) / (rank * matrix.shape[1]) ** 0.25
            up = torch.zeros(matrix.shape[0], rank)
            leaves = [nn.Parameter(tensor.to(item.parameter.device)) for tensor in (up, down)]
            self.pairs.append((item, item.parameter.detach().clone(), leaves[0], leaves[1]))
        if not self.pairs:
            raise ConfigError("finetune.rank changes matrices, and finetune.trainable names none: set it to null")
        self.index = [i for i, item in enumerate(trained) if item.parameter.ndim >= 2]
        self.leaves = [leaf for _, _, up, down in self.pairs for leaf in (up, down)]

    def _matrix(self, item: Trained, tensor: Tensor) -> Tensor:
        """[outputs, inputs], whichever way the family keeps it."""
        matrix = item.part(tensor).flatten(0, -2)
        return matrix.T if self._columns(item) else matrix

    @staticmethod
    def _columns(item: Trained) -> bool:
        return isinstance(item.module, Conv1D) and item.rows is None

    def take(self, gradients: Sequence[Tensor]) -> None:
        """Turn the whole weights' gradients into the factors'."""
        for (item, _, up, down), i in zip(self.pairs, self.index, strict=True):
            whole = self._matrix(item, gradients[i]).float()
            up.grad, down.grad = whole @ down.detach().T, up.detach().T @ whole

    @torch.no_grad()
    def write(self) -> None:
        """Set the weights to what they were plus the product of the factors."""
        for item, original, up, down in self.pairs:
            part, change = item.part(original).float(), up @ down
            if self._columns(item):
                change = change.T
            item.write(item.parameter.data, part + change.reshape(part.shape))
