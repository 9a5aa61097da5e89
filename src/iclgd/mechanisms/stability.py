"""Runs whose finetuning went out of control without diverging, and starts one rounding step apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import mean

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.common.seeding import torch_stream
from iclgd.mechanisms.parameters import Trained
from iclgd.models.placement import resident

FAR_ABOVE = 1.5  # SmolLM2, SST-2, 32 shots, gd: 0.7 at rates of 0.003 and 0.01, 1.6 at 0.03, where scores are chaotic
FEWEST_STEPS = 4


def last_steps(count: int) -> int:
    """How many of so many steps count as the end: a quarter, two at least."""
    return max(2, count // 4)


def suspicious(losses: Sequence[float]) -> bool:
    """Whether finetuning may have gone out of control: the loss ends far above that of its first or second step.

    Demonstrations differ, so this is no more than a reason to ask what the untouched model loses at those of the end.
    """
    return len(losses) >= FEWEST_STEPS and mean(losses[-last_steps(len(losses)) :]) > FAR_ABOVE * min(losses[:2])


def instability(losses: Float[Tensor, " step"], untouched: float) -> str | None:
    """Why finetuning counts as unstable by its losses, in words; None if it does not.

    It does where the mean loss of the last quarter of the steps (two at least) is more than `FAR_ABOVE` times what the
    model lost on the same demonstrations before it was finetuned (`untouched`; NaN where the losses were not
    `suspicious`). Nothing is said of fewer than `FEWEST_STEPS` steps.
    """
    if not suspicious(losses.tolist()):
        return None
    end = losses[-last_steps(len(losses)) :].double().mean().item()
    if not end > FAR_ABOVE * untouched:
        return None
    return f"the loss ends at {end:.3g}, {end / untouched:.1f} times that of the untouched model ({untouched:.3g})"


@contextmanager
def jittered(trained: Sequence[Trained], repeat: int, seed: int) -> Iterator[None]:
    """Within the block, every trained number is one rounding step above or below what it was, at random.

    Each repeat has signs of its own.
    """
    signs = torch_stream(f"jitter {repeat}", seed)
    with resident(item.module for item in trained):
        before = [item.parameter.detach().clone() for item in trained]
        try:
            with torch.no_grad():
                for item, original in zip(trained, before, strict=True):
                    up = (torch.rand(original.shape, generator=signs) < 0.5).to(original.device)
                    far = torch.full_like(original, torch.inf)
                    item.parameter.copy_(torch.nextafter(original, torch.where(up, far, -far)))
            yield
        finally:
            with torch.no_grad():
                for item, original in zip(trained, before, strict=True):
                    item.parameter.copy_(original)
