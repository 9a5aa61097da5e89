"""Which token ids does a run show to the model, and do they fit its window?"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from iclgd.choices import DropFrom, OnOverflow, RecordAt
from iclgd.config import Config, ConfigError
from iclgd.records import Item, PromptSet
from iclgd.tasks.draw import Drawn
from iclgd.tasks.sources import DataError
from iclgd.tasks.wording import Example

log = logging.getLogger(__name__)

Ids = tuple[int, ...]


@runtime_checkable
class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    def __call__(self, text: Any, **options: Any) -> Mapping[str, Any]:
        """Tokens of a text, or of each of several."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Ids by token."""
        ...


def encode(drawn: Drawn, config: Config, tokenizer: Tokenizer, window: int | None) -> PromptSet:
    """Tokenise what was drawn, and fit it into the window.

    Each text is tokenised alone and without special tokens (a special token's name inside data stays text); the tokens
    of a label are those the tokenizer adds for a space and the word after the end of the template, so that they are
    the same wherever the label stands. What does not fit is refused or dropped, as `task.on_overflow` says: dropping
    keeps the first demonstrations, as many as leave room for the longest query, as the published code does.

    Args:
        drawn: from `draw`.
        config: its model's bos and separator, and what to do when the window is too short.
        tokenizer: the model's.
        window: how many tokens the model can see, or None where it has no limit.

    Raises:
        ConfigError: a bos or separator that the tokenizer does not know, labels it cannot tell apart, or a context
            that does not fit; the message names the key and the remedy.
        DataError: an example that is longer than the window by itself, or has no tokens.
    """
    words = {word for example in (*drawn.demonstrations, *drawn.queries) for word in example.options}
    answers = _answers(sorted(words | set(drawn.label_words)), drawn.tail, tokenizer)
    _refuse_equal_labels(drawn.label_words, answers)
    own = not drawn.label_words
    training = None
    if drawn.training is not None:
        theirs = sorted({word for example in drawn.training for word in example.options})
        others = _answers(theirs, drawn.training_tail, tokenizer)
        foreign = own or drawn.training[0].options != drawn.label_words
        training = _demonstrations(drawn.training, others, tokenizer, foreign)
    demonstrations = _demonstrations(drawn.demonstrations, answers, tokenizer, own)
    prompts = PromptSet(
        bos=_bos(config.model.bos, tokenizer),
        separator=_separator(config.model.separator, tokenizer),
        demonstrations=demonstrations,
        queries=_items(drawn.queries, answers, tokenizer, own),
        label_words=drawn.label_words,
        label_token_ids=tuple(answers[word] for word in drawn.label_words),
        in_context=tuple(range(len(demonstrations))),
        training=training,
    )
    return prompts if window is None else _fitted(prompts, drawn, config, window)


def _tokens(texts: Sequence[str], tokenizer: Tokenizer, special: bool = False) -> list[Ids]:
    if not texts:
        return []
    try:
        found = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=not special, verbose=False)
        return [tuple(map(int, ids)) for ids in found["input_ids"]]
    except Exception as error:  # a stranger's tokenizer may be wrong in any way
        raise ConfigError(f"this model's tokenizer cannot encode {texts[0][:60]!r}: {error}") from error


def _continuations(texts: Sequence[str], probe: str, tokenizer: Tokenizer, special: bool = False) -> list[Ids]:
    """What the tokenizer adds for each text after the probe; the text's own tokens where they would merge with it."""
    before = _tokens([probe], tokenizer)[0]
    longer = _tokens([probe + text for text in texts], tokenizer, special)
    alone = _tokens(texts, tokenizer, special)
    return [
        both[len(before) :] if both[: len(before)] == before else own for both, own in zip(longer, alone, strict=True)
    ]


def _answers(words: Sequence[str], tail: str, tokenizer: Tokenizer) -> dict[str, Ids]:
    probe = tail if tail.strip() else "a"
    answers = dict(zip(words, _continuations([f" {word}" for word in words], probe, tokenizer), strict=True))
    for word, ids in answers.items():
        if not ids:
            raise ConfigError(f"the label word {word!r} has no tokens in this model's tokenizer: choose another word")
    return answers


def _refuse_equal_labels(words: tuple[str, ...], answers: Mapping[str, Ids]) -> None:
    seen: dict[Ids, str] = {}
    for word in words:
        other = seen.setdefault(answers[word], word)
        if other != word:
            raise ConfigError(
                f"the label words {other!r} and {word!r} have the same tokens {list(answers[word])} in this model's "
                "tokenizer: change one of them in task.labels"
            )


def _bos(token: str | None, tokenizer: Tokenizer) -> Ids:
    if token is None:
        return ()
    known = tokenizer.get_vocab()
    if token not in known:
        raise ConfigError(f"model.bos={token!r} is no token of this model's vocabulary: name one, or model.bos=null")
    return (known[token],)


def _separator(separator: str, tokenizer: Tokenizer) -> Ids:
    if not separator:
        return ()
    known = tokenizer.get_vocab()
    ids = (known[separator],) if separator in known else _continuations([separator], "a", tokenizer, special=True)[0]
    if not ids:
        raise ConfigError(
            f"model.separator={separator!r} has no tokens in this model's tokenizer: name a token such as </s>, "
            "or model.separator='' for none"
        )
    return ids


def _items(
    examples: Sequence[Example], answers: Mapping[str, Ids], tokenizer: Tokenizer, own: bool
) -> tuple[Item, ...]:
    items = []
    for example, ids in zip(examples, _tokens([each.text for each in examples], tokenizer), strict=True):
        if not ids:
            raise DataError(f"{example.where}: the filled template {example.text!r} has no tokens in this tokenizer")
        options = tuple(answers[word] for word in example.options) if own else None
        items.append(Item(example.text, ids, example.label, options=options))
    return tuple(items)


def _demonstrations(
    examples: Sequence[Example], answers: Mapping[str, Ids], tokenizer: Tokenizer, own: bool
) -> tuple[Item, ...]:
    return tuple(
        replace(
            item,
            text=f"{item.text} {example.answer}",
            token_ids=item.token_ids + answers[example.answer],
            label_length=len(answers[example.answer]),
        )
        for item, example in zip(_items(examples, answers, tokenizer, own), examples, strict=True)
    )


def _fitted(prompts: PromptSet, drawn: Drawn, config: Config, window: int) -> PromptSet:
    appended = int(config.protocol.record_at is RecordAt.first_label_token)
    room = len(prompts.bos)
    for item, example in zip(prompts.queries, drawn.queries, strict=True):
        tail = max(appended, *(len(option) - 1 for option in prompts.options(item)))
        room = max(room, _refuse_longer(len(prompts.bos) + len(item.token_ids) + tail, window, example))
    needed = len(prompts.context()) - len(prompts.bos) + room
    if needed > window:
        prompts = _dropped(prompts, config, needed, window, room)
    trained = (prompts.demonstrations, drawn.demonstrations), (prompts.training or (), drawn.training or ())
    for items, examples in trained:
        for item, example in zip(items, examples, strict=False):  # those kept are the first
            _refuse_longer(len(prompts.bos) + len(item.token_ids), window, example)
    return prompts


def _refuse_longer(length: int, window: int, example: Example) -> int:
    if length > window:
        raise DataError(
            f"{example.where}: this example alone needs {length:,} tokens but the model has {window:,} positions; "
            "shorten or remove the row, or take a model with a longer window"
        )
    return length


def _dropped(prompts: PromptSet, config: Config, needed: int, window: int, room: int) -> PromptSet:
    shots = len(prompts.demonstrations)
    if config.task.on_overflow is OnOverflow.error:
        raise ConfigError(
            f"task.shots={shots} needs {needed:,} tokens but the model has {window:,} positions; "
            "lower task.shots or set task.on_overflow=drop"
        )
    kept, used = 0, room
    for item in prompts.demonstrations:
        used += len(item.token_ids) + len(prompts.separator)
        if used > window:
            break
        kept += 1
    if kept == 0:
        raise ConfigError(
            f"not even one demonstration fits beside the longest query: {window:,} positions, of which queries take "
            f"{room:,}; take a model with a longer window or shorter rows"
        )
    both = config.protocol.drop_from is DropFrom.both
    log.warning(
        "%d of %d demonstrations fit into the model's %s positions (all need %s); the rest are dropped from %s",
        *(kept, shots, f"{window:,}", f"{needed:,}", "ICL and finetuning alike" if both else "ICL only"),
    )
    if not both:
        return replace(prompts, in_context=tuple(range(kept)))
    return replace(
        prompts,
        demonstrations=prompts.demonstrations[:kept],
        in_context=tuple(range(kept)),
        training=None if prompts.training is None else prompts.training[:kept],
    )
