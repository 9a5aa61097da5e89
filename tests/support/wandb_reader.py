"""Reads back what W&B wrote to disk: a `.wandb` file is a LevelDB log of protobuf records after a header of 7 bytes."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BLOCK, _HEADER, _RECORD = 32768, 7, struct.Struct("<IHB")  # checksum, length, type


@dataclass
class Recorded:
    """One W&B run as its file has it."""

    path: Path
    run: Any = None
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    artifacts: list[Any] = field(default_factory=list)

    @property
    def config(self) -> dict[str, Any]:
        return {item.key: json.loads(item.value_json) for item in self.run.config.update}

    def curve(self, name: str, axis: str = "layer") -> list[float | None]:
        rows = [row for row in self.history if name in row]
        assert [row[axis] for row in rows] == sorted({row[axis] for row in rows})
        return [None if math.isnan(row[name]) else row[name] for row in rows]

    def table(self, name: str) -> list[dict[str, Any]]:
        [entry] = [row[name] for row in self.history if name in row]
        content = json.loads((self.path.parent / "files" / entry["path"]).read_text())
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def read_runs(folder: Path) -> list[Recorded]:
    """Every run under a folder, in the order of their names."""
    return [read(path) for path in sorted(folder.rglob("*.wandb"))]


def read(path: Path) -> Recorded:
    """One run; of a file that was cut off, what came before."""
    from wandb.proto import wandb_internal_pb2 as pb

    found = Recorded(path)
    for data in _records(path.read_bytes()):
        record = pb.Record()
        record.ParseFromString(data)
        match record.WhichOneof("record_type"):
            case "run":
                found.run = record.run
            case "history":
                found.history.append({})
                _put(found.history[-1], record.history.item)
            case "summary":
                _put(found.summary, record.summary.update)
            case "metric":
                found.metrics[record.metric.name] = record.metric
            case "artifact":
                found.artifacts.append(record.artifact)
            case "request" if record.request.WhichOneof("request_type") == "log_artifact":
                found.artifacts.append(record.request.log_artifact.artifact)
            case "exit":
                found.exit_code = record.exit.exit_code
    return found


def _put(entries: dict[str, Any], items: Iterable[Any]) -> None:
    for item in items:
        *path, last = item.nested_key or [item.key]
        place = entries
        for key in path:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)


def _records(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    position, parts = _HEADER, b""
    while position + _RECORD.size <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _RECORD.size:
            position += left
            continue
        _, length, kind = _RECORD.unpack_from(data, position)
        position += _RECORD.size
        parts += data[position : position + length]
        position += length
        if kind in (1, 4):  # whole, or last part
            yield parts
            parts = b""
