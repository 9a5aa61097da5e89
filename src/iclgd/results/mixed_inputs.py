"""A warning where runs that are compared were not made from the same inputs."""

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
    first: dict[tuple[str, str], Any] = {}
    mixed: dict[str, None] = {}
    for run in runs:
        asked = {**run.settings, "runtime.dtype": run.config["runtime"]["dtype"]}  # not what auto came to
        for part, value in _inputs(run).items():
            prefixes = SETTINGS_OF_KIND.get(kind_of(part))
            if prefixes is None:
                continue
            group = str([(key, asked[key]) for key in asked if key.startswith(prefixes)])
            if first.setdefault((part, group), value) != value:
                mixed[part.removeprefix("code ") if part.startswith("code ") else f"the {part}"] = None
    if not mixed:
        return None
    more = f" and {len(mixed) - _NAMED} more" if len(mixed) > _NAMED else ""
    return (
        f"not all of these runs were made from the same inputs: they differ in {', '.join([*mixed][:_NAMED])}{more}; "
        "start the whole sweep again, which computes anew only what was made from other inputs"
    )


def _inputs(run: FinishedRun) -> dict[str, Any]:
    """The recorded inputs of a run; empty where it cannot be read."""
    try:
        return read(run.folder / INPUTS, dict[str, Any])
    except DamagedRun:
        return {}
