"""The record of one sweep's command: its runs, in whatever processes they ran, and how each ended."""

from __future__ import annotations

import logging
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iclgd.runs import files
from iclgd.runs.execute import Ending, Outcome
from iclgd.runs.process import is_alive, this_process
from iclgd.runs.schema import DamagedRun, read

log = logging.getLogger(__name__)

VARIABLE = "ICLGD_INVOCATION"  # names the record's folder to the workers of a sweep
_FOLDER = ".invocations"


@dataclass(frozen=True)
class Invocation:
    """A folder with the command's plan and one small file for each run, written by the process that runs it."""

    folder: Path

    @classmethod
    def begin(cls, sweep: Path, total: int | None) -> Invocation:
        """Open the record of a sweep that starts now, of `total` runs if that is known."""
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        invocation = cls(sweep.resolve() / _FOLDER / name)
        invocation._write("plan.json", {"total": total, **this_process()})
        return invocation

    @classmethod
    def current(cls) -> Invocation | None:
        """The record of the sweep that this process works for; None in a single run."""
        folder = os.environ.get(VARIABLE)
        return cls(Path(folder)) if folder else None

    @classmethod
    def latest(cls, sweep: Path) -> Invocation | None:
        """The record of the command that last started this sweep."""
        plans = sorted((sweep / _FOLDER).glob("*/plan.json"), key=lambda path: path.lstat().st_mtime_ns)
        return cls(plans[-1].parent) if plans else None

    def total(self) -> int | None:
        """How many runs were planned, if that was known."""
        return self._read(self.folder / "plan.json").get("total")

    def is_over(self) -> bool:
        """Whether the command's process is gone."""
        return is_alive(self._read(self.folder / "plan.json")) is False

    def mark(self, number: int, outcome: Outcome | None, folder: Path) -> None:
        """Record that a run begins (no outcome yet) or how it ended."""
        record: dict[str, Any] = {"run": folder.name}
        if outcome is not None:
            record |= {"ending": outcome.ending, "message": outcome.message}
        try:
            self._write(f"{number:06d}.json", record)
        except OSError as error:
            log.error("the end of run %s could not be recorded for the command: %s", folder.name, error)

    def outcomes(self) -> list[Outcome]:
        """How the runs ended, in job order; a run that began and has no end is interrupted."""
        sweep = self.folder.parents[1]
        return [
            Outcome(Ending(record.get("ending", Ending.interrupted)), sweep / record["run"], record.get("message", ""))
            for record in self._records()
        ]

    def count(self) -> tuple[int, int]:
        """How many runs have ended, and how many of these did not succeed."""
        endings = [record["ending"] for record in self._records() if "ending" in record]
        return len(endings), sum(ending not in (Ending.done, Ending.skipped) for ending in endings)

    def _records(self) -> list[dict[str, Any]]:
        records = [self._read(path) for path in sorted(self.folder.glob("[0-9]*.json"))]
        return [record for record in records if "run" in record]

    def _write(self, name: str, content: object) -> None:
        files.write_text(self.folder / name, files.to_json(content))

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            return read(path, dict[str, Any])
        except DamagedRun:
            return {}
