"""Which rows of which projections make queries, keys and values, whether they are separate, fused or in stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Projection:
    """A module, and those of its outputs that make queries, keys or values."""

    module: nn.Module
    rows: Int[Tensor, " row"] | None = None  # None: all of its outputs

    def outputs(self) -> Int[Tensor, " row"]:
        """The indices of the outputs."""
        return torch.arange(output_size(self.module)) if self.rows is None else self.rows


# A layer's projections by what they make: `q`, `k`, `v`, or attention's output (`o`). There are several where a part is
# made in stages, as in latent attention, and none where a layer takes another layer's keys and values.
Projections = Mapping[str, tuple[Projection, ...]]


@dataclass(frozen=True)
class Rows:
    """Some outputs of a projection as its weight or bias holds them, in groups: those of queries, keys, values."""

    groups: tuple[Int[Tensor, " row"], ...]
    axis: int  # of the outputs in the weight

    def read(self, tensor: Tensor) -> Float[Tensor, " row *rest"]:
        """A copy of these rows of a weight, a bias or a gradient, outputs first."""
        index = torch.cat(self.groups).to(tensor.device)
        return tensor.index_select(self._axis_of(tensor), index).movedim(self._axis_of(tensor), 0)

    def write(self, tensor: Tensor, values: Float[Tensor, " row *rest"]) -> None:
        """Set these rows."""
        axis, index = self._axis_of(tensor), torch.cat(self.groups).to(tensor.device)
        tensor.index_copy_(axis, index, values.to(tensor.dtype).movedim(0, axis))

    def split(self, values: Float[Tensor, " row *rest"]) -> list[Tensor]:
        """Views of the groups of what `read` gives."""
        return list(values.split([len(group) for group in self.groups]))

    def _axis_of(self, tensor: Tensor) -> int:
        return self.axis if tensor.ndim > 1 else 0


def is_projection(module: nn.Module) -> bool:
    """Whether a module is a product with one matrix."""
    weight = getattr(module, "weight", None)
    is_matrix = isinstance(weight, Tensor) and weight.ndim == 2
    return is_matrix and isinstance(module, nn.Linear | Conv1D)


def output_axis(module: nn.Module) -> int:
    """Along which axis of its weight a projection's outputs lie."""
    return 1 if isinstance(module, Conv1D) else 0


def output_size(module: nn.Module) -> int:
    """How many outputs a projection has."""
    weight: Tensor = module.weight  # pyright: ignore[reportAssignmentType]
    return weight.shape[output_axis(module)]


def rows_of(projections: Projections, parts: str) -> dict[nn.Module, Rows | None]:
    """By projection, the rows that make some of `q`, `k`, `v` and `o`; None where these are all of its rows.

    A row that makes several of them counts for the first.
    """
    groups: dict[nn.Module, list[Tensor]] = {}
    for part in parts:
        for projection in projections[part]:
            before = groups.setdefault(projection.module, [])
            rows = projection.outputs()
            if before:
                rows = rows[~torch.isin(rows, torch.cat(before))]
            if len(rows):
                before.append(rows)
    return {module: _whole_or(module, rows) for module, rows in groups.items()}


def _whole_or(module: nn.Module, groups: list[Tensor]) -> Rows | None:
    is_whole = len(groups) == 1 and len(groups[0]) == output_size(module)
    return None if is_whole else Rows(tuple(groups), output_axis(module))
