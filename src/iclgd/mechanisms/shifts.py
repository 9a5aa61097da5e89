"""Shifts: what context adds to activations, as a constant vector in each layer or as a linear map of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.common.records import Trace
from iclgd.config.enumerations import Fit
from iclgd.mechanisms.bench import Bench
from iclgd.mechanisms.patches import ridge_map
from iclgd.models.forward import forward
from iclgd.models.interventions import last_tokens, rewriting


@dataclass(frozen=True)
class Shift:
    """What is added to an activation h in one layer: `constant + slope (h - centre)`."""

    constant: Float[Tensor, " d_model"]
    centre: Float[Tensor, " d_model"]
    slope: Float[Tensor, "d_model d_model"] | None = None  # None: the constant alone

    def added(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """The rows with the shift added."""
        shifted = rows + self.constant.to(rows)
        return shifted if self.slope is None else shifted + (rows - self.centre.to(rows)) @ self.slope.T.to(rows)


@contextmanager
def mean_shift(bench: Bench) -> Iterator[Trace]:
    """Adds to each layer what context adds there on average (a bias instead of arXiv 2510.08734's matrix).

    Layer l is shifted by the mean over rows of a_l(C, x) - a_l(x), with a attention's output or, with
    `finetune.at=block_output`, the block's, at the last token. With `finetune.fit=upwards` a_l(x) is of the model whose
    layers below l are shifted already; with `parallel`, of the untouched one.
    """
    shifts = fitted_shifts(bench, slope=False)
    with bench.rewriting(bench.options.at, bench.layers, lambda layer, rows: shifts[layer].added(rows)):
        yield bench.no_steps()


@contextmanager
def linear_shift(bench: Bench) -> Iterator[Trace]:
    """As `mean_shift`, with a ridge regression of the difference on a_l(x), both centred (arXiv 2605.20730).

    `finetune.ridge` is the penalty, as a multiple of the median squared length of the centred inputs.
    """
    shifts = fitted_shifts(bench, slope=True)
    with bench.rewriting(bench.options.at, bench.layers, lambda layer, rows: shifts[layer].added(rows)):
        yield bench.no_steps()


@torch.inference_mode()
def fitted_shifts(bench: Bench, slope: bool) -> dict[int, Shift]:
    """The shift of each layer, fitted to the rows that the mechanism sees."""
    rows, site, shifts = bench.rows(), bench.options.at, {}
    with_context = bench.observe(rows, str(site), context=True)

    def fit(layer: int, activations: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        shifts[layer] = _fitted(activations, with_context[:, layer].to(activations), slope, bench.options.ridge)
        return shifts[layer].added(activations)

    if bench.options.fit is Fit.parallel:
        alone = bench.observe(rows, str(site), context=False)
        for layer in bench.layers:
            fit(layer, alone[:, layer])
        return shifts
    token_ids, state = bench.batch(rows, bos_as_prefix=True)
    # Each layer is fitted in the pass through which the shifts of those below it go.
    with rewriting(bench.model, site, bench.layers, last_tokens(state, token_ids.shape[1]), fit):
        forward(bench.model, token_ids, state)
    return shifts


def _fitted(
    alone: Float[Tensor, "row d_model"], with_context: Float[Tensor, "row d_model"], slope: bool, ridge: float
) -> Shift:
    inputs, change = alone.double(), with_context.double() - alone.double()
    centre, constant = inputs.mean(0), change.mean(0)
    return Shift(constant, centre, ridge_map(inputs - centre, change - constant, ridge) if slope else None)
