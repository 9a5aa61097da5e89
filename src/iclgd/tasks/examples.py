"""A task in words: examples, the splits that hold them, and the pool from which a run draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from iclgd.config import ConfigError


class DataError(ConfigError):
    """Rows that cannot be used; the message names the file and the line."""


@dataclass(frozen=True)
class Example:
    """A row in words."""

    text: str  # the filled template; it ends where the answer would come
    options: tuple[str, ...]  # what may follow it: the task's label words, or this row's own options
    label: int  # index of the right option
    where: str  # the file and line that it comes from
    tail: str = ""  # the end of the text that all examples share: options are tokenised behind it
    delimiter: str = " "  # what stands between the text and an option
    choices: int | None = None  # open answers: how many options are kept once their tokens are known

    @property
    def answer(self) -> str:
        """The right option."""
        return self.options[self.label]


@dataclass(frozen=True)
class Examples:
    """The examples of a split. A row is put into words when it is asked for."""

    origin: str
    length: int
    word: Callable[[int], Example]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        return self.word(index)


@dataclass(frozen=True)
class Pool:
    """What a source gives: all examples of a task, of which a run draws some."""

    train: Examples  # demonstrations are drawn from these
    evaluation: Examples  # and queries from these
    same: bool  # whether both are one split, so that no demonstration may be a query
    # by label id; empty for multiple choice, where each example brings its options
    label_words: tuple[str, ...]
    description: str = ""  # what stands once before everything else
    separator: str | None = None  # what stands between demonstrations; None where the model says so
    blank: str | None = None  # the text of a row whose columns are empty, if there can be one
    notes: tuple[str, ...] = ()  # what a reader should know about these rows, a sentence each
