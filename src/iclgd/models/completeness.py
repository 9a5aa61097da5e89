"""Whether a loaded model is whole, and whether prompts speak its vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from iclgd.common.printable import printable
from iclgd.common.records import PromptSet
from iclgd.config import ConfigError
from iclgd.models.acceptance import AcceptedModel
from iclgd.models.language_model import LanguageModel
from iclgd.models.source_files import listed


def refuse_incomplete(network: PreTrainedModel, info: Mapping[str, Any], name: str) -> None:
    """Refuse a model some of whose weights would be random, or were left over.

    `info` is what `from_pretrained(output_loading_info=True)` said of it.
    """
    mismatched = sorted(f"{key} (file {tuple(a)}, config {tuple(b)})" for key, a, b in info["mismatched_keys"])
    absent = [key for key, weight in network.named_parameters() if weight.is_meta]
    said = {
        "are missing": sorted(info["missing_keys"]),
        "belong to no part of the model": sorted(info["unexpected_keys"]),
        "have another shape": mismatched,
        "are not finite": [key for key, weight in network.named_parameters() if not _is_finite(weight)],
        "were not loaded": [] if hasattr(network, "hf_device_map") else absent,
    }
    wrong = [f"weights that {what}: {listed(keys)}" for what, keys in said.items() if keys]
    if wrong:
        raise ConfigError(
            f"model.name={name} does not fit its config, or is damaged: {'; '.join(wrong)}; get the model anew"
        )


def refuse_oversized(network: PreTrainedModel, accepted: AcceptedModel) -> None:
    """Refuse, before memory is taken, a config that speaks of far more weights than the files can hold.

    The network is on the meta device.
    """
    described = sum(weight.numel() for weight in network.parameters())
    bits = 8 * sum(path.stat().st_size for path in accepted.weights.values())
    if described > bits // (1 if accepted.gguf else 16):  # no float has fewer than 16 bits; GGUF packs tighter
        raise ConfigError(
            f"model.name={accepted.name}: its config speaks of {described:,} weights, but its files of {bits // 8:,} "
            "bytes cannot hold so many"
        )


def _is_finite(weight: torch.Tensor) -> bool:
    if weight.is_meta or not weight.numel():
        return True
    low, high = torch.aminmax(weight.detach())  # NaN is passed on by both, without a copy as large as the weights
    return math.isfinite(low.item()) and math.isfinite(high.item())


def refuse_unknown_tokens(prompts: PromptSet, model: LanguageModel) -> None:
    """Refuse prompts whose tokens the model has no embedding for."""
    size = cast(torch.Tensor, model.network.get_input_embeddings().weight).shape[0]
    for ids in _token_ids(prompts):
        for token in ids:
            if not 0 <= token < size:
                text = printable(str(model.tokenizer.decode([token])))
                raise ConfigError(
                    f"the tokenizer of model.name={model.identity.get('name')} makes token {token} of {text!r}, but "
                    f"the model knows tokens 0 to {size - 1}: the two do not belong together"
                )


def _token_ids(prompts: PromptSet) -> Iterator[tuple[int, ...]]:
    yield prompts.bos
    yield prompts.separator
    yield from prompts.label_token_ids
    for item in (*prompts.demonstrations, *prompts.queries, *(prompts.training or ())):
        yield item.token_ids
        yield from item.options or ()
