"""Run folders as anybody may hand them over: read within limits, checked by shape, refused with the file's name."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.common.printable import printable
from iclgd.config import Config, ConfigError
from iclgd.runs.identity import run_id
from iclgd.runs.parsing import DamagedRun, checked, parse_json, parse_yaml, reason, regular_bytes
from iclgd.runs.shapes import (
    Shape,
    anything,
    count,
    fields,
    flag,
    inner_path,
    list_of,
    maybe,
    number,
    object_of,
    of_type,
    one_of,
    text,
    whole,
)

if TYPE_CHECKING:
    import pandas as pd

_MOST_ROWS = 20_000_000
_MOST_LAYERS = 10_000

_MEAN: dict[str, Shape] = {"mean": maybe(number)}
_RECORD: dict[str, Shape] = {
    "layers": maybe(list_of(maybe(number), most=_MOST_LAYERS)),
    "ci": maybe(list_of(maybe(number), 2)),
    "n": maybe(count),
    "undefined": maybe(count),
}
_RECORDS = object_of(fields(_MEAN, {**_RECORD, "flipped": maybe(fields(_MEAN, _RECORD))}))
STATUS = fields(
    {"state": one_of("running", "done", "failed", "interrupted")},
    {
        "run_id": text,
        "attempt": count,
        "owner": fields({}, {"host": text, "pid": count}),
        "started_at": maybe(text),
        "finished_at": maybe(text),
        "seconds": maybe(number),
        "progress": maybe(fields({"stage": text, "done": count, "total": count})),
        "error": maybe(text),
        "traceback": maybe(text),
        "diverged": flag,
        "diverged_at": maybe(whole),
        "files": object_of(fields({"bytes": count, "sha256": text}), key=inner_path),
    },
)
_NEEDED = {
    "model": fields({"name": text}),
    "task": fields({"name": text, "shots": count}),
    "finetune": fields({"name": text, "lr": number}),
    "seed": count,
}
_LIMITS = fields({}, {"scores": object_of(fields({}, {"limits": maybe(list_of(number, 2)), "digits": maybe(count)}))})
_ITEM = fields({"text": text, "token_ids": list_of(count), "label": count}, {"options": list_of(list_of(count))})
_PROMPTS = fields(
    {"demonstrations": list_of(_ITEM), "queries": list_of(_ITEM)},
    {
        "bos": list_of(count),
        "separator": list_of(count),
        "label_words": list_of(text),
        "label_token_ids": list_of(list_of(count)),
        "in_context": list_of(count),
        "training": list_of(_ITEM),
        "reference_demonstrations": list_of(_ITEM),
    },
)


class FolderReader:
    """One run folder: each file is read once, and must be the one that the finished run wrote.

    Whatever is read raises DamagedRun where the file cannot be read, is another one or holds something unexpected, and
    FileNotFoundError where there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def status(self) -> Mapping[str, Any]:
        """The content of status.json."""
        return self.json("status.json", STATUS)

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:
        """The content of config.yaml, plain values without NaN, infinity or dates."""
        content = checked(parse_yaml(self.bytes("config.yaml"), "config.yaml"), of_type(Config), "config.yaml")
        return checked(content, fields(_NEEDED, {"metric": _LIMITS}), "config.yaml")

    @functools.cached_property
    def scores(self) -> Mapping[str, Any]:
        """The content of scores.json."""
        return self.json("scores.json", _RECORDS)

    @functools.cached_property
    def environment(self) -> Mapping[str, Any]:
        """The content of environment.json."""
        return self.json("environment.json", fields({}, {"dtype": maybe(text), "notes": list_of(text)}))

    @functools.cached_property
    def prompts(self) -> Mapping[str, Any]:
        """The content of prompts.json."""
        return self.json("prompts.json", _PROMPTS)

    @functools.cached_property
    def content_id(self) -> str:
        """The run's id as its config gives it, whatever status.json claims."""
        try:
            return run_id(self.config)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedRun(f"config.yaml is of no run: {printable(repr(error), 100)}") from error

    def json(self, name: str, shape: Shape = anything) -> Any:
        """The content of a JSON file."""
        return checked(parse_json(self.bytes(name), name), shape, name)

    def table(self, name: str) -> pd.DataFrame:
        """The content of a Parquet file, within limits of rows, no two columns of one name."""
        import pyarrow.parquet

        content = self.bytes(name)
        try:
            opened = pyarrow.parquet.ParquetFile(BytesIO(content))
            rows, columns = opened.metadata.num_rows, opened.schema_arrow.names
            if rows > _MOST_ROWS or len(set(columns)) < len(columns):
                raise DamagedRun(f"{name} has {rows:,} rows and the columns {printable(', '.join(columns))}")
            return opened.read().to_pandas()
        except DamagedRun:
            raise
        except Exception as error:  # Arrow and pandas raise anything on damaged tables
            raise DamagedRun(f"{name} cannot be read: {reason(error)}") from error

    def check_sizes(self) -> None:
        """Look whether the files are there in the sizes that status.json notes, without reading them."""
        for name, made in self.status.get("files", {}).items():
            try:
                size = (self.folder / name).lstat().st_size
            except OSError as error:
                raise DamagedRun(f"{name} is missing") from error
            if size != made["bytes"]:
                raise DamagedRun(f"{name} is not what the finished run wrote: {size:,} bytes, not {made['bytes']:,}")

    def bytes(self, name: str) -> bytes:
        """The content of a regular file, compared with what status.json says the finished run wrote."""
        content = regular_bytes(self.folder / name)
        if name != "status.json" and self.status.get("state") == "done":
            made = self.status.get("files", {}).get(name)
            if made is not None and made["sha256"] != hashlib.sha256(content).hexdigest():
                raise DamagedRun(f"{name} is not what the finished run wrote")
        return content


def settings_of(folder: Path) -> dict[str, Any]:
    """A run's config.yaml, ready to be composed again: `${` in it is text, since all interpolations are resolved.

    Raises:
        ConfigError: there is none, or it holds no settings.
    """
    try:
        return _literal(dict(FolderReader(folder).config))
    except (OSError, DamagedRun) as error:
        raise ConfigError(f"{folder}: no run's config.yaml can be read there ({error})") from error


def _literal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _literal(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_literal(entry) for entry in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
