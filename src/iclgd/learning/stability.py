"""Runs whose finetuning went out of control without diverging, and starts one rounding step apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd import ranks
from iclgd.learning.parameters import Trained
from iclgd.models.offload import resident
from iclgd.seeding import torch_stream

FAR_ABOVE = 1.5  # SmolLM2, SST-2, 32 shots, gd: 0.7 at rates of 0.003 and 0.01, 1.6 at 0.03, where scores are chaotic
FEWEST_STEPS = 4


def instability(losses: Float[Tensor, " step"]) -> str | None:
    """Why finetuning counts as unstable by its losses, in words; None if it does not.

    It does where the mean loss of the last quarter of the steps (two at least) is more than `FAR_ABOVE` times the mean
    of the first two. Below `FEWEST_STEPS` steps demonstrations differ by as much, and nothing is said.
    """
    if len(losses) < FEWEST_STEPS:
        return None
    start = losses[:2].double().mean().item()
    end = losses[-max(2, len(losses) // 4) :].double().mean().item()
    if not end > FAR_ABOVE * start:
        return None
    return f"the loss ends at {end:.3g}, {end / start:.1f} times where it starts ({start:.3g})"


@contextmanager
def jittered(trained: Sequence[Trained], repeat: int, seed: int) -> Iterator[None]:
    """Within the block, every trained number is one rounding step above or below what it was, at random.

    Args:
        trained: what finetuning will change.
        repeat: which repeat it is; each has signs of its own.
        seed: the run's.
    """
    signs = torch_stream(f"jitter {repeat}", seed)
    with resident(item.module for item in trained):
        before = [ranks.whole(item.parameter.detach()).clone() for item in trained]
        try:
            with torch.no_grad():
                for item, original in zip(trained, before, strict=True):
                    up = (torch.rand(original.shape, generator=signs) < 0.5).to(original.device)
                    far = torch.full_like(original, torch.inf)
                    ranks.put(item.parameter, torch.nextafter(original, torch.where(up, far, -far)))
            yield
        finally:
            with torch.no_grad():
                for item, original in zip(trained, before, strict=True):
                    ranks.put(item.parameter, original)
