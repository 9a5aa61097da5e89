"""Files that nobody ever reads half of: written beside their final path, then renamed."""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_PART = ".part-"


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
