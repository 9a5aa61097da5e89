"""The record of one command: its runs, on whatever machines they ran, and how each ended."""

from __future__ import annotations

import math
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iclgd.runs import files
from iclgd.runs.execute import Ending, Outcome
from iclgd.runs.folder import RunFolder
from iclgd.runs.process import is_alive, this_process
from iclgd.runs.schema import DamagedRun, read

VARIABLE = "ICLGD_INVOCATION"  # tells a worker which command it works for
_FOLDER = ".invocations"


@dataclass(frozen=True)
class Invocation:
    """One command's record: a folder with its plan and one small file for each run, written by whoever ran it."""

    folder: Path

    @classmethod
    def begin(cls, sweep: Path, total: int | None) -> Invocation:
        """Open the record of a sweep that starts now."""
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        invocation = cls(sweep.resolve() / _FOLDER / name)
        invocation._write("plan.json", {"total": total, **this_process()})
        return invocation

    @classmethod
    def current(cls) -> Invocation | None:
        """The command that this process works for; None in a single run."""
        named = os.environ.get(VARIABLE)
        return cls(Path(named)) if named else None

    @classmethod
    def latest(cls, sweep: Path) -> Invocation | None:
        """The command that last started this sweep."""
        plans = sorted((sweep / _FOLDER).glob("*/plan.json"), key=lambda path: path.lstat().st_mtime_ns)
        return cls(plans[-1].parent) if plans else None

    def total(self) -> int | None:
        """How many runs were planned, if that was known."""
        return self._read(self.folder / "plan.json").get("total")

    def is_own(self) -> bool:
        """Whether this process is the command itself and not one of its workers."""
        own = this_process()
        plan = self._read(self.folder / "plan.json")
        return all(plan.get(key) == own[key] for key in own)

    def is_over(self) -> bool:
        """Whether the command's process is gone."""
        return is_alive(self._read(self.folder / "plan.json")) is False

    def mark(self, number: int, outcome: Outcome | None, folder: Path) -> None:
        """Record that a run begins (no outcome yet) or how it ended."""
        entry = {"run": folder.name, "ending": outcome.ending if outcome else None}
        if outcome is not None:
            entry |= {"message": outcome.message, "objective": outcome.objective}
        self._write(f"{number:06d}.json", entry)

    def outcomes(self) -> list[Outcome]:
        """How the runs ended, in job order; a run that began and has no end is interrupted."""
        found = []
        for path in sorted(self.folder.glob("[0-9]*.json")):
            entry = self._read(path)
            if "run" not in entry:
                continue
            ending, value = Ending(entry.get("ending") or Ending.interrupted), entry.get("objective")
            objective = math.nan if value is None else value
            found.append(Outcome(ending, self.folder.parents[1] / entry["run"], entry.get("message", ""), objective))
        return found

    def count(self) -> tuple[int, int]:
        """How many runs have ended, and how many of these did not succeed."""
        entries = [self._read(path).get("ending") for path in self.folder.glob("[0-9]*.json")]
        ended = [entry for entry in entries if entry]
        return len(ended), sum(entry not in (Ending.done, Ending.skipped) for entry in ended)

    def mark_cut_off(self) -> None:
        """Say `interrupted` in the folder of each run that began and whose process is gone; no claim of it stays."""
        for outcome in self.outcomes():
            RunFolder(outcome.folder).mark_cut_off()

    def _write(self, name: str, content: object) -> None:
        files.write_text(self.folder / name, files.to_json(content))

    def _read(self, path: Path) -> dict:
        try:
            return read(path, dict[str, Any])
        except DamagedRun:
            return {}
