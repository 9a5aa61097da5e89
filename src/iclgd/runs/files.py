"""Files of run folders: never half-written (they are renamed into place), and read by their schema.

status.json has a schema; once the run is done, it holds digests of all other files.
"""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from iclgd.common.printable import printable
from iclgd.config import ConfigError

_PART = ".part-"
_MOST_BYTES = 256 << 20  # of a file; prompts.json with thousands of long queries has a fifth of this
RETIRED = {  # keys of earlier versions, by group
    "runtime": ("padding", "jitter"),
    "metric": ("every",),
    "finetune": ("noise",),
    "reference": ("noise",),
}
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path`, with the same suffix, that replaces it when the block succeeds and is removed if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{_PART}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> Path:
    """Write a text, its newlines as they are; returns the path."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="")
    return path


def remove_leftovers(folder: Path, older_than: float = 0.0) -> None:
    """Delete what killed writers left half-written in a folder and below it, if untouched for so many seconds."""
    for path in folder.rglob(f"{_PART}*"):
        with suppress(FileNotFoundError):
            if not older_than or time.time() - path.stat().st_mtime > older_than:
                path.unlink()


def plain(content: Any) -> Any:
    """Content as JSON has it: tuples as lists, numpy scalars as numbers, NaN and infinities null; integer keys stay."""
    if isinstance(content, Mapping):
        return {key if isinstance(key, int) else str(key): plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    if isinstance(content, float):
        return float(content) if math.isfinite(content) else None
    if isinstance(content, str | int) or content is None:
        return content
    if hasattr(content, "tolist"):
        return plain(content.tolist())
    return str(content)


def to_json(content: Any) -> str:
    """Strict JSON in the order given, the same bytes for the same content."""
    return json.dumps(plain(content), indent=1, allow_nan=False) + "\n"


class DamagedRun(ValueError):
    """A run folder that cannot be read; the message names the file."""


def of_other_types(name: str, error: ValidationError) -> DamagedRun:
    """What is wrong with the content of a file, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    return DamagedRun(f"{printable('.'.join([name, *map(str, first['loc'])]), 100)}: {first['msg']}")


# The state of a run. `stale` is never written: it is a running run whose process is gone.
State = StrEnum("State", "running done failed interrupted stale")


class _Progress(TypedDict):
    stage: str
    done: int
    total: int


class _FileDigest(TypedDict):
    bytes: int
    sha256: str


class Status(BaseModel):
    """status.json; facts that the experiment noted, such as `diverged`, stand beside these fields."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    # as last written; `RunFolder.state` also knows about processes that are gone
    state: Annotated[State, Field(strict=False)]
    run_id: str = ""  # the name of the run's content
    attempt: int = 1  # how many times the run was started
    owner: dict[str, Any] = {}  # host and pid of the process that runs or ran it
    started_at: str | None = None  # wall-clock time, UTC, ISO 8601; so is `finished_at`
    finished_at: str | None = None
    seconds: float | None = None  # by a clock that cannot jump, up to the last update
    progress: _Progress | None = None
    error: str | None = None  # the last line of the traceback
    files: dict[str, _FileDigest] = {}  # by name, of a done run

    @property
    def facts(self) -> dict[str, Any]:
        """What the experiment noted, such as {"diverged": true, "diverged_at": 12}."""
        return self.model_extra or {}

    def as_dict(self) -> dict[str, Any]:
        """The content of status.json; empty fields are left out."""
        return {key: value for key, value in self.model_dump(mode="json").items() if value not in (None, "", {})}


def read(path: Path, schema: Any = None) -> Any:
    """The content of a JSON or YAML file of a run folder, checked by its schema, or the frame of a Parquet file.

    Args:
        path: the file.
        schema: a type that the content must have; by default anything, and in status.json a `Status`.

    Raises:
        DamagedRun: the file is missing, too large, cannot be parsed, or holds other types.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
        if path.suffix == ".parquet":
            import pandas as pd  # here, because iclgd-status starts without it

            return pd.read_parquet(path)
        adapter = TypeAdapter(schema or (Status if path.name == "status.json" else Any))
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, _YAML_LOADER) if path.suffix == ".yaml" else json.loads(text)
        validated = adapter.validate_python(content)
        return validated if isinstance(validated, BaseModel) else content  # whose keys have the file's order
    except FileNotFoundError as error:
        raise DamagedRun(f"{path.name} is missing") from error
    except ValidationError as error:
        raise of_other_types(path.name, error) from error
    except Exception as error:  # PyYAML, Arrow and pandas raise anything on damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DamagedRun(f"{path.name} cannot be read: {printable(reason, 200)}") from error


def recorded_config(folder: Path) -> dict[str, Any]:
    """A run's config.yaml, ready to be composed again: without keys that are no longer there, and `${` in it is text.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    try:
        config = _literal(read(folder / "config.yaml", dict[str, Any]))
    except DamagedRun as error:
        raise ConfigError(f"{folder}: no run's config.yaml can be read there ({error})") from error
    for group, keys in RETIRED.items():
        for key in keys:
            config.get(group, {}).pop(key, None)
    return config


def _literal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_literal(inner) for inner in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
