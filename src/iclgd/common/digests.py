"""SHA-256 of files. A large file is read once: its digest is remembered by path, size, time stamps and inode."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from iclgd.common import paths

Stamp = tuple[int, int, int, int]

_SMALL = 1 << 18  # bytes that are read faster than remembered
_UNSETTLED = 2_000_000_000  # ns: a file changed so lately may change again within one tick of its clock, unseen

_known: dict[str, tuple[Stamp, str]] = {}


def stamp_of(path: Path) -> Stamp:
    """What changes whenever a file is written: size, time of its content, time of its entry, inode."""
    entry = path.stat()
    return entry.st_size, entry.st_mtime_ns, entry.st_ctime_ns, entry.st_ino


def is_settled(stamp: Stamp) -> bool:
    """Whether a file with this stamp could not be written again without its stamp changing."""
    return time.time_ns() - max(stamp[1], stamp[2]) > _UNSETTLED


def digest_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    stamp, name = stamp_of(path), str(path.resolve())
    if stamp[0] <= _SMALL:
        return _read(path)
    note = paths.cache_folder() / "digests" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"
    for stamped, digest in (_known.get(name, (None, "")), _noted(note)):
        if stamped == stamp:
            _known[name] = (stamp, digest)
            return digest
    digest = _read(path)
    if is_settled(stamp) and stamp_of(path) == stamp:
        _known[name] = (stamp, digest)
        _note(note, stamp, digest)
    return digest


def digest_of_text(*texts: str) -> str:
    """The SHA-256 of texts, one after the other."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


def _read(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _noted(note: Path) -> tuple[Sequence[int] | None, str]:
    try:
        *stamp, digest = json.loads(note.read_text(encoding="utf-8"))
        return tuple(stamp), str(digest)
    except (OSError, ValueError, TypeError):
        return None, ""


def _note(note: Path, stamp: Stamp, digest: str) -> None:
    """Whole or not at all; a cache that cannot be written costs time only."""
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=note.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump([*stamp, digest], stream)
        os.replace(part, note)
