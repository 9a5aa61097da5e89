"""A run's folder: what the run leaves behind, its status, and whether it is complete."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from iclgd.common.digests import sha256
from iclgd.common.printable import printable, without_secrets
from iclgd.runs import files
from iclgd.runs.files import DamagedRun, State, Status, read
from iclgd.runs.progress import Formatter

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

EARLIER = "earlier"  # results that were made from other inputs, one folder each, numbered
_STATUS, _LOG, _LOCK = "status.json", "run.log", ".claim"
_DATA = (".json", ".yaml", ".parquet", ".safetensors", ".patch")  # what a run leaves
_TENSORS = ".safetensors"  # gigabytes; of these only the size is compared
_SILENCE = 3600.0  # seconds after which a run of another host, whose locks are perhaps not seen here, is stale


class RunFolder:
    """One run's folder: every file is written beside its final path and renamed; `done` comes last."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._status: Status | None = None
        self._began = 0.0

    # Writing

    def write(self, name: str, content: Any) -> None:
        """Write a file as its suffix says: strict JSON (NaN as null), YAML, a frame as Parquet, or else text."""
        path = self.path / name
        if path.suffix == ".parquet":
            with files.replacing(path) as part:
                content.to_parquet(part, index=False)
        elif path.suffix == ".json":
            files.write_text(path, files.to_json(content))
        elif path.suffix == ".yaml":
            files.write_text(path, yaml.safe_dump(files.plain(content), sort_keys=False, allow_unicode=True))
        else:
            files.write_text(path, content)

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write tensors as safetensors, with metadata beside them."""
        from safetensors.torch import save_file

        with files.replacing(self.path / name) as part:
            part.touch()
            mode = part.stat().st_mode  # what the user's umask gives; save_file makes files for their owner alone
            contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            save_file(contiguous, part, metadata={"format": "pt", **metadata})
            part.chmod(mode)

    def read_json(self, name: str) -> Any:
        """Read what `write` wrote; raises `DamagedRun` if it is missing or cannot be read."""
        return read(self.path / name)

    # The life of a run

    def status(self) -> Status | None:
        """The content of status.json; None, with a warning if it is there, where it cannot be read."""
        try:
            return read(self.path / _STATUS) if (self.path / _STATUS).exists() else None
        except DamagedRun as error:
            log.warning("%s: %s; the run counts as never started", printable(str(self.path), 400), error)
            return None

    def state(self) -> State | None:
        """The present state of the run; None if it never started."""
        status = self.status()
        return None if status is None else self.state_of(status)

    def state_of(self, status: Status) -> State:
        """The present state of a run with this status; a running run is stale if no process holds its lock."""
        if status.state is not State.running or self._is_claimed():
            return status.state
        elsewhere = status.owner.get("host") != socket.gethostname()
        silent = time.time() - (self.path / _STATUS).stat().st_mtime > _SILENCE
        return State.running if elsewhere and not silent else State.stale

    def _is_claimed(self) -> bool:
        """Whether a process holds the lock; the operating system releases it when the process ends in any way."""
        from filelock import FileLock, Timeout

        if not (self.path / _LOCK).exists():
            return False
        try:
            with FileLock(self.path / _LOCK, blocking=False):
                return False
        except (Timeout, OSError):  # where nothing can be locked, its file stands for the lock
            return True

    def is_done(self) -> bool:
        """Whether the run finished and its files are unchanged since; the log names a file that is not."""
        status = self.status()
        if status is None or status.state is not State.done:
            return False
        damaged = self.damaged_file(status)
        if damaged is not None:
            path = printable(str(self.path / damaged), 400)
            log.warning("%s is not what the finished run wrote; the run will be computed again", path)
        return damaged is None

    def damaged_file(self, status: Status) -> str | None:
        """The first file that is not what the finished run wrote, by size and digest (of tensors, size); else None."""
        for name, recorded in status.files.items():
            path = self.path / name
            if not path.is_file() or path.stat().st_size != recorded["bytes"]:
                return name
            if path.suffix != _TENSORS and sha256(path) != recorded["sha256"]:
                return name
        return None

    def retire(self) -> Path:
        """Move the results, with their log and W&B's files, out of the way of new ones; only inside `claim`.

        status.json goes last, so that a process that is killed here leaves a folder of which the rest is moved later.

        Returns:
            The new folder: `earlier/NUMBER`.
        """
        folders = (self.path / EARLIER / str(number) for number in itertools.count(1))
        folder = next(folder for folder in folders if not (folder / _STATUS).exists())
        folder.mkdir(parents=True, exist_ok=True)
        for name in (*(path.name for path in self._data_files()), _LOG, "wandb", _STATUS):
            if (self.path / name).exists():
                os.replace(self.path / name, folder / name)
        return folder

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Inside, no other process computes this run; waits for one that does. A killed owner's claim dies with it."""
        from filelock import FileLock, Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / _LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            log.info("%s is being computed by another process; waiting for it", self.path)
            lock.acquire()
        except OSError as error:  # some network file systems have no locks
            log.warning("%s cannot be locked (%s): no second command should run there meanwhile", self.path, error)
        try:
            yield
        finally:
            (self.path / _LOCK).unlink(missing_ok=True)  # while held: who waits for it sees that and opens a new one
            lock.release()

    def start(self, run_id: str) -> None:
        """Mark the run as running, by this process, and delete what an earlier attempt left; only inside `claim`."""
        files.remove_leftovers(self.path)
        before, self._began = self.status(), time.monotonic()
        attempt, owner = before.attempt + 1 if before else 1, {"host": socket.gethostname(), "pid": os.getpid()}
        self._write_status(
            Status(state=State.running, run_id=run_id, attempt=attempt, owner=owner, started_at=_utc_now())
        )
        for path in self._data_files():
            path.unlink()

    def note(self, **facts: Any) -> None:
        """Keep facts about the run in status.json, such as `diverged=True, diverged_at=12`."""
        self._update(**files.plain(facts))

    def report_progress(self, stage: str, done: int, total: int) -> None:
        """Write to status.json how far the run is."""
        self._update_if_possible(progress={"stage": stage, "done": done, "total": total}, seconds=self._elapsed())

    def finish(self) -> None:
        """Mark the run as done, with the size and digest of each of its files."""
        digests = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in self._data_files()}
        self._update(**self._end(State.done), files=digests)

    def fail(self, error: BaseException) -> None:
        """Mark the run as failed; the traceback is in run.log."""
        message = without_secrets(f"{type(error).__name__}: {error}")
        self._update_if_possible(**self._end(State.failed), error=message)

    def interrupt(self) -> None:
        """Mark the run as stopped by a signal; the next start runs it again."""
        self._update_if_possible(**self._end(State.interrupted))

    @contextmanager
    def log_file(self) -> Iterator[None]:
        """Inside, everything that is logged also goes to run.log."""
        self.path.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(self.path / _LOG, encoding="utf-8", errors="backslashreplace")
        handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)
            handler.close()

    def _data_files(self) -> list[Path]:
        """The run's data files; a user's own notes and plots are not among them."""
        paths = (path for path in sorted(self.path.glob("[!.]*")) if path.suffix in _DATA and path.name != _STATUS)
        return [path for path in paths if path.is_file()]

    def _elapsed(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def _end(self, state: State) -> dict[str, Any]:
        return {"state": state, "finished_at": _utc_now(), "seconds": self._elapsed(), "progress": None}

    def _update(self, **fields: Any) -> None:
        if self._status is not None:  # else not even its start could be written
            self._write_status(self._status.model_copy(update=fields))

    def _update_if_possible(self, **fields: Any) -> None:
        """On a full disk the run stays `running` without a process, which is as good: the next start runs it again."""
        try:
            self._update(**fields)
        except OSError as error:
            log.error("%s could not be written: %s", self.path / _STATUS, error)

    def _write_status(self, status: Status) -> None:
        self.write(_STATUS, status.as_dict())
        self._status = status


def run_folders(folder: Path) -> list[Path]:
    """The folder itself if it is a run's, else those of all runs below it; no earlier results, nothing hidden."""
    if (folder / _STATUS).exists():
        return [folder]
    inside = {path.parent: path.relative_to(folder).parts for path in folder.rglob(_STATUS)}
    return sorted(p for p, parts in inside.items() if not any(x == EARLIER or x.startswith(".") for x in parts))


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
