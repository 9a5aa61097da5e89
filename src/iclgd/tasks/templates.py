"""Jinja2 templates that are filled with a row's columns: sandboxed, and strict about what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from iclgd.config import ConfigError
from iclgd.tasks.examples import DataError


def _as_text(value: Any) -> str:
    if isinstance(value, str):  # half a surrogate pair is not text, and no tokenizer takes it
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, jinja2.Undefined) or (is_text_or_number(value) and not isinstance(value, bool)):
        return str(value)  # an undefined value raises here, naming the column
    raise TypeError(f"{brief(value)} is not text or a number")


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, finalize=_as_text, keep_trailing_newline=True
)
_ENVIRONMENT.globals.clear()  # a missing column named `range` is missing, and not a function


class Template:
    """A template, compiled once.

    Attributes:
        source: its text.
        columns: the columns that it reads.
        tail: what stands after its last expression; empty if nothing does.
    """

    def __init__(self, source: str, key: str) -> None:
        """Compile a template; `key` is the setting it comes from, for messages.

        Raises:
            ConfigError: it is not a Jinja2 template.
        """
        self.source = source
        try:
            tokens = list(_ENVIRONMENT.lex(source))
            self.columns = frozenset(meta.find_undeclared_variables(_ENVIRONMENT.parse(source)))
            self._template = _ENVIRONMENT.from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"{key}={source!r} is not a Jinja2 template: {error.message}") from error
        self.tail = tokens[-1][2] if tokens and tokens[-1][1] == "data" else ""

    def fill(self, row: Mapping[str, Any], where: str) -> str:
        """The template filled with a row's values; whatever is in them stays as it is.

        Raises:
            DataError: a column is missing, or its value is not text or a number.
        """
        with _naming(row, where):
            return self._template.render(row)


class Expression:
    """A column of the row, by its name or as a Jinja2 expression such as `choices.text` or `answers[0]`."""

    def __init__(self, source: str) -> None:
        """Compile an expression."""
        self.source = source
        try:
            self._value: Callable[..., Any] = _ENVIRONMENT.compile_expression(source, undefined_to_none=False)
        except jinja2.TemplateError:  # a column's name that is not an expression still is a column's name
            self._value = lambda _: _ENVIRONMENT.undefined(name=source)

    def of(self, row: Mapping[str, Any], where: str) -> Any:
        """The value in a row.

        Raises:
            DataError: there is none.
        """
        if self.source in row:
            return row[self.source]
        with _naming(row, where):
            value = self._value(row)
            return str(value) if isinstance(value, jinja2.Undefined) else value  # the text of an undefined one raises


@contextmanager
def _naming(row: Mapping[str, Any], where: str) -> Iterator[None]:
    """Errors inside name the row and its columns, with values that are not text or a number."""
    try:
        yield
    except Exception as error:  # a filter or method may raise anything on a row of another kind
        plain = {name for name, value in row.items() if is_text_or_number(value) and not isinstance(value, bool)}
        columns = [f"{name}" if name in plain else f"{name}={brief(row[name])}" for name in row]
        raise DataError(f"{where}: {error} (columns: {', '.join(columns) or 'none'})") from error


def is_text_or_number(value: Any) -> bool:
    """Whether a value can stand in a text; NaN and infinity, by which tables mark what is missing, cannot."""
    return isinstance(value, str | int) or (isinstance(value, float) and abs(value) < float("inf"))


def brief(value: Any) -> str:
    """A value for messages, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
