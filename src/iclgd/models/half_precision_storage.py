"""Weights that rest in bfloat16 or float16 while everything is computed in float32.

A matrix is taken to float32 for one product and dropped; its gradient takes it again. So a model needs the memory of
its half weights, and its numbers are those of a float32 model with the same, rounded, weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from iclgd.models.products import COUNTERPARTS, change_class

HALF = (torch.bfloat16, torch.float16)


def stored_dtype(name: str, used: torch.dtype) -> torch.dtype:
    """The dtype in which weights rest, for a `runtime.dtype` that computes in `used`."""
    _, is_apart, stored = name.partition("_from_")
    return getattr(torch, stored) if is_apart else used


class _Embedding(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        rows = functional.embedding(input, self.weight).float()
        scale: Any = getattr(self, "embed_scale", 1.0)  # Gemma's and XGLM's
        return rows * (scale.float() if isinstance(scale, Tensor) else scale)


def used_dtype(network: PreTrainedModel) -> torch.dtype:
    """The dtype in which a model computes."""
    return torch.float32 if isinstance(network.get_input_embeddings(), _Embedding) else network.dtype


def compute_in_float32(network: PreTrainedModel) -> None:
    """Let a model with half weights compute in float32; norms, biases and position embeddings become float32."""
    words = network.get_input_embeddings()
    matrices = {id(words.weight)}
    for module in network.modules():
        if module is words:
            change_class(module, _Embedding)
        elif isinstance(module, nn.Linear | Conv1D):
            change_class(module, COUNTERPARTS[nn.Linear if isinstance(module, nn.Linear) else Conv1D])
            matrices.add(id(module.weight))
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in matrices and parameter.dtype in HALF:
                module.register_parameter(name, nn.Parameter(parameter.detach().float(), requires_grad=False))
