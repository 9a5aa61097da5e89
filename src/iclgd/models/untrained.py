"""The papers' two untrained baselines, seeded."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from iclgd.common.seeding import torch_stream
from iclgd.models.discovery import discover
from iclgd.models.layer_discovery import Description


def untrained(
    config: PretrainedConfig,
    dtype: torch.dtype,
    seed: int,
    keep: PreTrainedModel | None = None,
    description: Description | None = None,
) -> PreTrainedModel:
    """A freshly initialised model ("No Training"), or one that keeps its embeddings ("Trained Embeddings").

    Deutch et al. (2024), sec. 3.2. With `keep`, the input, position and output embeddings and every layer norm are
    copied from it and all else is fresh. Where input and output embeddings are tied, they stay so.

    Args:
        config: the architecture; its own initialisation is used.
        dtype: of the weights; they are drawn in float32, so that every dtype sees the same numbers.
        seed: of these numbers.
        keep: the pretrained model.
        description: `model.anatomy`, of both models.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_stream("untrained weights", seed).initial_seed())
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
        if dtype is not torch.float32:
            fresh = _in_dtype(fresh, dtype)
    fresh.eval().config._name_or_path = config._name_or_path
    if keep is not None:
        (old, _), (new, _) = discover(keep, description), discover(fresh, description)
        pairs = zip((*old.embeddings(), *old.norms()), (*new.embeddings(), *new.norms()), strict=True)
        with torch.no_grad():
            for source, target in pairs:
                for mine, its in zip(target.parameters(), source.parameters(), strict=True):
                    mine.copy_(its)
    return fresh


def _in_dtype(network: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same weights in another dtype; buffers as the architecture makes them (rotary frequencies stay float32)."""
    other = AutoModelForCausalLM.from_config(network.config, dtype=dtype, attn_implementation="eager")
    with torch.no_grad():
        for mine, its in zip(other.parameters(), network.parameters(), strict=True):
            mine.copy_(its)
    return other
