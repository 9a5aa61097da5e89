"""How an attention module's projections hold queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, whatever its config calls them."""

    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    window: int | None  # how many positions there are; None where positions are not bounded


@dataclass(frozen=True)
class Layout:
    """Where queries, keys and values lie in a fused projection: `groups` times (queries, keys, values), in heads."""

    groups: int  # how often the pattern repeats
    queries: int  # query heads in a group
    keys: int  # key heads in a group; there are as many value heads
    head_dim: int  # size of a head
    columns: bool = False  # the weight is held as [in, out], as in GPT-2's Conv1D

    def outputs(self, tensor: Tensor, part: str, axis: int) -> Float[Tensor, "group head head_dim *rest"]:
        """A part (`q`, `k`, `v`, or several, in this order) of a tensor whose `axis` is the projection's output.

        It is a view, but for `qv`, which is a copy.
        """
        ends = {"q": 0, "k": self.queries, "v": self.queries + self.keys, "": self.queries + 2 * self.keys}
        after = {"q": "k", "k": "v", "v": ""}
        if part == "qv":
            return torch.cat([self.outputs(tensor, letter, axis) for letter in part], dim=1)
        heads = tensor.movedim(axis, 0).unflatten(0, (-1, ends[""], self.head_dim))
        return heads[:, ends[part[0]] : ends[after[part[-1]]]]

    def of_parameter(self, parameter: Tensor, part: str) -> Float[Tensor, "group head head_dim *rest"]:
        """A part of the projection's weight or bias (or of a gradient), as `outputs` gives it."""
        return self.outputs(parameter, part, -1 if self.columns else 0)

    def apart(self, values: Float[Tensor, "group head head_dim *rest"], part: str) -> list[Tensor]:
        """Views of the queries, keys and values of which a part is made."""
        return list(values.split([self.queries if letter == "q" else self.keys for letter in part], dim=1))

    def write(self, parameter: Tensor, part: str, values: Float[Tensor, "group head head_dim *rest"]) -> None:
        """Set a part of the projection's weight or bias."""
        for letter, new in zip(part, self.apart(values, part), strict=True):
            self.of_parameter(parameter, letter).copy_(new)


def _falcon(shape: Shape, config: Any) -> Layout:
    if config.new_decoder_architecture:
        return Layout(shape.key_value_heads, shape.heads // shape.key_value_heads, 1, shape.head_dim)
    return LAYOUTS["rows" if config.multi_query else "heads"](shape, config)


# A family names one of these, or `separate`: a projection for each of q, k and v.
LAYOUTS: dict[str, Callable[[Shape, Any], Layout]] = {
    "rows": lambda shape, _: Layout(1, shape.heads, shape.key_value_heads, shape.head_dim),
    "columns": lambda shape, _: Layout(1, shape.heads, shape.key_value_heads, shape.head_dim, columns=True),
    "heads": lambda shape, _: Layout(shape.heads, 1, 1, shape.head_dim),
    "falcon": _falcon,
}
