"""Rows put into words as a task's config says: the text, the options that may follow it, and which of them is right.

A task of pairs has an input and an open answer, which is scored among other answers of the same task.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from iclgd.common import seeding
from iclgd.config import ConfigError, TaskConfig
from iclgd.tasks.examples import DataError, Example, Examples, Pool
from iclgd.tasks.sources import Row, Split, read_splits
from iclgd.tasks.templates import Expression, Template, brief, is_text_or_number

_CANDIDATES = 100  # other answers that each example brings; tokens decide which of them are its options


def worded_rows(task: TaskConfig, data_dir: str | None) -> Pool:
    """All rows of a task, checked and put into words.

    Raises:
        ConfigError: templates or label words that cannot be used.
        DataError: rows that are missing or cannot be used, by file and line, or fewer open answers than options.
    """
    wording = Wording(task)
    first, second = read_splits(task, data_dir)
    train = wording.examples(first)
    evaluation = train if second is first else wording.examples(second)
    words = wording.label_words
    pool = Pool(train, evaluation, second is first, words, task.description, task.separator, wording.blank())
    return _with_other_answers(pool, task) if task.answer_column else pool


class Wording:
    """The chosen template and how options and labels are read, compiled once for all rows."""

    def __init__(self, task: TaskConfig) -> None:
        """Compile what a task's config says.

        Raises:
            ConfigError: a template fills in no column or cannot be read, or the label words cannot be used.
        """
        key = f"task.templates[{task.template}]"
        self.template = Template(task.templates[task.template], key)
        if not self.template.columns:
            raise ConfigError(f"{key}={self.template.source!r} fills in no column: write one as {{{{ column }}}}")
        self.delimiter = task.delimiter
        self.label_words = label_words(task)
        doubled = {key: self.template.tail[-1:]} | {f"task.labels: {word!r}": word[:1] for word in self.label_words}
        for source, edge in doubled.items():
            if edge.isspace() and self.delimiter.isspace():
                raise ConfigError(
                    f"{source} has white space beside task.delimiter={self.delimiter!r}, which gives two spaces: "
                    "remove it, or set task.delimiter=''"
                )
        self._label = Expression(task.label_column)
        self._label_values = task.label_values
        self._label_among = Expression(task.label_among) if task.label_among else None
        self._answer = Expression(task.answer_column) if task.answer_column else None
        self._options_column = Expression(task.options_column) if task.options_column else None
        self._options = [Template(text, f"task.options[{i}]") for i, text in enumerate(task.options or ())]
        self.columns = self.template.columns.union(*(option.columns for option in self._options))

    def blank(self) -> str | None:
        """The text of a row whose columns are empty; None where the template cannot be filled without values."""
        try:
            return self.template.fill(dict.fromkeys(self.template.columns, ""), "")
        except DataError:
            return None

    def examples(self, split: Split) -> Examples:
        """The examples of a split, after a look at every row, drawn or not.

        Raises:
            DataError: a row lacks a column or has a label that is not valid, by file and line.
        """
        for where, row in split.rows:
            if self.columns - row.keys():
                self.template.fill(row, where)  # refuses the row, unless the template has a branch for this case
            self.label_of(row, len(self.options_of(row, where)), where)
        return Examples(split.origin, len(split.rows), lambda index: self.example(*split.rows[index]))

    def example(self, where: str, row: Row) -> Example:
        """A row in words."""
        text, options = self.template.fill(row, where), self.options_of(row, where)
        if not text.strip():
            raise DataError(f"{where}: the filled template is blank")
        label = self.label_of(row, len(options), where)
        return Example(text, options, label, where, self.template.tail, self.delimiter)

    def options_of(self, row: Row, where: str) -> tuple[str, ...]:
        """What may follow a row's text; of open answers, the right one alone."""
        if self.label_words:
            return self.label_words
        if self._answer:
            values, least = [self._answer.of(row, where)], 1
        elif self._options_column:
            values, least = _list_in(self._options_column, row, where), 2
        else:
            values, least = [option.fill(row, where) for option in self._options], 2
        if len(values) < least or not all(is_text_or_number(value) and str(value).strip() for value in values):
            raise DataError(
                f"{where}: the options {brief(values)} are fewer than {least}, blank, or neither text nor numbers"
            )
        return tuple(map(str, values))

    def label_of(self, row: Row, options: int, where: str) -> int:
        """The right option's index."""
        if self._answer:
            return 0
        raw, column = self._label.of(row, where), self._label.source
        values = _list_in(self._label_among, row, where) if self._label_among else self._label_values
        if values is not None:
            names = [_plain(value) for value in values]
            if _plain(raw) not in names:
                raise DataError(f"{where}: label {brief(raw)} in column {column!r} is not one of {', '.join(names)}")
            raw = names.index(_plain(raw))
        elif isinstance(raw, bool) or not isinstance(raw, int):
            raise DataError(
                f"{where}: label {brief(raw)} in column {column!r} is not a label id (a whole number); "
                "where the column holds names, list them by id in task.label_values"
            )
        if not 0 <= raw < options:
            raise DataError(f"{where}: label {raw} in column {column!r} is out of range 0 to {options - 1}")
        return raw


def label_words(task: TaskConfig) -> tuple[str, ...]:
    """The label words that go with the chosen template, by label id; empty for multiple choice.

    Raises:
        ConfigError: fewer or more of them than the task has labels, a blank one, or one twice.
    """
    words = task.template_labels.get(task.template, task.labels)
    if len(words) != len(task.labels):
        raise ConfigError(
            f"task.template_labels.{task.template} has {len(words)} words for {len(task.labels)} labels of {task.name}"
        )
    check_label_words(words, f"conf/task, {task.name}")
    return tuple(words)


def check_label_words(words: Sequence[str], source: str) -> None:
    """Refuse label words that are blank or not all different; `source` is where they come from.

    Raises:
        ConfigError: naming the words.
    """
    if any(not word.strip() for word in words) or len(set(words)) < len(words):
        raise ConfigError(f"{source}: the label words {list(words)} must be different and none may be blank")


def _list_in(column: Expression, row: Row, where: str) -> list[Any]:
    values = column.of(row, where)
    if not isinstance(values, list | tuple):
        raise DataError(f"{where}: column {column.source!r} holds {brief(values)}, not a list")
    return list(values)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value in ("True", "False") else str(value)


def _with_other_answers(pool: Pool, task: TaskConfig) -> Pool:
    """A pool of open answers, each among others. A row with the text of an earlier one is left out, with a note."""
    texts: set[str] = set()
    repeats: list[str] = []

    def distinct(examples: Examples) -> list[Example]:
        pairs = []
        for pair in examples:
            if pool.blank is not None and pair.text.split() == pool.blank.split():
                raise DataError(f"{pair.where}: its text is blank")
            if pair.text in texts:
                repeats.append(pair.where)
            else:
                pairs.append(pair)
            texts.add(pair.text)
        return pairs

    first = distinct(pool.train)
    second = first if pool.same else distinct(pool.evaluation)
    answers, origin = sorted({pair.answer for pair in (*first, *second)}), pool.train.origin
    if len(answers) < task.choices:
        raise DataError(
            f"{origin} has {len(answers)} different answers, fewer than task.choices={task.choices}: lower it"
        )
    notes = [f"{len(repeats)} rows have the text of an earlier row and are left out: {repeats[0]}"] if repeats else []
    return replace(
        pool,
        train=Examples(origin, len(first), partial(_with_candidates, first, answers, task)),
        evaluation=Examples(pool.evaluation.origin, len(second), partial(_with_candidates, second, answers, task)),
        notes=tuple(notes),
    )


def _with_candidates(pairs: Sequence[Example], answers: Sequence[str], task: TaskConfig, index: int) -> Example:
    """A pair with other answers beside its own, in an order that depends on its text and `task.query_seed` alone.

    Answers that are words of the text come first: where the answer has to be chosen from the text, others would be no
    temptation.
    """
    pair = pairs[index]
    stream = seeding.numpy_stream(f"options of {pair.text}", task.query_seed)
    drawn = (answers[i] for i in stream.permutation(len(answers)))
    words = set(re.findall(r"\w+", pair.text))
    others = sorted((answer for answer in drawn if answer != pair.answer), key=lambda answer: answer not in words)
    index = int(stream.integers(task.choices))
    options = (*others[:index], pair.answer, *others[index:_CANDIDATES])
    return replace(pair, options=options, label=index, choices=task.choices)


def with_distinct_options(example: Example, first_tokens: Sequence[int]) -> Example:
    """The example with its answer and the first other candidates, `choices` in all, no two with one first token.

    Args:
        example: of a task of pairs.
        first_tokens: of each of its options.

    Raises:
        DataError: too few of its options have a first token of their own.
    """
    count = example.choices or len(example.options)
    taken, others = {first_tokens[example.label]}, []
    for option, token in zip(example.options, first_tokens, strict=True):
        if token not in taken and len(others) < count - 1:
            taken.add(token)
            others.append(option)
    if len(others) < count - 1:
        raise DataError(
            f"{example.where}: only {len(others)} other answers begin with a token of their own in this model's "
            f"tokenizer, but task.choices={count} needs {count - 1}: lower it"
        )
    index = example.label % count
    return replace(example, options=(*others[:index], example.answer, *others[index:]), label=index, choices=None)
