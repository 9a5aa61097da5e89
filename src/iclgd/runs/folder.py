"""A run's folder: what the run leaves behind, its status, and whether it is whole."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.common.printable import printable
from iclgd.runs import files
from iclgd.runs.parsing import DamagedRun, parse_json, regular_bytes
from iclgd.runs.process import is_alive, this_process
from iclgd.runs.reader import FolderReader
from iclgd.runs.secrets import Formatter, without_secrets
from iclgd.runs.state import State, Status

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor

log = logging.getLogger(__name__)

EARLIER = "earlier"  # results that were made from other inputs, one folder each, numbered
_STATUS, _LOG, _CLAIM = "status.json", "run.log", ".claim"
_DATA = (".json", ".yaml", ".parquet", ".safetensors", ".patch")  # what a run leaves
_SMALL = 1 << 20  # bytes; larger files are re-read only when they are made
_SILENCE = 3600.0  # seconds after which a run on another host counts as gone


class RunFolder:
    """One run's folder: every file is written beside its place and renamed; `done` comes last."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._status: Status | None = None
        self._began = 0.0
        self._before: dict[str, tuple[int, int]] = {}

    # Writing

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """A path to write to that becomes `name` when the block ends well.

        Raises:
            OSError: a link would lead out of the folder.
        """
        files.refuse_link_out(self.path, name)
        return files.replacing(self.path / name)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file."""
        files.refuse_link_out(self.path, name)
        files.write_text(self.path / name, text, sync=True)

    def write_json(self, name: str, content: Any) -> None:
        """Write strict JSON: the same bytes for the same content, NaN as null."""
        self.write_text(name, files.to_json(content))

    def write_yaml(self, name: str, content: Mapping[str, Any]) -> None:
        """Write YAML of plain values, keys in the order given."""
        import yaml

        self.write_text(name, yaml.safe_dump(files.plain(content), sort_keys=False, allow_unicode=True))

    def write_table(self, name: str, frame: DataFrame) -> None:
        """Write a table as Parquet, without its index."""
        with self.writing(name) as part:
            frame.to_parquet(part, index=False)

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write tensors as safetensors, with metadata beside them."""
        from safetensors.torch import save_file

        with self.writing(name) as part:
            part.touch()
            mode = part.stat().st_mode  # what the user's umask gives; save_file makes files for their owner alone
            whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            save_file(whole, part, metadata={"format": "pt", **metadata})
            part.chmod(mode)

    def read_json(self, name: str) -> Any:
        """Read what `write_json` wrote.

        Raises:
            DamagedRun: it cannot be read; the message names the file.
            FileNotFoundError: there is none.
        """
        return parse_json(regular_bytes(self.path / name), name)

    # The life of a run

    def status(self) -> Status | None:
        """What status.json says; None, with a warning, if it is absent or cannot be read."""
        try:
            return Status.from_dict(FolderReader(self.path).status)
        except FileNotFoundError:
            return None
        except DamagedRun as error:
            log.warning("%s: %s; the run counts as never started", printable(str(self.path), 400), error)
            return None

    def state(self) -> State | None:
        """Where the run stands now; None if it never started."""
        status = self.status()
        return None if status is None else self.state_of(status)

    def state_of(self, status: Status) -> State:
        """Where a run with this status stands now."""
        if status.state is not State.running:
            return status.state
        alive = is_alive(status.owner)
        if alive is None:
            alive = time.time() - (self.path / _STATUS).lstat().st_mtime < _SILENCE
        return State.running if alive else State.stale

    def is_done(self) -> bool:
        """Whether the run finished and its files are still what they were then; says so in the log if they are not."""
        status = self.status()
        if status is None or status.state is not State.done:
            return False
        if not status.files:  # every finished run has noted some
            place = self.path / _STATUS
            log.warning("%s does not say which files the run wrote; the run will be computed again", place)
            return False
        for name, made in status.files.items():
            path = self.path / name
            size = path.lstat().st_size if path.is_file() and not path.is_symlink() else -1
            if size != made["bytes"] or (size <= _SMALL and files.sha256(path) != made["sha256"]):
                log.warning("%s is not what the finished run wrote; the run will be computed again", path)
                return False
        return True

    def retire(self) -> Path:
        """Move the results, with their log and what W&B keeps beside them, out of the way of new ones; under the claim.

        status.json goes last, so that a process that is killed here leaves a folder of which the rest is moved later.

        Returns:
            Where they are now: `earlier/NUMBER`.
        """
        places = (self.path / EARLIER / str(number) for number in itertools.count(1))
        place = next(place for place in places if not (place / _STATUS).exists())
        for name in (*self._stamps(), _LOG, "wandb", _STATUS):
            source, target = self.path / name, place / name
            if source.exists():
                files.refuse_link_out(self.path, target.relative_to(self.path).as_posix())
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)
        return place

    @contextmanager
    def claim(self, wait: bool = True) -> Iterator[None]:
        """Inside, no other process computes this run; waits for one that does. A killed owner's claim dies with it.

        Raises:
            TimeoutError: another process computes it, and this one was not to wait.
        """
        from filelock import FileLock

        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / _CLAIM)
        try:
            lock.acquire(blocking=False)
        except TimeoutError:
            if not wait:
                raise
            log.info("%s is being computed by another process; waiting for it", self.path)
            lock.acquire()
        except OSError as error:  # some network file systems have no locks
            log.warning("%s cannot be locked (%s): no second command should run there meanwhile", self.path, error)
            (self.path / _CLAIM).unlink(missing_ok=True)
            yield
            return
        try:
            yield
        finally:
            (self.path / _CLAIM).unlink(missing_ok=True)  # while held: who waits for it sees that and opens a new one
            lock.release()

    def start(self, run_id: str) -> None:
        """Mark the run as running, by this process; only under the claim."""
        removed = files.remove_leftovers(self.path)
        if removed:
            log.info("removed what a killed process left half-written: %s", ", ".join(removed))
        before = self.status()
        self._before = self._stamps()
        self._began = time.monotonic()
        attempt = before.attempt + 1 if before else 1
        self._write_status(Status(State.running, run_id, attempt, owner=this_process(), started_at=_now()))

    def note(self, **facts: Any) -> None:
        """Keep facts about the run in status.json, such as `diverged=True, diverged_at=12`."""
        status = self._running()
        self._write_status(dataclasses.replace(status, facts={**status.facts, **files.plain(facts)}))

    def report_progress(self, stage: str, done: int, total: int) -> None:
        """Say in status.json how far the run is. A full disk does not end the run here."""
        progress = {"stage": stage, "done": done, "total": total}
        now = dataclasses.replace(self._running(), progress=progress, seconds=self._elapsed())
        try:
            self._write_status(now, sync=False)
        except OSError as error:
            log.warning("progress could not be written to %s: %s", self.path / _STATUS, error)

    def finish(self) -> None:
        """Read every file again and, if all are whole, mark the run as done.

        Raises:
            ValueError: a file cannot be read back.
            OSError: likewise.
        """
        made = {}
        for name, stamp in self._stamps().items():
            path = self.path / name
            if self._before.get(name) == stamp:  # an earlier attempt's
                path.unlink()
                continue
            files.check_readable(path)
            made[name] = {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
        self._end(State.done, files=made)

    def fail(self, error: BaseException) -> None:
        """Mark the run as failed and keep the traceback."""
        lines = "".join(traceback.format_exception(error))
        message = without_secrets(f"{type(error).__name__}: {error}")
        self._end(State.failed, error=message, traceback=without_secrets(lines))

    def interrupt(self) -> None:
        """Mark the run as stopped by a signal; the next start runs it again."""
        self._end(State.interrupted)

    def mark_cut_off(self) -> None:
        """Mark a run whose process is gone as interrupted, and clear away its claim and what it left half-written."""
        if self.state() is not State.stale and not (self.path / _CLAIM).exists():
            return
        with suppress(TimeoutError), self.claim(wait=False):
            status = self.status()
            if status is not None and self.state() is State.stale:
                files.remove_leftovers(self.path)
                self._write_status(dataclasses.replace(status, state=State.interrupted, progress=None))

    @contextmanager
    def log_file(self) -> Iterator[None]:
        """Inside, everything that is logged also goes to run.log."""
        self.path.mkdir(parents=True, exist_ok=True)
        if (self.path / _LOG).is_symlink() or not (self.path / _LOG).is_file():
            (self.path / _LOG).unlink(missing_ok=True)  # a link leads elsewhere, a pipe would be waited for
        handler = logging.FileHandler(self.path / _LOG, encoding="utf-8", errors="backslashreplace")
        handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)
            handler.close()

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """What tells whether a data file was written anew, by name; a user's own notes and plots are left alone."""
        found = [path for ending in _DATA for path in self.path.glob(f"*{ending}")]
        kept = [path for path in found if path.is_file() and not path.name.startswith(".") and path.name != _STATUS]
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(kept)}

    def _running(self) -> Status:
        if self._status is None:
            raise RuntimeError(f"{self.path} was not started: call start() first")
        return self._status

    def _elapsed(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def _end(self, state: State, **entries: Any) -> None:
        ended = {"state": state, "finished_at": _now(), "seconds": self._elapsed(), "progress": None}
        self._write_status(dataclasses.replace(self._running(), **ended, **entries))

    def _write_status(self, status: Status, sync: bool = True) -> None:
        files.write_text(self.path / _STATUS, files.to_json(status.as_dict()), sync)
        self._status = status


def run_folders(folder: Path) -> list[Path]:
    """The folder itself if it is a run's, else those of all runs below it; no earlier results, nothing hidden."""
    if (folder / _STATUS).exists():
        return [folder]
    inside = {path.parent: path.relative_to(folder).parts for path in folder.rglob(_STATUS)}
    return sorted(p for p, parts in inside.items() if not any(x == EARLIER or x.startswith(".") for x in parts))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
