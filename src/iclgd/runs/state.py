"""Where a run stands: what status.json holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """Where a run stands. `stale` is never written: it is a running run whose process is gone."""

    running = "running"
    done = "done"
    failed = "failed"
    interrupted = "interrupted"
    stale = "stale"


@dataclass(frozen=True)
class Status:
    """status.json."""

    state: State  # what was last written; `RunFolder.state` also knows about processes that are gone
    run_id: str = ""  # the name of the run's content
    attempt: int = 1  # how many times the run was started
    # host, pid and start of the process that runs or ran it
    owner: dict[str, Any] = field(default_factory=dict)
    started_at: str | None = None  # wall-clock time, UTC, ISO 8601; so is `finished_at`
    finished_at: str | None = None
    # how long it took, or has taken until the last word from it, by a clock that cannot jump
    seconds: float | None = None
    progress: dict[str, Any] | None = None  # {"stage", "done", "total"} of a running run
    error: str | None = None  # the last line of the traceback
    traceback: str | None = None  # of a failed run
    # what the experiment noted, such as {"diverged": true, "diverged_at": 12}
    facts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # {name: {"bytes", "sha256"}} of a done run

    def as_dict(self) -> dict[str, Any]:
        """The content of status.json: facts stand beside the rest, empty entries are left out."""
        entries = {**dataclasses.asdict(self), "state": self.state.value}
        facts = entries.pop("facts")
        return {key: value for key, value in {**entries, **facts}.items() if value not in (None, "", {})}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Status:
        """The reverse of `as_dict`."""
        known = {entry.name for entry in dataclasses.fields(cls)} - {"facts", "state"}
        facts = {key: value for key, value in content.items() if key not in known and key != "state"}
        return cls(state=State(content["state"]), facts=facts, **{key: content[key] for key in known & set(content)})
