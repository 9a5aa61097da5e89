"""Shapes that content from outside must have: small checks that say where it is otherwise.

A schema library would cost every `iclgd-status` a quarter of a second, for five shapes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from iclgd.common.printable import printable

Shape = Callable[[Any, str], None]

_LARGEST = 2**63


class ShapeError(ValueError):
    """Content of another shape; the message says where, what was got and what was expected."""


def number(value: Any, where: str) -> None:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _other(value, where, "a finite number")


def whole(value: Any, where: str) -> None:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or not -_LARGEST <= value < _LARGEST:
        raise _other(value, where, "a whole number")


def count(value: Any, where: str) -> None:
    """A whole number from 0."""
    whole(value, where)
    if value < 0:
        raise _other(value, where, "a whole number from 0")


def text(value: Any, where: str) -> None:
    """A text."""
    if not isinstance(value, str):
        raise _other(value, where, "a text")


def flag(value: Any, where: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise _other(value, where, "true or false")


def inner_path(value: Any, where: str) -> None:
    """A path that stays inside its folder."""
    text(value, where)
    if PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts or "\0" in value:
        raise _other(value, where, "a path inside the folder")


def plain_name(value: Any, where: str) -> None:
    """A name without a folder."""
    text(value, where)
    if value in ("", ".", "..") or "/" in value or "\0" in value:
        raise _other(value, where, "a plain name")


def anything(value: Any, where: str) -> None:
    """Whatever it is."""


def maybe(shape: Shape) -> Shape:
    """The shape, or nothing."""
    return lambda value, where: None if value is None else shape(value, where)


def one_of(*values: str) -> Shape:
    """One of the texts."""

    def check(value: Any, where: str) -> None:
        if value not in values:
            raise _other(value, where, f"one of {', '.join(values)}")

    return check


def list_of(shape: Shape, length: int | None = None, most: int = 50_000_000) -> Shape:
    """A list of things of one shape, so many or at most so many."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or (length is not None and len(value) != length):
            raise _other(value, where, "a list" if length is None else f"a list of {length}")
        if len(value) > most:
            raise ShapeError(f"{where} has {len(value):,} parts, more than {most:,}")
        for position, each in enumerate(value):
            shape(each, f"{where}[{position}]")

    return check


def object_of(shape: Shape, key: Shape = text) -> Shape:
    """An object whose values have one shape."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise _other(value, where, "an object")
        for name, each in value.items():
            key(name, f"a key of {where}")
            shape(each, f"{where}.{printable(str(name))}")

    return check


def fields(needed: Mapping[str, Shape], known: Mapping[str, Shape] | None = None) -> Shape:
    """An object with certain fields."""
    shapes = {**(known or {}), **needed}

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise _other(value, where, "an object")
        absent = [name for name in needed if name not in value]
        if absent:
            raise ShapeError(f"{where} has no {absent[0]}")
        for name, each in value.items():
            text(name, f"a key of {where}")
            shapes.get(name, anything)(each, f"{where}.{printable(name)}")

    return check


@functools.cache
def of_type(hint: Any) -> Shape:
    """The shape of a type's values: plain ones, lists, dictionaries, and dataclasses that may lack any field."""
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return fields({}, {each.name: of_type(hints[each.name]) for each in dataclasses.fields(hint)})
    parts = typing.get_args(hint)
    if type(None) in parts:
        return maybe(of_type(parts[0]))
    if typing.get_origin(hint) is list:
        return list_of(of_type(parts[0]))
    if typing.get_origin(hint) is dict:
        return object_of(of_type(parts[1]), key=of_type(parts[0]))
    plain = {bool: flag, int: whole, float: number, str: text}
    return plain.get(hint, text if isinstance(hint, type) and issubclass(hint, str) else anything)


def _other(value: Any, where: str, expected: str) -> ShapeError:
    kind = type(value).__name__
    got = printable(repr(value), 40) if isinstance(value, str | int | float | None) else f"a {kind}"
    return ShapeError(f"{where} is {got}, not {expected}")
