"""SHA-256 of files and texts. A large file is read once: its digest is kept with its size, time stamps and inode."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from iclgd.common import paths

_SMALL = 1 << 18  # bytes that are read faster than remembered


def digest_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    stat = path.stat()
    if stat.st_size <= _SMALL:
        return sha256(path)
    # Whatever writes a file changes its ctime, though its other times are put back.
    stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    note = paths.cache_folder() / "digests" / f"{digest_of_text(str(path.resolve()))[:32]}.json"
    with suppress(OSError, ValueError):
        *stamped, digest = json.loads(note.read_text("utf-8"))
        if stamped == stamp:
            return digest
    digest = sha256(path)
    with suppress(OSError):  # a cache that cannot be written costs time only
        note.parent.mkdir(parents=True, exist_ok=True)
        part = note.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps([*stamp, digest]), encoding="utf-8")
        part.replace(note)
    return digest


def digest_of_text(*texts: str) -> str:
    """The SHA-256 of texts, one after the other."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """The same, read anew."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
