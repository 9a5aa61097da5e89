"""A run's prompts as prompts.json keeps them, for readers and for other programs."""

from __future__ import annotations

from typing import Any

from iclgd.common.records import Item, PromptSet


def as_json(prompts: PromptSet, reference: PromptSet | None = None) -> dict[str, Any]:
    """The content of prompts.json: token ids and texts, from which every input of a run can be put together.

    The ICL input of query q is bos + Σ(demonstration + separator) + q, its zsl input bos + q, a finetuning sequence
    bos + demonstration. `in_context` (indices) stands there if not all demonstrations are in the context, `training`
    if finetuning sees other items, an item's `options` (token ids) if it brings its own, its `decoded` tokens where
    they are not its text, and
    `reference_demonstrations`, what plays ICL's part is shown or trained on, if that has prompts of its own.
    """
    content: dict[str, Any] = {
        "bos": list(prompts.bos),
        "separator": list(prompts.separator),
        "demonstrations": [_item(item) for item in prompts.demonstrations],
        "queries": [_item(item) for item in prompts.queries],
        "label_words": list(prompts.label_words),
        "label_token_ids": [list(ids) for ids in prompts.label_token_ids],
    }
    if prompts.in_context != tuple(range(len(prompts.demonstrations))):
        content["in_context"] = list(prompts.in_context)
    if prompts.training is not None:
        content["training"] = [_item(item) for item in prompts.training]
    if reference is not None:
        content["reference_demonstrations"] = [_item(item) for item in reference.training_items()]
    return content


def _item(item: Item) -> dict[str, Any]:
    content: dict[str, Any] = {"text": item.text, "token_ids": list(item.token_ids), "label": item.label}
    if item.decoded is not None:
        content["decoded"] = item.decoded
    if item.options is not None:
        content["options"] = [list(option) for option in item.options]
    return content
