"""How gradients become steps: what the optimiser changes of each trained parameter, in changes of low rank too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from iclgd.common.seeding import torch_stream
from iclgd.config import ConfigError
from iclgd.config.enumerations import Optimizer
from iclgd.mechanisms.parameters import Trained
from iclgd.models.products import HALF

OPTIMISERS = {Optimizer.sgd: torch.optim.SGD, Optimizer.adam: torch.optim.Adam}


class Leaf:
    """A trained parameter itself, or a float32 copy of one in half precision, in which small steps add up."""

    def __init__(self, item: Trained) -> None:
        self.item, parameter = item, item.parameter
        self.parameters = [nn.Parameter(parameter.detach().float()) if parameter.dtype in HALF else parameter]

    def take(self, gradient: Tensor) -> None:
        """Keep the parameter's gradient."""
        self.parameters[0].grad = gradient.to(self.parameters[0])

    def write(self) -> None:
        """Set the parameter to what the optimiser made of its copy."""
        if self.parameters[0] is not self.item.parameter:
            self.item.parameter.data.copy_(self.parameters[0].data)


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
    """What the optimiser changes, by the index of the trained parameter; with a rank, vectors do not change.

    Raises:
        ConfigError: a rank, and no matrix is trained.
    """
    if rank is None:
        return {index: Leaf(item) for index, item in enumerate(trained)}
    noise = torch_stream("low rank", seed)
    matrices = {index: item for index, item in enumerate(trained) if item.parameter.ndim >= 2}
    if not matrices:
        raise ConfigError("finetune.rank changes matrices, and finetune.trainable names none: set it to null")
    return {index: LowRankLeaf(item, rank, noise) for index, item in matrices.items()}
