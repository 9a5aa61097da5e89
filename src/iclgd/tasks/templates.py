"""Jinja2 templates that are filled with a row's columns: sandboxed, strict about what is missing, bounded in output."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from iclgd.config import ConfigError
from iclgd.tasks.sources import DataError

LONGEST = 1_000_000  # characters of a filled template, and the largest number a template may repeat or pad by

_OLD_FORM = re.compile(r"\{([A-Za-z][\w-]*(?:\.[\w-]+)*)\}", re.ASCII)


class _NotTextError(TypeError):
    """A value that a template puts out is neither text nor a number."""


class _Environment(ImmutableSandboxedEnvironment):
    """No globals, no repetition or padding beyond `LONGEST`: a template can only word what is in the row."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sequences = [value for value in (left, right) if isinstance(value, str | list | tuple)]
        numbers = [value for value in (left, right) if isinstance(value, int)]
        longest = max(map(len, sequences), default=1) * max(map(abs, numbers), default=1)
        if longest > LONGEST or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"{operator!r} with these values is not allowed in a template")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, int) and abs(value) > LONGEST for value in (*args, *kwargs.values())):
            raise SecurityError(f"numbers above {LONGEST:,} are not allowed in a template's calls")
        if getattr(function, "__name__", "") in ("format", "format_map"):
            raise SecurityError("str.format is not allowed in a template: write {{ column }} instead")
        return super().call(context, function, *args, **kwargs)


def _text(value: Any) -> str:
    if isinstance(value, str):  # half a surrogate pair is no text, and no tokenizer takes it
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if is_text_or_number(value) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, jinja2.Undefined):
        return str(value)  # raises, naming the column
    raise _NotTextError(brief(value))


def _environment() -> _Environment:
    environment = _Environment(undefined=jinja2.StrictUndefined, finalize=_text, keep_trailing_newline=True)
    environment.globals.clear()
    for name in ("center", "filesizeformat", "format", "indent", "pprint", "wordwrap", "xmlattr"):
        del environment.filters[name]
    return environment


_ENVIRONMENT = _environment()


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
            ConfigError: it is no Jinja2 template, or is written in the form `{column}`.
        """
        self.source = source
        try:
            tokens = list(_ENVIRONMENT.lex(source))
            self.columns = frozenset(meta.find_undeclared_variables(_ENVIRONMENT.parse(source)))
            self._template = _ENVIRONMENT.from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"{key}={source!r} is no Jinja2 template: {error.message}") from error
        if any(kind == "data" and _OLD_FORM.search(text) for _, kind, text in tokens):
            converted = _OLD_FORM.sub(r"{{ \1 }}", source)
            raise ConfigError(
                f"{key}={source!r} has single braces, but templates are Jinja2's: write {converted!r} "
                "(or {{ '{word}' }} where braces are meant as text)"
            )
        self.tail = tokens[-1][2] if tokens and tokens[-1][1] == "data" else ""

    def fill(self, row: Mapping[str, Any], where: str) -> str:
        """The template filled with a row's values; whatever is in them stays as it is.

        Raises:
            DataError: a column is missing, or what comes out is not text or a number, or is too long.
        """
        filled: list[str] = []
        length = 0
        for chunk in _guarded(lambda: self._template.generate(row), row, where, self.columns):
            filled.append(chunk)
            length += len(chunk)
            if length > LONGEST:
                raise DataError(f"{where}: the filled template is longer than {LONGEST:,} characters")
        return "".join(filled)


class Expression:
    """A column of the row, by its name or as a Jinja2 expression such as `choices.text` or `answers[0]`."""

    def __init__(self, source: str, key: str) -> None:
        """Compile an expression; `key` is the setting it comes from, for messages.

        Raises:
            ConfigError: it is no expression.
        """
        self.source = source
        try:
            self._value: Callable[..., Any] = _ENVIRONMENT.compile_expression(source, undefined_to_none=False)
        except jinja2.TemplateError:  # a column's name that is no expression still is a column's name
            self._value = lambda _: _ENVIRONMENT.undefined(name=source)
        if not source.strip():
            raise ConfigError(f"{key}={source!r} names no column")

    def of(self, row: Mapping[str, Any], where: str) -> Any:
        """The value in a row.

        Raises:
            DataError: there is none.
        """
        if self.source in row:
            return row[self.source]
        (value,) = _guarded(lambda: iter([self._value(row)]), row, where, ())
        if isinstance(value, jinja2.Undefined):
            raise _missing(self.source, row, where)
        return value


def _guarded(values: Callable[[], Any], row: Mapping[str, Any], where: str, columns: Any) -> Any:
    try:
        yield from values()
    except _NotTextError as error:
        holder = next((name for name in columns if brief(row.get(name)) == str(error)), None)
        what = "an expression gives" if holder is None else f"column {holder!r} holds"
        raise DataError(f"{where}: {what} {error}, not text or a number") from None
    except jinja2.UndefinedError as error:
        missing = next((name for name in columns if name not in row), None)
        raise (DataError(f"{where}: {error.message}") if missing is None else _missing(missing, row, where)) from None
    except Exception as error:  # a filter or method may raise anything on a row of another kind
        raise DataError(f"{where}: the template cannot be filled: {error}") from error


def _missing(column: str, row: Mapping[str, Any], where: str) -> DataError:
    return DataError(f"{where}: no column {column!r} (columns there: {', '.join(map(str, row)) or 'none'})")


def is_text_or_number(value: Any) -> bool:
    """Whether a value can stand in a text; NaN and infinity, by which tables mark what is missing, cannot."""
    return isinstance(value, str | int) or (isinstance(value, float) and abs(value) < float("inf"))


def brief(value: Any) -> str:
    """A value for messages, shortened."""
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
