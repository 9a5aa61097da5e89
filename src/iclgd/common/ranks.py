"""The processes that share one model under torchrun: their number, what they tell each other, how they join tensors.

Everything here also holds for an ordinary run, which is one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def count() -> int:
    """How many processes torchrun started for this command; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def own() -> int:
    """This process's number; 0 writes the results."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def local() -> int:
    """This process's number on its machine, which is also that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if count() > 1 else 0


def connect() -> None:
    """Let the processes find each other, once; values travel by gloo, tensors on GPUs by NCCL."""
    import torch
    from torch import distributed

    if count() == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local())
        distributed.init_process_group("cpu:gloo,cuda:nccl")
    else:
        distributed.init_process_group("gloo")


def disconnect() -> None:
    """End what `connect` began."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def told(value: T) -> T:
    """The first process's value, in every process; a plain value that can be pickled."""
    if count() == 1:
        return value
    import torch
    from torch import distributed

    connect()
    box = [value]
    distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def once(fetch: Callable[[Callable[[], T]], tuple[T, bool]], compute: Callable[[], T]) -> tuple[T, bool]:
    """What a store of the first process gives, in every process; all compute together where it has nothing.

    Args:
        fetch: asks the store, which calls its argument for what it lacks; returns the value and whether it was there.
        compute: makes the value, and needs every process.
    """
    if count() == 1:
        return fetch(compute)

    def together() -> T:
        told(None)
        return compute()

    if own() == 0:
        value, known = fetch(together)
        if known:
            told((value,))
        return value, known
    stored = told(None)
    return (compute(), False) if stored is None else (stored[0], True)


def anyone(holds: bool) -> bool:
    """Whether something holds in any process."""
    import torch

    return holds if count() == 1 else bool(largest(torch.tensor(int(holds))))


def is_split(tensor: object) -> bool:
    """Whether each process holds a part of this parameter only."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Any:
    """All of a parameter or gradient, of which each process may hold a part; a copy if it does."""
    return tensor.full_tensor() if is_split(tensor) else tensor


def put(tensor: Any, values: Tensor) -> None:
    """Write all of a parameter; each process keeps its part."""
    if not is_split(tensor):
        tensor.copy_(values)
        return
    from torch.distributed.tensor import distribute_tensor

    tensor.copy_(distribute_tensor(values, tensor.device_mesh, tensor.placements, src_data_rank=None))


def mine(tensor: Any) -> tuple[Any, int]:
    """This process's rows of a parameter that is split by rows, and how many rows stand before them."""
    if not is_split(tensor):
        return tensor, 0
    return tensor.to_local(), min(own() * _chunk(len(tensor)), len(tensor))


def _chunk(size: int) -> int:
    return -(-size // count())


def joined(part: Tensor, axis: int, size: int) -> Tensor:
    """The parts of all processes along an axis of that size; the tensor itself where it has that size already.

    As PyTorch's sharding has it, all parts are equally long but the last ones, which may be shorter.
    """
    if part.shape[axis] == size:
        return part
    import torch
    from torch import distributed

    part = part.movedim(axis, 0)
    padded = part.new_zeros((_chunk(size), *part.shape[1:]))
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in range(count())]
    distributed.all_gather(parts, padded)
    return torch.cat(parts)[:size].movedim(0, axis)


def summed(part: Tensor) -> Tensor:
    """The sum over processes, in place."""
    from torch import distributed

    distributed.all_reduce(part)
    return part


def largest(part: Tensor) -> Tensor:
    """The maximum over processes, in place."""
    from torch import distributed

    distributed.all_reduce(part, op=distributed.ReduceOp.MAX)
    return part
