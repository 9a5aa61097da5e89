"""Products with a model's weights, on a CPU by oneDNN.

PyTorch gives float32 products to MKL, which copies both factors into an order of its own before it multiplies. For one
demonstration, a product 10 to 50 rows high, that copy costs as much as the product. oneDNN's kernels, which PyTorch
uses when it compiles a model, read the weights where they lie.
"""

from __future__ import annotations

import functools
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

_SMALL = 2**21  # multiplications, below which oneDNN's 20 microseconds a call are not earned back
HALF = (torch.bfloat16, torch.float16)


def linear(
    rows: Float[Tensor, "*row d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None = None
) -> Float[Tensor, "*row d_out"]:
    """`rows @ weight.T + bias`, as `torch.nn.functional.linear`, to float32's rounding; any strides.

    Differentiable in all three; the gradient itself is not differentiable. A weight of another dtype is taken in the
    rows' dtype for the product only, and again for its gradient: no copy of it stays.
    """
    if weight.dtype is rows.dtype and not _faster(rows, weight):
        return functional.linear(rows, weight, bias)
    if torch.is_grad_enabled() and any(factor is not None and factor.requires_grad for factor in (rows, weight, bias)):
        return _Linear.apply(rows, weight, bias)  # pyright: ignore[reportReturnType]
    return _product(rows, weight, bias)


def use_linear(network: nn.Module) -> None:
    """Let every linear layer of a network compute by `linear`; its parameters stay the same objects.

    Layers change their class: a new module in the stead of one would lose its hooks, and all that refers to it.
    """
    for module in network.modules():
        kind = _COUNTERPARTS.get(type(module))
        if kind is not None:
            module.__class__ = kind
            if "_old_forward" in vars(module):  # accelerate's wrapper calls this instead of the class's
                vars(module)["_old_forward"] = MethodType(kind.forward, module)


def _faster(rows: Tensor, weight: Tensor) -> bool:
    return (
        rows.device.type == "cpu"
        and rows.dtype is weight.dtype is torch.float32
        and rows.numel() * weight.shape[0] >= _SMALL
        and bool(torch.backends.mkldnn.enabled)
        and _available()
    )


@functools.cache
def _available() -> bool:
    """Whether this PyTorch has the operator as used here: it is not a public interface."""
    try:
        return _by_onednn(torch.tensor([[2.0]]), torch.tensor([[3.0]]), torch.tensor([1.0])).item() == 7
    except (AttributeError, TypeError, RuntimeError):
        return False


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    weight = weight.to(rows.dtype)
    return _by_onednn(rows, weight, bias) if _faster(rows, weight) else functional.linear(rows, weight, bias)


def _by_onednn(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows if weight.requires_grad else None, weight)
        return _product(rows, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # pyright: ignore
        (output,), (rows, weight) = outputs, ctx.saved_tensors
        for_rows, for_weight, for_bias = ctx.needs_input_grad
        flat = output.reshape(-1, output.shape[-1])
        return (
            _product(output, weight.T, None) if for_rows else None,
            _product(flat.T, rows.reshape(-1, rows.shape[-1]).T, None) if for_weight else None,
            flat.sum(dim=0) if for_bias else None,
        )


class _AsLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class _AsConv1D(Conv1D):  # GPT-2's, whose weight is [in, out]
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.T, self.bias)


_COUNTERPARTS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _AsLinear, Conv1D: _AsConv1D}
