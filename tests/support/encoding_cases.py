"""Examples and settings for tests of encoding."""

from __future__ import annotations

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from iclgd.config import Config
from iclgd.config.enumerations import DropFrom, OnOverflow
from iclgd.tasks.draw import Drawn
from iclgd.tasks.examples import Example
from task_cases import make_config
from tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
LABELS = ("Negative", "Positive")
TAIL = " Kind:"


def ids_of(text: str, tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def examples(count: int, words: int = 3, options: tuple[str, ...] = LABELS) -> tuple[Example, ...]:
    return tuple(
        Example(
            f"Thing: {' '.join([f'word{i}'] * words)}{TAIL}", options, i % len(options), f"t.jsonl, line {i + 1}", TAIL
        )
        for i in range(count)
    )


def drawn_of(**values) -> Drawn:
    usual = {"demonstrations": examples(4), "queries": examples(3), "label_words": LABELS}
    return Drawn(**{**usual, **values})


def choices(count: int) -> tuple[Example, ...]:
    return tuple(
        Example(f"Goal {i}", tuple(f"take the {'very ' * n}road {i}" for n in range(2 + i % 2)), 1, f"line {i}")
        for i in range(count)
    )


def wrapped(model: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=model, **special)


def config_with(on_overflow: OnOverflow = OnOverflow.error, drop_from: DropFrom = DropFrom.both, **model) -> Config:
    config = make_config(on_overflow=on_overflow)
    config.protocol.drop_from = drop_from
    for key, value in model.items():
        setattr(config.model, key, value)
    return config
