"""Files that nobody ever reads half of: written beside their place, synced, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_PART = ".part-"


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[Path]:
    """A path beside `path`, with the same suffix, that takes its place when the block ends well and vanishes if not.

    Args:
        path: the file to write or replace; its folder is made.
        sync: also wait until the disk has it, so that a power cut cannot leave an empty file under the final name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{_PART}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield part
        if sync:
            _sync(part)
        again(lambda: os.replace(part, path))
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if sync:
        _sync(path.parent)


def write_text(path: Path, text: str, sync: bool = False) -> Path:
    """Write a text, its newlines as they are; returns the path. What can be made again at any time is not synced."""
    with replacing(path, sync) as part:
        part.write_text(text, encoding="utf-8", newline="")
    return path


def refuse_link_out(folder: Path, name: str) -> None:
    """Refuse to write where a link inside the folder leads out of it; the file itself is replaced, never followed.

    Args:
        folder: what the user named; it may be a link itself.
        name: the file's path inside it.

    Raises:
        OSError: naming the link.
    """
    root, parent = folder.resolve(), (folder / name).parent
    for place in (parent, folder / name) if (folder / name).is_dir() else (parent,):
        if not place.resolve().is_relative_to(root):
            raise OSError(errno.EPERM, "a link leads out of the folder that was named; remove it", str(place))


def again(call: Callable[[], T], retries: int = 2) -> T:
    """What the call returns, tried anew where a network folder's handle went stale: opening it again is the remedy."""
    try:
        return call()
    except OSError as error:
        if error.errno != errno.ESTALE or not retries:
            raise
    return again(call, retries - 1)


def _sync(path: Path) -> None:
    handle = again(lambda: os.open(path, os.O_RDONLY))
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path, older_than: float = 0.0) -> list[str]:
    """Delete what killed writers left half-written.

    Args:
        folder: searched with all below it; the caller must be its only writer, or wait long enough.
        older_than: only what was not touched for so many seconds.

    Returns:
        The names of what is gone.
    """
    gone = []
    for path in sorted(folder.rglob(f"{_PART}*")):
        with suppress(FileNotFoundError):
            if not older_than or time.time() - path.stat().st_mtime > older_than:
                path.unlink()
                gone.append(path.name)
    return gone


def plain(content: Any) -> Any:
    """Content as JSON has it: tuples as lists, numpy scalars as numbers, NaN and infinities null; whole keys stay."""
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


def from_json(text: str) -> Any:
    """What strict JSON says."""
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with again(lambda: path.open("rb")) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check_readable(path: Path) -> None:
    """Read a file the way its readers will.

    Raises:
        ValueError: its content is not what its suffix says; the message names the file.
        OSError: it cannot be read.
    """
    try:
        again(lambda: _READERS.get(path.suffix, _read_bytes)(path))
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path} cannot be read back: {error}") from error


def _read_bytes(path: Path) -> None:
    with path.open("rb") as handle:
        while handle.read(1 << 20):
            pass


def _read_json(path: Path) -> None:
    from_json(path.read_text(encoding="utf-8"))


def _read_yaml(path: Path) -> None:
    import yaml

    yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # 10 times as fast


def _read_parquet(path: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.read_table(path)


def _read_safetensors(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as tensors:  # opening checks header and length
        list(tensors.keys())


_READERS = {
    ".json": _read_json,
    ".yaml": _read_yaml,
    ".parquet": _read_parquet,
    ".safetensors": _read_safetensors,
}
