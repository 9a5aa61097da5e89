"""What the naive implementation is given of a network: its parts by their paths, and the scores in its softmax."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from iclgd.models.anatomy import Anatomy, Layer
from iclgd.models.projections import output_size


@dataclass(frozen=True)
class Parts:
    """Where a network keeps what is recorded and trained: an item for each layer; modules by path from the network."""

    blocks: tuple[str, ...]
    attention: tuple[tuple[str, ...], ...]  # the modules that mix tokens
    softmax: tuple[str | None, ...]  # the one that computes attention scores; None in a layer without
    added: tuple[tuple[tuple[str, float], ...], ...]  # modules and factors, whose sum goes to the residual stream
    mlp: tuple[tuple[str, ...], ...]
    # the projections that make keys and values, and which of the numbers that each puts out are keys or values;
    # None: all
    key_value: tuple[tuple[tuple[str, Tensor | None], ...], ...]


class SoftmaxSpy(TorchFunctionMode):
    """Within the block, keeps what transformers hands to each softmax, and the queries in the product before it."""

    def __init__(self) -> None:
        super().__init__()
        self.queries: list[Tensor] = []  # head token head_dim, scaled
        self.scores: list[Tensor] = []  # head key: of the last token, NaN where it cannot see
        self.factor, self.product = torch.empty(0), torch.empty(0)  # the queries, and their product with keys
        self.scales: list[float] = []  # by which the product was multiplied
        self.alibi = torch.zeros(())
        self.shifted, self.without_shift = torch.empty(0), torch.empty(0)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(function, "__name__", "").strip("_"), kwargs or {}
        output = function(*args, **kwargs)
        if name == "softmax":
            self._keep(args[0])
        elif name in ("matmul", "bmm"):
            self.factor, self.product, self.scales = args[0], output, []
        elif name == "baddbmm":  # Bloom's, which adds ALiBi's biases as counted from the first token
            self.factor, self.product, self.scales = kwargs["batch1"], output, [kwargs["alpha"]]
            self.alibi = args[0][..., -1]
        elif name.endswith(("mul", "div")) and args[0] is self.product and torch.as_tensor(args[1]).numel() == 1:
            self.product = output
            self.scales.append(float(args[1]) if name.endswith("mul") else 1 / float(args[1]))
        elif name in ("add", "iadd") and args[0] is self.product:  # a mask
            self.product = output
        elif name == "tanh" and args[0] is self.product:
            self.scales.pop()  # the softcap's
        elif name == "sub":  # the largest score, for half precision
            self.shifted, self.without_shift = output, args[0]
        return output

    def _keep(self, argument: Tensor) -> None:
        argument = self.without_shift if argument is self.shifted else argument
        argument = argument[..., : argument.shape[-2]]  # without a sink
        scores = argument.reshape(-1, *argument.shape[-2:])[:, -1]
        masked = scores < max(torch.finfo(scores.dtype).min / 2, -1e38)
        self.scores.append(as_float(scores - self.alibi).masked_fill(masked, torch.nan))
        self.queries.append(self.factor.reshape(-1, *self.factor.shape[-2:]) * math.prod(self.scales))


def discovered(anatomy: Anatomy) -> Parts:
    """The parts of a network as they were found at load, and proven there."""
    paths: dict[nn.Module, str] = {module: path for path, module in anatomy.network.named_modules()}
    blocks = tuple(paths[block] for block in anatomy.blocks)
    return Parts(
        blocks=blocks,
        attention=tuple(tuple(paths[module] for module in layer.mixing) for layer in anatomy.layers),
        softmax=tuple(None if layer.attention is None else paths[layer.attention] for layer in anatomy.layers),
        added=tuple(tuple((paths[module], factor) for module, factor in layer.added) for layer in anatomy.layers),
        mlp=tuple(
            tuple(f"{block}.{path}" for path in anatomy.feed_forward_paths(layer)) for layer, block in enumerate(blocks)
        ),
        key_value=tuple(_key_value(layer, paths) for layer in anatomy.layers),
    )


def _key_value(layer: Layer, paths: Mapping[nn.Module, str]) -> tuple[tuple[str, Tensor | None], ...]:
    """The projections that make keys or values, and which of their outputs do."""
    chosen: dict[nn.Module, Tensor] = {}
    for projection in (*layer.projections["k"], *layer.projections["v"]):
        rows = chosen.setdefault(projection.module, torch.zeros(output_size(projection.module), dtype=torch.bool))
        rows[projection.outputs()] = True
    return tuple((paths[module], None if rows.all() else rows) for module, rows in chosen.items())


def as_float(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
