"""Refusals of models that are damaged, incomplete or not for these prompts, by errors that name a remedy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from iclgd.common.printable import printable
from iclgd.common.records import PromptSet
from iclgd.config import ConfigError
from iclgd.models.anatomy import LanguageModel

ELSEWHERE = (
    "without access to the hub, name a local folder: model=hf model.name=FOLDER (config, tokenizer and *.safetensors; "
    "pickled weights and a repository's own code are not read)"
)


@contextmanager
def refusing(what: str, remedy: str) -> Iterator[None]:
    """Within the block, whatever a library raises on a model's file is a ConfigError that names it.

    Libraries raise anything at all on damaged files, the Rust ones even exceptions that are not an `Exception`.
    """
    try:
        yield
    except (ConfigError, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = printable(f"{error or type(error).__name__}", 400)
        raise ConfigError(f"{what}: {reason} -- {remedy}") from error


def refuse_incomplete(network: PreTrainedModel, info: Mapping[str, Any], name: str) -> None:
    """Refuse a model some of whose weights would be random, or were left over.

    `info` is what `from_pretrained(output_loading_info=True)` said of it.
    """
    mismatched = sorted(f"{key} (file {tuple(a)}, config {tuple(b)})" for key, a, b in info["mismatched_keys"])
    said = {
        "are missing": sorted(info["missing_keys"]),
        "belong to no part of the model": sorted(info["unexpected_keys"]),
        "have another shape": mismatched,
        "are not finite": [key for key, weight in network.named_parameters() if not _is_finite(weight)],
    }
    wrong = [f"weights that {what}: {_some_of(keys)}" for what, keys in said.items() if keys]
    if wrong:
        raise ConfigError(
            f"model.name={name} does not fit its config, or is damaged: {'; '.join(wrong)}; get the model anew"
        )


def _some_of(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(printable(name) for name in names[:5]) + more


def _is_finite(weight: torch.Tensor) -> bool:
    if weight.is_meta or not weight.numel():
        return True
    low, high = torch.aminmax(weight.detach())  # NaN is passed on by both, without a copy as large as the weights
    return math.isfinite(low.item()) and math.isfinite(high.item())


def refuse_unknown_tokens(prompts: PromptSet, model: LanguageModel) -> None:
    """Refuse prompts whose tokens the model has no embedding for."""
    size = cast(torch.Tensor, model.network.get_input_embeddings().weight).shape[0]
    items = (*prompts.demonstrations, *prompts.queries, *(prompts.training or ()))
    sequences = [prompts.bos, prompts.separator, *prompts.label_token_ids, *(item.token_ids for item in items)]
    sequences += [option for item in items for option in item.options or ()]
    for token in {token for sequence in sequences for token in sequence}:
        if not 0 <= token < size:
            text = printable(str(model.tokenizer.decode([token])))
            raise ConfigError(
                f"the tokenizer of model.name={model.identity.get('name')} makes token {token} of {text!r}, but the "
                f"model knows tokens 0 to {size - 1}: the two do not belong together"
            )
