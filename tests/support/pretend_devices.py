"""Several devices on a machine that has one: tensors that remember where they lie, and refuse to be mixed.

Numbers are real and computed on the CPU. Within `pretending`, a device such as `cpu:1` is one of its own: what is moved
or made there becomes a `Placed` tensor, an operation on tensors of two places fails as CUDA's would, and an operation
on an ordinary tensor (which lies on `cpu`) and a placed one fails too, unless the ordinary one is a single number.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

aten = torch.ops.aten
_COPIES = {aten.copy_.default, aten._to_copy.default}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class MixedDevicesError(RuntimeError):
    """Tensors of different devices met in one operation."""


class Placed(torch.Tensor):
    """A tensor on a pretend device."""

    @staticmethod
    def __new__(cls, inner, place=None, requires_grad=False):
        if place is None:  # accelerate makes a parameter of the kind that the last one was
            return torch.nn.Parameter(inner, requires_grad)
        wrapped = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype
        )
        wrapped.inner, wrapped.place = inner, place
        return wrapped

    @property
    def device(self):
        return torch.device(self.place)

    def __repr__(self, **_):
        return f"Placed({self.place}, {self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    places = {t.place if isinstance(t, Placed) else "cpu" for t in tensors if t.ndim or isinstance(t, Placed)}
    if func is aten.cat.default and not any(t.any() for t in tensors if not isinstance(t, Placed)):
        places -= {"cpu"}  # zeros that autograd fills in for parts of a chunk without a gradient
    if func in _INDEXED:  # PyTorch takes indices from the CPU
        places = {p for p in places if p != "cpu"} | ({"cpu"} if not isinstance(tensors[0], Placed) else set())
    if len(places) > 1 and func not in _COPIES:
        raise MixedDevicesError(f"{func} mixes {', '.join(sorted(places))}")
    place = tensors[0].place if tensors and isinstance(tensors[0], Placed) else next(iter(places - {"cpu"}), "cpu")
    if func in _COPIES and tensors and not isinstance(tensors[0], Placed):
        place = "cpu"
    inner = tree_map_only(Placed, lambda t: t.inner, (args, kwargs))
    out = func(*inner[0], **inner[1])
    mutated = func._schema.is_mutable and tensors and isinstance(out, torch.Tensor)
    if mutated and func._schema.name.endswith("_"):
        return args[0]
    return tree_map(lambda t: Placed(t, place) if isinstance(t, torch.Tensor) and place != "cpu" else t, out)


def _named(device):
    """The pretend device that an argument names; None for another argument."""
    if isinstance(device, str) and device.startswith("cpu:"):
        return device
    if isinstance(device, torch.device) and device.type == "cpu" and device.index is not None:
        return str(device)
    return None


class _Moves(TorchFunctionMode):
    """Tensors made on pretend devices, and what would read a tensor's memory directly."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("tolist", "numpy") and isinstance(args[0], Placed):
            return func(args[0].inner.detach(), *args[1:], **kwargs)
        place = _named(kwargs.get("device"))
        if place is not None:
            del kwargs["device"]
            return Placed(func(*args, **kwargs), place)
        return func(*args, **kwargs)


_to, _cpu = torch.Tensor.to, torch.Tensor.cpu


def _moved(tensor, *rest, **kwargs):
    targets = [*rest, *kwargs.values()]
    other = next((each for each in targets if isinstance(each, torch.Tensor)), None)
    if other is not None:
        rest = [other.dtype]
        place = str(other.device)
    else:
        device = next((each for each in targets if isinstance(each, str | torch.device)), None)
        place = str(device) if device is not None else None
        rest = [each for each in rest if not isinstance(each, str | torch.device)]
        kwargs = {key: value for key, value in kwargs.items() if key != "device"}
        if place == "meta":
            return _to(tensor, *rest, device="meta", **kwargs)
    kwargs.pop("non_blocking", None)
    rest = [each for each in rest if not isinstance(each, bool)]
    if rest or kwargs:
        tensor = _to(tensor, *rest, **kwargs)
    if place is None or place == (tensor.place if isinstance(tensor, Placed) else "cpu"):
        return tensor
    return _Carry.apply(tensor, place)


class _Carry(torch.autograd.Function):
    """A move, whose gradient moves back."""

    @staticmethod
    def forward(ctx, tensor, place):
        ctx.back = tensor.place if isinstance(tensor, Placed) else "cpu"
        inner = tensor.inner if isinstance(tensor, Placed) else tensor
        return Placed(inner.clone(), place) if place != "cpu" else inner.clone()

    @staticmethod
    def backward(ctx, gradient):
        return _Carry.apply(gradient, ctx.back), None


@contextmanager
def pretending():
    """Within the block, `cpu:0`, `cpu:1` and so on are devices of their own."""
    torch.Tensor.to, torch.Tensor.cpu = _moved, lambda tensor: _moved(tensor, "cpu")  # a backward pass knows no modes
    try:
        with _Moves():
            yield
    finally:
        torch.Tensor.to, torch.Tensor.cpu = _to, _cpu
