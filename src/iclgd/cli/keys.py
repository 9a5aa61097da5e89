"""Every key of the schema with its type, default and meaning, read from its source: `iclgd --keys` and the docs."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from iclgd.config import Config, ScoreConfig


@dataclass(frozen=True)
class Key:
    """One key."""

    name: str  # as written on the command line, such as `task.shots`; NAME stands for a score's name
    kind: str  # its type, or the values to choose from
    default: str  # the schema's; empty where a value must be given. Files of conf/ may set another.
    comment: str  # what it means


def keys() -> list[Key]:
    """All keys, group by group, in the order of the schema."""
    return list(_of(Config, ""))


def _of(schema: type, prefix: str) -> Iterator[Key]:
    kinds, comments = typing.get_type_hints(schema), _comments(schema)
    for field in dataclasses.fields(schema):
        name, kind = f"{prefix}{field.name}", kinds[field.name]
        if dataclasses.is_dataclass(kind):
            yield from _of(typing.cast(type, kind), f"{name}.")
        elif kind == dict[str, ScoreConfig]:
            yield from _of(ScoreConfig, f"{name}.NAME.")
        else:
            yield Key(name, _kind(kind), _default(field), comments.get(field.name, ""))


def _comments(schema: type) -> dict[str, str]:
    """The comment behind each field in its class's source."""
    code = r"(?:\"[^\"\n]*\"|\(\n[^#\n]*\n    \)|[^#\n])*?"
    return dict(re.findall(rf"^    (\w+): {code}  # (.*)$", inspect.getsource(schema), re.MULTILINE))


def _kind(kind: Any) -> str:
    if kind is Any:
        return "any"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "|".join(str(choice.value) for choice in kind)
    if isinstance(kind, type) and not typing.get_args(kind):
        return kind.__name__
    return str(kind).replace("typing.", "")


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, str) and not isinstance(value, enum.Enum):
        return "" if value == "???" else repr(value)
    return str(value)


def text() -> str:
    """The keys as text, one a line, those that belong together in a block."""
    lines, group = [], ""
    for key in keys():
        if lines and key.name.rpartition(".")[0] != group:
            lines.append("")
        group = key.name.rpartition(".")[0]
        default = f" = {key.default}" if key.default else " (to be given)"
        lines.append(f"{key.name}: {key.kind}{default}" + (f"  # {key.comment}" if key.comment else ""))
    return "\n".join(lines) + "\n"
