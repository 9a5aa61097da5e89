"""The token ids that a run shows to the model, fitted into its window."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from iclgd.common.records import Item, PromptSet
from iclgd.config import Config, ConfigError
from iclgd.config.enumerations import Chat, DropFrom, OnOverflow, RecordAt
from iclgd.tasks.chat import conversation
from iclgd.tasks.draw import Drawn
from iclgd.tasks.sources import DataError
from iclgd.tasks.wording import Example

log = logging.getLogger(__name__)

Ids = tuple[int, ...]
Continuation = tuple[str, str]  # a probe that stands before an option, and delimiter + option


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
    of a label are those the tokenizer adds for the delimiter and the word after the end of the template, so that they
    are the same wherever the label stands. What does not fit is refused or dropped, as `task.on_overflow` says:
    dropping keeps the first demonstrations, as many as leave room for the longest query, as the published code does.

    Raises:
        ConfigError: a bos or separator that the tokenizer does not know, labels it cannot tell apart, or a context
            that does not fit; the message names the key and the remedy.
        DataError: an example that is longer than the window by itself, or has no tokens.
    """
    plain, chat = drawn, None
    if config.model.chat is Chat.template:
        chat = conversation(tokenizer, drawn.description)
        drawn, tokenizer = chat.turned(drawn), chat
        bos, separator = chat.bos(), chat.separator()
    else:
        described = _between(drawn.description, tokenizer) if drawn.description else ()
        bos = _bos(config.model.bos, tokenizer) + described
        separator = _separator(config.model.separator if drawn.separator is None else drawn.separator, tokenizer)
    shown = (*drawn.demonstrations, *drawn.queries, *(drawn.training or ()), *drawn.calibration)
    answers = _answers(shown, tokenizer)
    demonstrations = _items(drawn.demonstrations, drawn.label_words, answers, tokenizer, answered=True)
    prompts = PromptSet(
        bos=bos,
        separator=separator,
        demonstrations=demonstrations,
        queries=_items(drawn.queries, drawn.label_words, answers, tokenizer),
        label_words=drawn.label_words,
        label_token_ids=_label_token_ids(drawn, answers),
        in_context=tuple(range(len(demonstrations))),
        training=None
        if drawn.training is None
        else _items(drawn.training, drawn.label_words, answers, tokenizer, answered=True),
        calibration=_items(drawn.calibration, drawn.label_words, answers, tokenizer),
    )
    if chat is not None:
        chat.check(prompts, plain)
    return prompts if window is None else _fitted(prompts, drawn, config, window)


def _tokens(texts: Sequence[str], tokenizer: Tokenizer, special: bool = False) -> list[Ids]:
    if not texts:
        return []
    try:
        found = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=not special, verbose=False)
        return [tuple(map(int, ids)) for ids in found["input_ids"]]
    except Exception as error:  # a stranger's tokenizer may be wrong in any way
        raise ConfigError(f"this model's tokenizer cannot encode {texts[0][:60]!r}: {error}") from error


def _answers(examples: Sequence[Example], tokenizer: Tokenizer) -> dict[Continuation, Ids]:
    """What the tokenizer adds for each option after its probe; the option's own tokens where the two would merge."""
    pairs = list(dict.fromkeys(pair for example in examples for pair in _continuations(example)))
    before = _tokens([probe for probe, _ in pairs], tokenizer)
    longer = _tokens([probe + option for probe, option in pairs], tokenizer)
    alone = _tokens([option for _, option in pairs], tokenizer)
    answers = {}
    for pair, start, both, own in zip(pairs, before, longer, alone, strict=True):
        answers[pair] = both[len(start) :] if both[: len(start)] == start else own
        if not answers[pair]:
            word = pair[1].strip()
            raise ConfigError(f"the label word {word!r} has no tokens in this model's tokenizer: choose another word")
    return answers


def _continuations(example: Example) -> list[Continuation]:
    probe = example.tail if example.tail.strip() else "a"
    return [(probe, example.delimiter + option) for option in example.options]


def _label_token_ids(drawn: Drawn, answers: Mapping[Continuation, Ids]) -> tuple[Ids, ...]:
    if not drawn.label_words:
        return ()
    found = tuple(answers[pair] for pair in _continuations(drawn.demonstrations[0]))
    for index, ids in enumerate(found):
        if ids in found[:index]:
            words = [drawn.label_words[i] for i in (found.index(ids), index)]
            raise ConfigError(
                f"the label words {words[0]!r} and {words[1]!r} have the same tokens {list(ids)} in this model's "
                "tokenizer: change one of them in task.labels, or choose a task whose words it knows (model=toy knows "
                "those of task=toy)"
            )
    return found


def _bos(token: str | None, tokenizer: Tokenizer) -> Ids:
    if token == "auto":
        token = getattr(tokenizer, "bos_token", None)
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
    ids = (known[separator],) if separator in known else _between(separator, tokenizer)
    if not ids:
        raise ConfigError(
            f"model.separator={separator!r} has no tokens in this model's tokenizer: name a token such as </s>, "
            "or model.separator='' for none"
        )
    return ids


def _between(text: str, tokenizer: Tokenizer) -> Ids:
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
    label_words: tuple[str, ...],
    answers: Mapping[Continuation, Ids],
    tokenizer: Tokenizer,
    answered: bool = False,
) -> tuple[Item, ...]:
    """Queries, or demonstrations, which have their answers at the end."""
    items = []
    for example, ids in zip(examples, _tokens([each.text for each in examples], tokenizer), strict=True):
        if not ids:
            raise DataError(f"{example.where}: the filled template {example.text!r} has no tokens in this tokenizer")
        tokens = tuple(answers[pair] for pair in _continuations(example))
        options = None if example.options == label_words else tokens
        item = Item(example.text, ids, example.label, options=options)
        if answered:
            answer = tokens[example.label]
            text = f"{example.text}{example.delimiter}{example.answer}"
            item = replace(item, text=text, token_ids=ids + answer, label_length=len(answer))
        items.append(item)
    return tuple(items)


def _fitted(prompts: PromptSet, drawn: Drawn, config: Config, window: int) -> PromptSet:
    appended = int(config.protocol.record_at is RecordAt.first_label_token)
    room = len(prompts.bos)
    asked = zip((*prompts.queries, *prompts.calibration), (*drawn.queries, *drawn.calibration), strict=True)
    for item, example in asked:
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
