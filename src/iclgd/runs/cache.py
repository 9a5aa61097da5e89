"""Recordings by content, shared by all runs and processes of a machine."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from iclgd.common import paths
from iclgd.config import RuntimeConfig
from iclgd.config.enumerations import CacheMode
from iclgd.runs.files import remove_leftovers, replacing

if TYPE_CHECKING:
    from torch import Tensor

    from iclgd.common.records import Recording

log = logging.getLogger(__name__)

_IN_MEMORY = 1 << 29  # bytes of recordings that a process keeps at hand, at most
_ABANDONED = 3600.0  # seconds after which a half-written entry has no writer any more


def recordings_cache(runtime: RuntimeConfig) -> RecordingsCache:
    """The cache that a run's settings ask for; the same object for the same settings, so that it also serves memory."""
    limit = int(runtime.cache_gb * 1e9) if runtime.cache is CacheMode.auto else 0
    return _opened(paths.cache_folder() / "recordings", limit)


@lru_cache(maxsize=4)
def _opened(folder: Path, limit_bytes: int) -> RecordingsCache:
    return RecordingsCache(folder, limit_bytes)


class RecordingsCache:
    """Recordings under the hash of what they depend on: safetensors, checksummed, least recently used first to go.

    Many processes may use one folder: the first to ask for a recording computes it and the others wait. Nothing that
    goes wrong here ends a run: a damaged entry or a full disk costs time only, and is said in the log. A limit of 0
    bytes keeps nothing.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._recent: OrderedDict[str, Recording] = OrderedDict()

    def get_or_compute(self, key: str, compute: Callable[[], Recording]) -> tuple[Recording, bool]:
        """The recording for `key`.

        Returns:
            The recording, whose tensors must not be changed, and whether it was there already.
        """
        if self.limit_bytes <= 0:
            return compute(), False
        if key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key], True
        path = self.folder / f"{key}.safetensors"
        with self._locked(key):
            recording = _read(path)
            known = recording is not None
            if recording is None:
                recording = compute()
                self._store(path, recording)
        self._remember(key, recording)
        return recording, known

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Alone with this name among all processes; without a lock where the folder cannot be written."""
        from filelock import FileLock

        lock = FileLock(self.folder / f".{name}.lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            log.warning("recordings cannot be shared: %s", error)
            yield
            return
        try:
            yield
        finally:
            (self.folder / f".{name}.lock").unlink(missing_ok=True)
            lock.release()

    def _store(self, path: Path, recording: Recording) -> None:
        from safetensors.torch import save_file

        tensors, size = {name: one.contiguous() for name, one in recording.tensors().items()}, _size(recording)
        if size > self.limit_bytes:
            log.info("a recording of %.1f GB is not kept: runtime.cache_gb=%g", size / 1e9, self.limit_bytes / 1e9)
            return
        try:
            with replacing(path) as part:
                save_file(tensors, part, metadata={"sha256": _digest(tensors)})
            self._shrink()
        except Exception as error:  # safetensors has an exception of its own for a full disk
            log.warning("a recording could not be kept for other runs: %s", error)

    def _shrink(self) -> None:
        with self._locked("eviction"):
            remove_leftovers(self.folder, older_than=_ABANDONED)
            entries = []
            for path in self.folder.glob("*.safetensors"):
                with suppress(FileNotFoundError):
                    found = path.stat()
                    entries.append((found.st_mtime_ns, found.st_size, path))
            total = sum(size for _, size, _ in entries)
            for _, size, path in sorted(entries):
                if total <= self.limit_bytes:
                    break
                path.unlink(missing_ok=True)
                total -= size

    def _remember(self, name: str, recording: Recording) -> None:
        self._recent[name] = recording
        while len(self._recent) > 1 and sum(map(_size, self._recent.values())) > min(_IN_MEMORY, self.limit_bytes):
            self._recent.popitem(last=False)


def _read(path: Path) -> Recording | None:
    """The recording in a file; None if there is none, or if it is not what was written, which the log then says."""
    from safetensors import safe_open

    from iclgd.common.records import Recording

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
            stated = (stored.metadata() or {}).get("sha256")
        if stated != _digest(tensors):
            raise ValueError("its checksum is wrong")
        recording = Recording(**tensors)
    except Exception as error:  # whatever a damaged file can cause
        log.warning("the shared recording %s is damaged (%s) and is computed again", path.name, error)
        return None
    with suppress(OSError):  # a read-only cache has no order of use
        os.utime(path)
    return recording


def _size(recording: Recording) -> int:
    return sum(tensor.nbytes for tensor in recording.tensors().values())


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()
