"""How does a row become words: a filled template, the options that may follow it, and which of them is right?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iclgd.config import ConfigError, TaskConfig
from iclgd.tasks.sources import DataError, Split

_PLACEHOLDER = re.compile(r"\{([A-Za-z][\w-]*(?:\.[\w-]+)*)\}", re.ASCII)


@dataclass(frozen=True)
class Example:
    """A row in words.

    Attributes:
        text: the filled template; it ends where the answer would come.
        options: what may follow it, after a space: the task's label words, or this row's own options.
        label: index of the right option.
        where: the file and line that it comes from.
    """

    text: str
    options: tuple[str, ...]
    label: int
    where: str

    @property
    def answer(self) -> str:
        """The right option."""
        return self.options[self.label]


def template_of(task: TaskConfig) -> str:
    """The chosen template.

    Raises:
        ConfigError: it fills in no column, so that every example would read the same.
    """
    template = task.templates[task.template]
    if not _PLACEHOLDER.search(template):
        raise ConfigError(f"task.templates[{task.template}]={template!r} fills in no column: write one as {{column}}")
    return template


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


def tail_of(template: str) -> str:
    """What stands after the template's last column; empty if nothing does."""
    return template[[match.end() for match in _PLACEHOLDER.finditer(template)][-1] :]


def lookup(values: Mapping[str, Any], column: str) -> Any:
    """The value of a column; dots go into it, by name or by number: `choices.text`, `answers.0`.

    Raises:
        KeyError: there is no such value.
    """
    if column in values:
        return values[column]
    found: Any = values
    for step in column.split("."):
        if isinstance(found, list | tuple):
            if step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            elif not step.isdecimal() and all(isinstance(each, Mapping) and step in each for each in found):
                found = [each[step] for each in found]
            else:
                raise KeyError(column)
        elif isinstance(found, Mapping) and step in found:
            found = found[step]
        else:
            raise KeyError(column)
    return found


def fill(template: str, values: Mapping[str, Any], where: str) -> str:
    """The template with each `{column}` replaced by the row's value, once: braces inside values stay as they are.

    A column begins with a letter; other braces, such as `{0}` or `{__class__}`, are text.

    Raises:
        DataError: a column that is missing, empty of a value, or not text or a number.
    """
    return _PLACEHOLDER.sub(lambda match: _as_text(_column(values, match[1], where), match[1], where), template)


def _column(values: Mapping[str, Any], column: str, where: str) -> Any:
    try:
        return lookup(values, column)
    except KeyError:
        there = ", ".join(map(str, values)) or "none"
        raise DataError(f"{where}: no column {column!r} (columns there: {there})") from None


def _as_text(value: Any, column: str, where: str) -> str:
    if isinstance(value, str):  # half a surrogate pair is no text, and no tokenizer takes it
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{where}: column {column!r} holds {_brief(value)}, not text or a number")


def _options(values: Mapping[str, Any], task: TaskConfig, words: tuple[str, ...], where: str) -> tuple[str, ...]:
    if words:
        return words
    if task.options is not None:
        options = tuple(fill(option, values, where) for option in task.options)
    else:
        column = task.options_column or ""
        listed = _column(values, column, where)
        if not isinstance(listed, list | tuple):
            raise DataError(f"{where}: column {column!r} holds {_brief(listed)}, not a list of options")
        options = tuple(_as_text(option, column, where) for option in listed)
    if len(options) < 2 or any(not option.strip() for option in options):
        raise DataError(f"{where}: the options {_brief(list(options))} are too few or blank: two or more are needed")
    return options


def label_of(values: Mapping[str, Any], task: TaskConfig, options: int, where: str) -> int:
    """The right option's index, from the row's label column.

    Raises:
        DataError: a label of another type, or outside `range(options)`.
    """
    raw, column = _column(values, task.label_column, where), task.label_column
    names = None
    if task.label_among is not None:
        names = _column(values, task.label_among, where)
        if not isinstance(names, list | tuple):
            raise DataError(f"{where}: column {task.label_among!r} holds {_brief(names)}, not a list of labels")
    elif task.label_values is not None:
        names = task.label_values
    if names is not None:
        known = [_plain(name) for name in names]
        if _plain(raw) not in known:
            raise DataError(f"{where}: label {_brief(raw)} in column {column!r} is none of {', '.join(known)}")
        raw = known.index(_plain(raw))
    elif isinstance(raw, bool) or not isinstance(raw, int):
        raise DataError(
            f"{where}: label {_brief(raw)} in column {column!r} is no label id (a whole number); "
            "where the column holds names, list them by id in task.label_values"
        )
    if not 0 <= raw < options:
        raise DataError(f"{where}: label {raw} in column {column!r} is out of range 0 to {options - 1}")
    return raw


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value in ("True", "False") else str(value)


def _brief(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def worded(split: Split, index: int, task: TaskConfig) -> Example:
    """A row in the words of the chosen template.

    Raises:
        DataError: the row cannot be worded; the message names file and line.
    """
    values, where = split.rows[index], split.where(index)
    options = _options(values, task, label_words(task), where)
    text = fill(template_of(task), values, where)
    if not text.strip():
        raise DataError(f"{where}: the filled template is blank")
    return Example(text, options, label_of(values, task, len(options), where), where)


def check(split: Split, task: TaskConfig) -> None:
    """Refuse a split of which any row, drawn or not, lacks a column or has a label that is none.

    Raises:
        DataError: naming file, line and column.
    """
    template, words = template_of(task), label_words(task)
    columns = dict.fromkeys(
        match[1] for text in (template, *(task.options or ())) for match in _PLACEHOLDER.finditer(text)
    )
    for index, values in enumerate(split.rows):
        where = split.where(index)
        for column in columns:
            if column not in values:
                _column(values, column, where)
        label_of(values, task, len(_options(values, task, words, where)), where)
