"""One batch through the blocks, after a shared prefix, whatever the family."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from iclgd.models.anatomy import LanguageModel, UnsupportedModelError
from iclgd.models.attention_pass import AttentionPass, KeyValues, Prefix, attention_pass
from iclgd.models.interception import intercepted


def forward(
    model: LanguageModel, token_ids: Int[Tensor, "example token"], state: AttentionPass
) -> Float[Tensor, "example token d_model"]:
    """Hidden states of the own tokens after the final norm; attention leaves its record in `state`.

    Raises:
        UnsupportedModelError: attention was not seen exactly once a layer, so that a record would be wrong.
    """
    state.layer_of, again = model.anatomy.layer_of, state.read_again
    before = torch.tensor(again, dtype=torch.long).expand(len(token_ids), -1)
    token_ids = torch.cat([before.to(token_ids.device), token_ids], dim=1).to(model.device)
    arguments = _arguments(model, token_ids, state)
    _refuse_two_sides(model, state)
    is_seen = model.anatomy.interface
    with attention_pass(state), nullcontext() if is_seen else intercepted(model.anatomy, state, len(token_ids)):
        output = model.anatomy.body(input_ids=token_ids, **arguments)
    expected = sorted(model.anatomy.layer_of.values())
    if sorted(state.calls) != expected:
        raise UnsupportedModelError(
            f"{type(model.network).__name__}: attention was seen in layers {sorted(state.calls)} in one pass, expected "
            f"each of {expected} once; this model cannot be recorded"
        )
    if state.keep_keys and not is_seen:
        cache = output.past_key_values
        state.keys_and_values = {i: (layer.keys, layer.values) for i, layer in enumerate(cache.layers)}
    return output.last_hidden_state[:, len(again) :]


def _refuse_two_sides(model: LanguageModel, state: AttentionPass) -> None:
    """Refuse a prefix whose keys were turned by other angles than this pass turns its queries.

    transformers chooses longrope's and dynamic NTK's angles by the length of each pass, so that a prefix within the
    original window and a batch that reaches beyond it do not fit together (Phi-3: outputs off by 29 to 43 %).
    """
    config = model.network.config
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type")) not in ("longrope", "dynamic"):
        return
    window = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    window = int(window or config.max_position_embeddings)
    before, reach = state.prefix_length, state.prefix_length + int(state.lengths.max())
    if 0 < before <= window < reach:
        raise UnsupportedModelError(
            f"{type(model.network).__name__} turns positions by other angles beyond its original window of {window} "
            f"tokens: a context of {before} tokens and a prompt that ends at {reach} stand on two sides of it; lower "
            "task.shots so that all prompts end within it"
        )


def padded(sequences: Sequence[tuple[int, ...]]) -> Int[Tensor, "example token"]:
    """Sequences as one batch, filled up to the longest with their own last token."""
    width = max(map(len, sequences))
    return torch.tensor([tokens + (tokens[-1],) * (width - len(tokens)) for tokens in sequences])


@torch.inference_mode()
def encode_prefix(model: LanguageModel, token_ids: tuple[int, ...]) -> Prefix | None:
    """Keys and values of the tokens that all sequences share, by layer; None if there are none.

    The tokens themselves, to be read again before each sequence, where layers keep more than keys and values.
    """
    if not token_ids:
        return None
    if not model.shares_prefix:
        return token_ids
    state = AttentionPass(lengths=torch.tensor([len(token_ids)]), keep_keys=True)
    forward(model, torch.tensor([token_ids]), state)
    return [state.keys_and_values[layer] for layer in range(model.layers)]


def _arguments(model: LanguageModel, token_ids: Tensor, state: AttentionPass) -> dict[str, Any]:
    batch, width = token_ids.shape
    lengths = state.lengths.to(token_ids.device)[:, None] + len(state.read_again)
    column = torch.arange(width, device=token_ids.device).expand(batch, width)
    first = state.prefix_length if state.first_position is None else state.first_position
    arguments: dict[str, Any] = {
        "position_ids": first + column.minimum(lengths - 1),  # padding's stay inside the window
        "use_cache": False,
    }
    if model.anatomy.interface:  # all tokens count, or transformers takes positions of padding for packed sequences
        arguments["attention_mask"] = torch.ones_like(token_ids)
    else:
        seen = torch.ones(batch, state.prefix_length, dtype=torch.bool, device=token_ids.device)
        arguments["attention_mask"] = torch.cat([seen, column < lengths], dim=1).long()
        if state.keep_keys or state.shared:
            arguments |= {"past_key_values": _cache(state.shared, batch), "use_cache": True}
    names = inspect.signature(model.anatomy.body.forward).parameters
    if not model.anatomy.layer_of:  # a model without attention has no mask, and counts no positions
        return {name: value for name, value in arguments.items() if name in names}
    if "position_ids" not in names and not model.anatomy.interface:
        del arguments["position_ids"]
    return arguments


def _cache(prefix: list[KeyValues] | None, batch: int) -> DynamicCache:
    """A fresh cache, since a forward pass changes it in place."""
    cache = DynamicCache()
    for layer, (key, value) in enumerate(prefix or []):
        cache.update(key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1), layer)
    return cache
