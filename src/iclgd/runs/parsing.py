"""Files from outside, read within limits: regular files only, strict JSON, plain YAML; refused with the file's name."""

from __future__ import annotations

import errno
import math
import os
import stat
from pathlib import Path
from typing import Any

from iclgd.common.printable import printable
from iclgd.runs.files import again, from_json
from iclgd.runs.shapes import Shape, ShapeError

_SIZES = {".json": 256 << 20, ".yaml": 4 << 20, ".parquet": 4 << 30}  # bytes
_SMALL = {"status.json": 4 << 20, "environment.json": 16 << 20, "scores.json": 64 << 20}
_DEEPEST = 40
_LARGEST = 2**64
_MOST_NODES = 200_000


class DamagedRun(ValueError):
    """A run folder that cannot be read; the message names the file."""


def regular_bytes(path: Path) -> bytes:
    """The content of a regular file; nothing waits for a pipe, and no link is followed.

    Raises:
        DamagedRun: it is something else, or larger than such a file may be.
        FileNotFoundError: it is not there.
    """
    name, most = path.name, _SMALL.get(path.name, _SIZES.get(path.suffix, 1 << 20))
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        handle = again(lambda: os.open(path, flags))
    except FileNotFoundError:
        raise
    except OSError as error:
        what = "is a link" if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"
        raise DamagedRun(f"{name} {what}") from error
    with os.fdopen(handle, "rb") as stream:
        entry = os.fstat(handle)
        if not stat.S_ISREG(entry.st_mode):
            raise DamagedRun(f"{name} is no regular file")
        if entry.st_size > most:
            raise DamagedRun(f"{name} has {entry.st_size:,} bytes, more than the {most:,} that are read")
        try:
            return stream.read(most)
        except OSError as error:
            raise DamagedRun(f"{name} cannot be read: {error.strerror}") from error


def parse_json(content: bytes, name: str) -> Any:
    """What strict JSON says: no NaN, no number beyond what a float or 64 bits hold, no deep nesting."""
    try:
        value = from_json(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedRun(f"{name} cannot be read: {reason(error)}") from error
    return _shallow(value, name)


def parse_yaml(content: bytes, name: str) -> Any:
    """What plain YAML says: no aliases, no dates, sets or tags, within limits of nodes and depth."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        written, nodes, depth = content.decode("utf-8"), 0, 0
        for event in yaml.parse(written, Loader=loader):
            nodes += 1
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise DamagedRun(f"{name} has aliases, which no run writes")
            if nodes > _MOST_NODES or depth > _DEEPEST:
                raise DamagedRun(f"{name} has more than {_MOST_NODES:,} nodes or is nested deeper than {_DEEPEST}")
        value = yaml.load(written, Loader=loader)
    except DamagedRun:
        raise
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise DamagedRun(f"{name} cannot be read: {reason(error)}") from error
    return _shallow(value, name)


def checked(value: Any, shape: Shape, name: str) -> Any:
    """The value, if it has the shape."""
    try:
        shape(value, name)
    except ShapeError as error:
        raise DamagedRun(str(error)) from error
    return value


def _shallow(value: Any, name: str) -> Any:
    waiting, nodes = [(value, 0)], 0
    while waiting:
        inner, depth = waiting.pop()
        nodes += 1
        if depth > _DEEPEST:
            raise DamagedRun(f"{name} is nested deeper than {_DEEPEST}")
        if isinstance(inner, dict):
            waiting += [(each, depth + 1) for pair in inner.items() for each in pair]
        elif isinstance(inner, list):
            waiting += [(each, depth + 1) for each in inner]
        elif isinstance(inner, float) and not math.isfinite(inner):
            raise DamagedRun(f"{name} holds {inner}, which is no number")
        elif isinstance(inner, int) and abs(inner) >= _LARGEST:
            raise DamagedRun(f"{name} holds a number of {inner.bit_length()} bits, which is too large")
        elif not isinstance(inner, str | int | float | None):
            raise DamagedRun(f"{name} holds a {type(inner).__name__}, which is no plain value")
    return value


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    return printable((str(error) or type(error).__name__).splitlines()[0], 200)
