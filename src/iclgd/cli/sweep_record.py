"""The record of a sweep's command: how each of its runs ended, in whatever process it ran."""

from __future__ import annotations

import logging
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from iclgd.runs import files
from iclgd.runs.execute import Ending, Outcome
from iclgd.runs.files import DamagedRun, read

log = logging.getLogger(__name__)

VARIABLE = "ICLGD_SWEEP_RECORD"  # names the record's folder to the workers of a sweep
_FOLDER = ".commands"


@dataclass(frozen=True)
class SweepRecord:
    """A folder with one small file for each run that has begun, written by the process that runs it.

    status.json does not say it: a skipped run keeps the status of an earlier command, and a refused one has none.
    """

    folder: Path

    @classmethod
    def begin(cls, sweep: Path, total: int | None) -> SweepRecord:
        """Open the record of a sweep of `total` runs, if that is known."""
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        record = cls(sweep.resolve() / _FOLDER / name)
        files.write_text(record.folder / "total.json", files.to_json(total))
        return record

    @classmethod
    def current(cls) -> SweepRecord | None:
        """The record of the sweep that this process works for; None in a single run."""
        folder = os.environ.get(VARIABLE)
        return cls(Path(folder)) if folder else None

    @classmethod
    def latest(cls, sweep: Path) -> SweepRecord | None:
        """The record of the command that last started this sweep."""
        records = sorted((sweep / _FOLDER).glob("*/total.json"))
        return cls(records[-1].parent) if records else None

    def total(self) -> int | None:
        """How many runs were planned; None if that was not known or cannot be read, as after a full disk."""
        try:
            return read(self.folder / "total.json", int | None)
        except DamagedRun:
            return None

    def write(self, number: int, outcome: Outcome) -> None:
        """Record how a run ended, or that it counts as interrupted until it has."""
        content = {"run": outcome.folder.name, "ending": outcome.ending, "message": outcome.message}
        try:
            files.write_text(self.folder / f"{number:06d}.json", files.to_json(content))
        except OSError as error:
            log.error("the end of run %s could not be recorded for the command: %s", outcome.folder.name, error)

    def outcomes(self) -> list[Outcome]:
        """How the runs ended that have begun, in the order in which they were planned."""
        contents = [read(path, dict[str, str]) for path in sorted(self.folder.glob("[0-9]*.json"))]
        sweep = self.folder.parents[1]
        return [Outcome(Ending(each["ending"]), sweep / each["run"], each["message"]) for each in contents]
