"""Recordings that the runs and processes of a machine share, each under the key of its inputs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from iclgd.common import paths
from iclgd.config import RuntimeConfig
from iclgd.config.enumerations import CacheMode
from iclgd.runs.files import remove_leftovers, replacing

if TYPE_CHECKING:
    from iclgd.common.records import Recording

log = logging.getLogger(__name__)

_ABANDONED = 3600.0  # seconds after which a half-written file has no writer any more


def recordings_cache(runtime: RuntimeConfig) -> RecordingsCache:
    """The cache that a run's settings ask for."""
    limit = int(runtime.cache_gb * 1e9) if runtime.cache is CacheMode.auto else 0
    return RecordingsCache(paths.cache_folder() / "recordings", limit)


@dataclass(frozen=True)
class RecordingsCache:
    """Files of safetensors, of which the least recently used go first.

    Many processes may use one folder: the first to ask for a recording computes it and the others wait. Nothing that
    goes wrong here ends a run: a damaged file or a full disk costs time only, and the log says so.
    """

    folder: Path
    limit_bytes: int  # 0 keeps nothing

    def get_or_compute(self, key: str, compute: Callable[[], Recording]) -> tuple[Recording, bool]:
        """The recording for `key`, and whether it was there already."""
        if self.limit_bytes <= 0:
            return compute(), False
        path = self.folder / f"{key}.safetensors"
        with self._locked(key):
            recording = _read(path)
            if recording is not None:
                return recording, True
            recording = compute()
            self._store(path, recording)
            return recording, False

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Inside, no other process is here with this name; without a lock where the folder cannot be written."""
        from filelock import FileLock  # for start-up time

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
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def _store(self, path: Path, recording: Recording) -> None:
        from safetensors.torch import save_file  # imports PyTorch

        tensors = {name: tensor.contiguous() for name, tensor in recording.tensors().items()}
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size > self.limit_bytes:
            log.info("a recording of %.1f GB is not kept: runtime.cache_gb=%g", size / 1e9, self.limit_bytes / 1e9)
            return
        try:
            with replacing(path) as part:
                save_file(tensors, part)
            self._shrink()
        except Exception as error:  # safetensors has an exception of its own for a full disk
            log.warning("a recording could not be kept for other runs: %s", error)

    def _shrink(self) -> None:
        with self._locked("eviction"):
            remove_leftovers(self.folder, older_than=_ABANDONED)
            stats = {path: path.stat() for path in self.folder.glob("*.safetensors")}
            total = sum(stat.st_size for stat in stats.values())
            for path in sorted(stats, key=lambda path: stats[path].st_mtime_ns):
                if total <= self.limit_bytes:
                    break
                path.unlink(missing_ok=True)
                total -= stats[path].st_size


def _read(path: Path) -> Recording | None:
    """The recording in a file; None if there is none, or if it cannot be read, which the log then says."""
    from safetensors.torch import load_file  # imports PyTorch

    from iclgd.common.records import Recording

    if not path.is_file():
        return None
    try:
        recording = Recording(**load_file(path))
    except Exception as error:  # whatever a damaged file can cause
        log.warning("the shared recording %s is damaged (%s) and is computed again", path.name, error)
        return None
    with suppress(OSError):  # a read-only cache has no order of use
        os.utime(path)
    return recording
