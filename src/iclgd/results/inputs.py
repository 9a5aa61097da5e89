"""Whether runs that are shown together were made from the same inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from iclgd.results.reading import FinishedRun
from iclgd.runs.inputs import INPUTS, SETTINGS_OF_KIND, kind_of
from iclgd.runs.schema import DamagedRun, read

_NAMED = 3


def mixed_inputs(runs: Iterable[FinishedRun]) -> str | None:
    """A sentence that names inputs in which runs differ, though no setting says so; None if there are none.

    Code, versions and the device are compared across all runs, any other input among the runs whose settings for it
    are equal. They differ where data, a model, code or versions changed between two commands that add to one sweep, or
    where it ran on a GPU and on a CPU. Draws and differences between them would then mean something else.
    """
    seen: dict[tuple[str, ...], str] = {}
    mixed: dict[str, None] = {}
    for run in runs:
        asked = {**run.settings, "runtime.dtype": run.config["runtime"]["dtype"]}  # not what auto came to
        groups = {
            starts: str([(key, value) for key, value in asked.items() if key.startswith(starts)])
            for starts in set(SETTINGS_OF_KIND.values())
        }
        for part, value in _fingerprint(run).items():
            settings = SETTINGS_OF_KIND.get(kind_of(part))
            if settings is not None and seen.setdefault((part, groups[settings]), value) != value:
                mixed[part] = None
    if not mixed:
        return None
    words = [part.removeprefix("code ") if part.startswith("code ") else f"the {part}" for part in mixed]
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return (
        f"not all of these runs were made from the same inputs: they differ in {', '.join(words[:_NAMED])}{more}; "
        "start the whole sweep again, which computes anew only what was made from other inputs"
    )


def _fingerprint(run: FinishedRun) -> dict[str, str]:
    """The content of fingerprint.json; empty where it cannot be read."""
    try:
        content: dict[str, Any] = read(run.folder / INPUTS, dict[str, Any])
    except DamagedRun:
        return {}
    return {part: str(value) for part, value in content.items()}
