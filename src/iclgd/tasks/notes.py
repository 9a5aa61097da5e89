"""Notes on tokens that may mislead, refusals where nothing could be measured, and the prompts as prompts.json."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from iclgd.common.records import Item, PromptSet
from iclgd.config import Config, ConfigError
from iclgd.config.enumerations import Chat

Ids = tuple[int, ...]


def token_notes(prompts: PromptSet, config: Config, tokenizer: Any, decoded: Sequence[str]) -> Iterator[str]:
    """Notes on the tokens of a run.

    Args:
        prompts: all items, before any is dropped.
        config: the run.
        tokenizer: the model's.
        decoded: what the tokens of demonstrations and queries say.

    Raises:
        ConfigError: tokens that are mostly unknown, or that lose the spaces between words.
    """
    items = (*prompts.demonstrations, *prompts.queries)
    yield from _unknown(items, tokenizer)
    yield from _other_text([item.text for item in items], decoded)
    yield from _labels(prompts, config)
    if config.model.chat is Chat.none and config.model.bos == "auto" and prompts.bos:
        own = tuple(tokenizer("a")["input_ids"])
        token = tokenizer.bos_token
        if token is not None and own[:1] != (tokenizer.get_vocab()[token],):
            yield (
                f"model.bos=auto puts {token!r} before every prompt, which this model's tokenizer does not do by "
                "itself: model.bos=null leaves it out"
            )


def _unknown(items: Sequence[Item], tokenizer: Any) -> Iterator[str]:
    ids = [token for item in items for token in item.token_ids]
    unknown_id = getattr(tokenizer, "unk_token_id", None)
    unknown = 0 if unknown_id is None else ids.count(int(unknown_id))
    if 2 * unknown > len(ids):
        raise ConfigError(
            f"{unknown / len(ids):.0%} of all tokens are unknown to this model's tokenizer: choose a task in its "
            "words, or check that the tokenizer is the model's"
        )
    if unknown:
        yield f"{unknown} of {len(ids)} tokens are unknown to the tokenizer ({unknown / len(ids):.1%})"


def _other_text(texts: Sequence[str], decoded: Sequence[str]) -> Iterator[str]:
    """Texts that their tokens do not give back; white space at the ends does not count."""
    pairs = [(text.split(), back.split()) for text, back in zip(texts, decoded, strict=True)]
    lost = sum(len(before) - len(after) for before, after in pairs if "".join(before) == "".join(after))
    if 2 * lost > sum(len(before) for before, _ in pairs):
        raise ConfigError(
            f"this model's tokenizer loses the spaces between words: {texts[-1][:60]!r} becomes {decoded[-1][:60]!r}; "
            "check tokenizer.json, or the version of transformers"
        )
    if changed := sum(before != after for before, after in pairs):
        yield f"the tokens of {changed} of {len(texts)} texts give another text back; prompts.json has both"


def _labels(prompts: PromptSet, config: Config) -> Iterator[str]:
    """Label options that are alike: by first token, by beginning, or unlike by length."""
    own = [query.options for query in prompts.queries if query.options is not None]
    sets = own or [prompts.label_token_ids]
    normalised = config.task.length_normalised
    scored = f"the {'mean' if normalised else 'sum'} of their tokens (task.length_normalised={str(normalised).lower()})"
    counts = {
        "share their first token": sum(len({option[0] for option in options}) < len(options) for options in sets),
        "begin with one another": sum(map(_one_begins_another, sets)),
        f"differ in their number of tokens; they are scored by {scored}": sum(
            len({len(option) for option in options}) > 1 for options in sets
        ),
    }
    for what, count in counts.items():
        if count:
            yield f"label options {what}" + (f": {count} of {len(own)} queries" if own else "")


def _one_begins_another(options: Sequence[Ids]) -> bool:
    return any(a[: len(b)] == b for a, b in itertools.permutations(options, 2))


def as_json(prompts: PromptSet, reference: PromptSet | None = None) -> dict[str, Any]:
    """The content of prompts.json: token ids and texts, from which every input of a run can be put together.

    The ICL input of query q is bos + Σ(demonstration + separator) + q, its zsl input bos + q, a finetuning sequence
    bos + demonstration. `in_context` (indices) stands there if not all demonstrations are in the context, `training`
    if finetuning sees other items, an item's `options` (token ids) if it brings its own, its `decoded` tokens where
    they are not its text, and `reference_demonstrations`, what plays ICL's part is shown or trained on, if that has
    prompts of its own.
    """
    content: dict[str, Any] = {
        "bos": list(prompts.bos),
        "separator": list(prompts.separator),
        "demonstrations": _items(prompts.demonstrations),
        "queries": _items(prompts.queries),
        "label_words": list(prompts.label_words),
        "label_token_ids": [list(ids) for ids in prompts.label_token_ids],
    }
    if prompts.in_context != tuple(range(len(prompts.demonstrations))):
        content["in_context"] = list(prompts.in_context)
    if prompts.training is not None:
        content["training"] = _items(prompts.training)
    if reference is not None:
        content["reference_demonstrations"] = _items(reference.training_items())
    return content


def _items(items: Sequence[Item]) -> list[dict[str, Any]]:
    contents = []
    for item in items:
        content: dict[str, Any] = {"text": item.text, "token_ids": list(item.token_ids), "label": item.label}
        if item.decoded is not None:
            content["decoded"] = item.decoded
        if item.options is not None:
            content["options"] = [list(option) for option in item.options]
        contents.append(content)
    return contents
