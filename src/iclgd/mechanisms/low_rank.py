"""Changes of low rank: each trained matrix moves by the product of two thin ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from iclgd.common.seeding import torch_stream
from iclgd.config import ConfigError
from iclgd.mechanisms.parameters import Trained


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
