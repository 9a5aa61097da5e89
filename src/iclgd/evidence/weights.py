"""Changes of feed-forward weights: finetuning's, the static patch's, and random ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.common.seeding import torch_stream
from iclgd.config.variants import STATIC, variant
from iclgd.evidence.laboratory import Laboratory
from iclgd.mechanisms.patches import static_changes
from iclgd.models.feed_forward import weight_of

Changes = tuple[tuple[Float[Tensor, "_ _"], ...], ...]  # [d_out, d_in] by layer, then by matrix


def weights_now(lab: Laboratory) -> Changes | None:
    """Copies of the feed-forward matrices, if finetuning's changes of them are wanted."""
    return _matrices(lab, torch.clone) if "trained_changes" in lab.wanted else None


def changes_since(lab: Laboratory, before: Changes | None) -> Changes | None:
    """How far the matrices have moved since."""
    if before is None:
        return None
    old = iter([matrix for layer in before for matrix in layer])
    return _matrices(lab, lambda weight: (weight - next(old)).float().cpu())


def context_changes(lab: Laboratory) -> Changes:
    """What the context amounts to in weights: the static patch's changes (conf/finetune/static_patch.yaml).

    Layers that a run's own static patch leaves out (`finetune.layers`) have no change.
    """
    own = lab.config.finetune.mechanism == STATIC
    config = lab.config if own else variant(lab.config, STATIC)
    by_name = static_changes(lab.model, lab.prompts, config)
    known = iter([(layer, name) for layer in range(lab.model.layers) for name in _names(lab)])
    return _matrices(lab, lambda weight: by_name.get(next(known), torch.zeros_like(weight)).float().cpu())


def random_changes(lab: Laboratory) -> Changes:
    """Gaussian matrices of the same shapes: the floor."""
    stream = torch_stream("random changes of weights", lab.config.seed)
    return _matrices(lab, lambda weight: torch.randn(weight.shape, generator=stream))


def undefined_changes(lab: Laboratory) -> Changes:
    """Matrices of the same shapes without a direction."""
    return _matrices(lab, lambda weight: torch.zeros(weight.shape))


def _names(lab: Laboratory) -> tuple[str, ...]:
    parts = lab.model.anatomy.feed_forward
    return (*parts.reads, *([parts.adds] if parts.adds else []))


def _matrices(lab: Laboratory, take: Callable[[Tensor], Tensor]) -> Changes:
    part, names = lab.model.anatomy.part, _names(lab)
    layers = range(lab.model.layers)
    return tuple(tuple(take(weight_of(part(layer, name)).detach()) for name in names) for layer in layers)
