"""A task in words: examples with a text, the options that may follow it, and which of them is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from iclgd.config import ConfigError, TaskConfig
from iclgd.config.enumerations import TaskSource
from iclgd.tasks.sources import DataError, Split, read_split
from iclgd.tasks.templates import Expression, Template, brief, is_text_or_number


@dataclass(frozen=True)
class Example:
    """A row in words."""

    text: str  # the filled template; it ends where the answer would come
    options: tuple[str, ...]  # what may follow it: the task's label words, or this row's own options
    label: int  # index of the right option
    where: str  # the file and line that it comes from
    tail: str = ""  # the end of the text that all examples share: options are tokenised behind it
    delimiter: str = " "  # what stands between the text and an option

    @property
    def answer(self) -> str:
        """The right option."""
        return self.options[self.label]


@dataclass(frozen=True)
class Examples:
    """The examples of a split, each worded when it is asked for."""

    origin: str
    length: int
    word: Callable[[int], Example]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        return self.word(index)


@dataclass(frozen=True)
class Worded:
    """A task whose examples can be drawn."""

    train: Examples  # demonstrations are drawn from these
    evaluation: Examples  # and queries from these
    same: bool  # whether both are one split, so that no demonstration may be a query
    # by label id; empty for multiple choice, where each example brings its options
    label_words: tuple[str, ...]
    description: str = ""  # what stands once before everything else
    separator: str | None = None  # what stands between demonstrations; None where the model says so


def worded(task: TaskConfig, data_dir: str | None) -> Worded:
    """Read a task's rows, check every one of them, and word them as its config says.

    Raises:
        ConfigError: templates or label words that cannot be used.
        DataError: rows that are not there or cannot be used, by file and line.
    """
    if task.source is TaskSource.lm_eval:
        from iclgd.tasks.harness import harness_task

        return harness_task(task)
    wording = Wording(task)
    train = wording.examples(read_split(task, task.train_split, data_dir))
    same = task.eval_split == task.train_split
    evaluation = train if same else wording.examples(read_split(task, task.eval_split, data_dir))
    return Worded(train, evaluation, same, wording.label_words, task.description, task.separator)


class Wording:
    """The chosen template and how options and labels are read, compiled once for all rows.

    A row that cannot be worded is refused by a DataError that names file and line.
    """

    def __init__(self, task: TaskConfig) -> None:
        """Compile what a task's config says.

        Raises:
            ConfigError: a template fills in no column or cannot be read, or the label words are not usable.
        """
        key = f"task.templates[{task.template}]"
        self.template = Template(task.templates[task.template], key)
        if not self.template.columns:
            raise ConfigError(f"{key}={self.template.source!r} fills in no column: write one as {{{{ column }}}}")
        self.delimiter = task.delimiter
        self.label_words = label_words(task)
        self._label = Expression(task.label_column, "task.label_column")
        self._among = None if task.label_among is None else Expression(task.label_among, "task.label_among")
        self._values = task.label_values
        self._listed = Expression(task.options_column, "task.options_column") if task.options_column else None
        self._options = [Template(text, f"task.options[{i}]") for i, text in enumerate(task.options or ())]
        self.columns = self.template.columns.union(*(option.columns for option in self._options))

    def examples(self, split: Split) -> Examples:
        """The examples of a split, after a look at every row, drawn or not.

        Raises:
            DataError: a row lacks a column or has a label that is none, by file and line.
        """
        for index, row in enumerate(split.rows):
            where = split.where(index)
            absent = self.columns - row.keys()
            if absent:
                self.template.fill(row, where)  # refuses the row, unless the template has a branch for this case
            self.label_of(row, len(self.options_of(row, where)), where)
        return Examples(
            split.origin, len(split.rows), lambda index: self.example(split.rows[index], split.where(index))
        )

    def example(self, row: Mapping[str, Any], where: str) -> Example:
        """A row in words."""
        text, options = self.template.fill(row, where), self.options_of(row, where)
        if not text.strip():
            raise DataError(f"{where}: the filled template is blank")
        label = self.label_of(row, len(options), where)
        return Example(text, options, label, where, self.template.tail, self.delimiter)

    def options_of(self, row: Mapping[str, Any], where: str) -> tuple[str, ...]:
        """What may follow a row's text."""
        if self.label_words:
            return self.label_words
        if self._listed is None:
            options = [option.fill(row, where) for option in self._options]
        else:
            options = self._listed.of(row, where)
            if not isinstance(options, list | tuple) or not all(map(is_text_or_number, options)):
                raise DataError(
                    f"{where}: column {self._listed.source!r} holds {brief(options)}, not a list of options"
                )
        options = tuple(str(option) for option in options)
        if len(options) < 2 or any(not option.strip() for option in options):
            raise DataError(f"{where}: the options {brief(list(options))} are too few or blank: two or more are needed")
        return options

    def label_of(self, row: Mapping[str, Any], options: int, where: str) -> int:
        """The right option's index."""
        raw, column = self._label.of(row, where), self._label.source
        names = self._values
        if self._among is not None:
            names = self._among.of(row, where)
            if not isinstance(names, list | tuple):
                raise DataError(f"{where}: column {self._among.source!r} holds {brief(names)}, not a list of labels")
        if names is not None:
            known = [_plain(name) for name in names]
            if _plain(raw) not in known:
                raise DataError(f"{where}: label {brief(raw)} in column {column!r} is none of {', '.join(known)}")
            raw = known.index(_plain(raw))
        elif isinstance(raw, bool) or not isinstance(raw, int):
            raise DataError(
                f"{where}: label {brief(raw)} in column {column!r} is no label id (a whole number); "
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
    if any(not word.strip() for word in words) or len(set(words)) < len(words):
        raise ConfigError(f"the label words {list(words)} of {task.name} must be different and none may be blank")
    return tuple(words)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value in ("True", "False") else str(value)
