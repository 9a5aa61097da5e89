"""The token ids that a run shows to the model, fitted into its window."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from iclgd.common.records import Item, PromptSet
from iclgd.config import Config, ConfigError
from iclgd.config.enumerations import Chat, DropFrom, OnOverflow, RecordAt
from iclgd.tasks.chat import conversation
from iclgd.tasks.draw import Drawn
from iclgd.tasks.examples import DataError, Example
from iclgd.tasks.notes import token_notes
from iclgd.tasks.wording import with_distinct_options

log = logging.getLogger(__name__)

Ids = tuple[int, ...]
Tokens = Callable[[Sequence[str]], list[Ids]]  # a tokenizer as a run uses it
Continuation = tuple[str, str]  # a probe that stands before an option, and delimiter + option


def encode(drawn: Drawn, config: Config, tokenizer: Any, window: int | None) -> PromptSet:
    """Tokenise what was drawn, and fit it into the window.

    Each text is tokenised alone and without special tokens (a special token's name inside data stays text); the tokens
    of a label are those the tokenizer adds for the delimiter and the word after the end of the template, so that they
    are the same wherever the label stands.

    Args:
        drawn: the demonstrations and queries.
        config: the run.
        tokenizer: of Hugging Face.
        window: the model's number of positions, if it has a limit. `window.fitted` says what becomes of longer prompts.

    Raises:
        ConfigError: a bos or separator that the tokenizer does not know, labels it cannot tell apart, or a context
            that does not fit; the message names the key and the remedy.
        DataError: an example that is longer than the window by itself, or has no tokens.
    """
    if config.model.chat is Chat.template:
        chat = conversation(tokenizer, drawn.description, config.model.chat_arguments)
        bos, separator = chat.before_a_turn(chat.opening), chat.before_a_turn(chat.closing)
        prompts = _encoded(chat.as_turns(drawn), partial(_tokens, tokenizer=tokenizer, special=True), bos, separator)
        chat.check(prompts, drawn)
        prompts = replace(prompts, notes=(*prompts.notes, *chat.notes()))
    else:
        bos, separator = _around(drawn, config, tokenizer)
        prompts = _encoded(drawn, partial(_tokens, tokenizer=tokenizer, special=False), bos, separator)
    prompts = _noted(prompts, drawn, config, tokenizer)
    return prompts if window is None else fitted(prompts, config, window)


def _noted(prompts: PromptSet, drawn: Drawn, config: Config, tokenizer: Any) -> PromptSet:
    """The prompts with notes, and with what the tokens of each item say where that is not its text."""
    items = (*prompts.demonstrations, *prompts.queries)
    decoded = [tokenizer.decode(list(item.token_ids), clean_up_tokenization_spaces=False) for item in items]
    notes = (*drawn.notes, *prompts.notes, *token_notes(prompts, config, tokenizer, decoded))
    shown = [
        item if text.strip() == item.text.strip() else replace(item, decoded=text)
        for item, text in zip(items, decoded, strict=True)
    ]
    shots = len(prompts.demonstrations)
    return replace(prompts, demonstrations=tuple(shown[:shots]), queries=tuple(shown[shots:]), notes=notes)


def _encoded(drawn: Drawn, tokens: Tokens, bos: Ids, separator: Ids) -> PromptSet:
    shown = (*drawn.demonstrations, *drawn.queries)
    answers, merged = _answers((*shown, *(drawn.training or ()), *drawn.calibration), tokens)
    joined = sum(_continuations(example)[example.label] in merged for example in shown)
    note = f"{joined} of {len(shown)} answers would merge with the text before them; their own tokens are used"
    labels = _label_token_ids(drawn, answers)
    items = partial(_items, labels=labels, answers=answers, tokens=tokens)
    return PromptSet(
        bos=bos,
        separator=separator,
        demonstrations=items(drawn.demonstrations, answered=True),
        queries=items(drawn.queries),
        label_words=drawn.label_words,
        label_token_ids=labels,
        in_context=tuple(range(len(drawn.demonstrations))),
        training=None if drawn.training is None else items(drawn.training, answered=True),
        calibration=items(drawn.calibration),
        notes=(note,) if joined else (),
    )


def _tokens(texts: Sequence[str], tokenizer: Any, special: bool) -> list[Ids]:
    if not texts:
        return []
    try:
        encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=not special, verbose=False)
        return [tuple(map(int, ids)) for ids in encoded["input_ids"]]
    except Exception as error:  # a model's own tokenizer may raise anything
        raise ConfigError(f"this model's tokenizer cannot encode {texts[0][:60]!r}: {error}") from error


def _answers(examples: Sequence[Example], tokens: Tokens) -> tuple[dict[Continuation, Ids], set[Continuation]]:
    """What the tokenizer adds for each option after its probe, and where the two would merge.

    There it is the option's own tokens.
    """
    pairs = list(dict.fromkeys(pair for example in examples for pair in _continuations(example)))
    before = tokens([probe for probe, _ in pairs])
    longer = tokens([probe + option for probe, option in pairs])
    alone = tokens([option for _, option in pairs])
    answers, merged = {}, set()
    for pair, start, both, own in zip(pairs, before, longer, alone, strict=True):
        answers[pair] = both[len(start) :]
        if both[: len(start)] != start:
            answers[pair] = own
            merged.add(pair)
        if not answers[pair]:
            word = pair[1].strip()
            raise ConfigError(f"the label word {word!r} has no tokens in this model's tokenizer: choose another word")
    return answers, merged


def _continuations(example: Example) -> list[Continuation]:
    probe = example.tail if example.tail.strip() else "a"
    return [(probe, example.delimiter + option) for option in example.options]


def _label_token_ids(drawn: Drawn, answers: Mapping[Continuation, Ids]) -> tuple[Ids, ...]:
    if not drawn.label_words:
        return ()
    labels = tuple(answers[pair] for pair in _continuations(drawn.demonstrations[0]))
    words: dict[Ids, str] = {}
    for word, ids in zip(drawn.label_words, labels, strict=True):
        if ids in words:
            raise ConfigError(
                f"the label words {words[ids]!r} and {word!r} have the same tokens {list(ids)} in this model's "
                "tokenizer: change one of them in task.labels, or choose a task whose words it knows (model=toy knows "
                "those of task=toy)"
            )
        words[ids] = word
    return labels


def _around(drawn: Drawn, config: Config, tokenizer: Any) -> tuple[Ids, Ids]:
    """What stands before the first demonstration, and between two."""
    described = _between(drawn.description, tokenizer) if drawn.description else ()
    bos = _bos(config.model.bos, tokenizer) + described
    if drawn.separator is None:
        return bos, _separator("model.separator", config.model.separator, tokenizer)
    return bos, _separator("task.separator", drawn.separator, tokenizer)


def _bos(token: str | None, tokenizer: Any) -> Ids:
    if token == "auto":
        token = getattr(tokenizer, "bos_token", None)
    if token is None:
        return ()
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        raise ConfigError(f"model.bos={token!r} is not a token of this model: name one, or model.bos=null")
    return (vocabulary[token],)


def _separator(key: str, separator: str, tokenizer: Any) -> Ids:
    if not separator:
        return ()
    vocabulary = tokenizer.get_vocab()
    ids = (vocabulary[separator],) if separator in vocabulary else _between(separator, tokenizer)
    if not ids:
        raise ConfigError(
            f"{key}={separator!r} has no tokens in this model's tokenizer: name a token such as </s>, or {key}='' for "
            "none"
        )
    return ids


def _between(text: str, tokenizer: Any) -> Ids:
    r"""The tokens of a text that has letters before and after it.

    Many tokenizers split "\n\n" before a letter, but keep it whole at the end of a text.
    """
    before, around, after = _tokens(["a", f"a{text}A", "A"], tokenizer, special=True)
    if around[: len(before)] == before and around[len(around) - len(after) :] == after:
        return around[len(before) : len(around) - len(after)]
    follows = _tokens([f"a{text}"], tokenizer, special=True)[0]
    alone = _tokens([text], tokenizer, special=True)[0]
    return follows[len(before) :] if follows[: len(before)] == before else alone


def _items(
    examples: Sequence[Example],
    labels: tuple[Ids, ...],
    answers: Mapping[Continuation, Ids],
    tokens: Tokens,
    answered: bool = False,
) -> tuple[Item, ...]:
    """Queries, or demonstrations, which have their answers at the end."""
    items = []
    for example, ids in zip(examples, tokens([each.text for each in examples]), strict=True):
        if not ids:
            raise DataError(f"{example.where}: the filled template {example.text!r} has no tokens in this tokenizer")
        if example.choices is not None:
            firsts = [answers[pair][0] for pair in _continuations(example)]
            example = with_distinct_options(example, firsts)
        continuations = tuple(answers[pair] for pair in _continuations(example))
        options = None if continuations == labels else continuations
        item = Item(example.text, ids, example.label, options=options, where=example.where)
        if answered:
            answer = continuations[example.label]
            text = f"{example.text}{example.delimiter}{example.answer}"
            item = replace(item, text=text, token_ids=ids + answer, label_length=len(answer))
        items.append(item)
    return tuple(items)


def fitted(prompts: PromptSet, config: Config, window: int) -> PromptSet:
    """The prompts if they fit, or those that do, as `task.on_overflow` says.

    Dropping keeps the first demonstrations, as many as leave room for the longest query, as the published code does.

    Raises:
        ConfigError: a context that does not fit.
        DataError: an example that is longer than the window by itself.
    """
    bos = len(prompts.bos)
    appended = int(config.protocol.record_at is RecordAt.first_label_token)
    room = bos
    for item in (*prompts.queries, *prompts.calibration):
        tail = max(appended, *(len(option) - 1 for option in prompts.options(item)))
        _refuse_longer(item, bos + len(item.token_ids) + tail, window)
        room = max(room, bos + len(item.token_ids) + tail)
    needed = len(prompts.context()) - bos + room
    if needed > window:
        prompts = _dropped(prompts, config, needed, window, room)
    for item in (*prompts.demonstrations, *(prompts.training or ())):
        _refuse_longer(item, bos + len(item.token_ids), window)
    return prompts


def _refuse_longer(item: Item, length: int, window: int) -> None:
    if length > window:
        raise DataError(
            f"{item.where}: this example alone needs {length:,} tokens but the model has {window:,} positions; "
            "shorten or remove the row, or take a model with a longer window"
        )


def _dropped(prompts: PromptSet, config: Config, needed: int, window: int, room: int) -> PromptSet:
    shots = len(prompts.demonstrations)
    if config.task.on_overflow is OnOverflow.error:
        raise ConfigError(
            f"task.shots={shots} needs {needed:,} tokens but the model has {window:,} positions; "
            "lower task.shots or set task.on_overflow=drop"
        )
    lengths = [len(item.token_ids) + len(prompts.separator) for item in prompts.demonstrations]
    count = sum(used <= window - room for used in itertools.accumulate(lengths))
    if count == 0:
        raise ConfigError(
            f"not even one demonstration fits beside the longest query: {window:,} positions, of which queries take "
            f"{room:,}; take a model with a longer window or shorter rows"
        )
    both = config.protocol.drop_from is DropFrom.both
    log.warning(
        "%d of %d demonstrations fit into the model's %s positions (all need %s); the rest are dropped from %s",
        *(count, shots, f"{window:,}", f"{needed:,}", "ICL and finetuning alike" if both else "ICL only"),
    )
    prompts = replace(prompts, in_context=tuple(range(count)))
    if not both:
        return prompts
    training = None if prompts.training is None else prompts.training[:count]
    return replace(prompts, demonstrations=prompts.demonstrations[:count], training=training)
