"""Whether a pass fits in memory, asked of all processes that share a model before any of them begins it."""

from __future__ import annotations

import torch

from iclgd.common import ranks
from iclgd.models.language_model import LanguageModel


class NoRoomError(torch.OutOfMemoryError):
    """Memory does not suffice for a pass in some process, and all know of it."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def width(model: LanguageModel) -> int:
    """How many numbers one token has in a block at once, at most: its states, and what each matrix makes of it."""
    matrices = [weight for weight in model.anatomy.blocks[0].parameters() if weight.ndim == 2]
    made = sum(max(weight.shape) // (ranks.count() if ranks.is_split(weight) else 1) for weight in matrices)
    return 4 * model.network.config.hidden_size + made


def rehearse(model: LanguageModel, rows: int, length: int, before: int) -> None:
    """Hold the memory of a pass for a moment, in every process; where one cannot, all raise.

    Within a pass the processes wait for each other, and one whose memory ran out could not tell the others. A single
    process has no need of this: it tries the pass itself. The pass has so many rows of a length, and tokens of a
    context before them.

    Raises:
        NoRoomError: in all processes.
    """
    if ranks.count() == 1:
        return
    scores = 3 * model.own_heads * length * (before + length)  # before and after softmax, and a mask
    logits = 3 * model.network.config.vocab_size
    size = rows * (length * width(model) + scores + logits) * max(4, model.dtype.itemsize)
    failed = False
    try:
        torch.empty(size, dtype=torch.uint8, device=model.device)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        failed = True
    if ranks.anyone(failed):
        raise NoRoomError(f"one of {ranks.count()} processes cannot allocate {size / 1e9:.2f} GB for a pass")
