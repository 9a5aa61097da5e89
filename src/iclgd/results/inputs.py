"""Whether runs that are shown together were made from the same inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from iclgd.results.reading import FinishedRun
from iclgd.runs.execute import FINGERPRINT
from iclgd.runs.schema import DamagedRun, read

# The kinds of parts of a fingerprint that are compared, and the settings with which each may differ.
_MAY_DIFFER_WITH = {
    "code": (),
    "version": (),
    "device": (),
    "dtype": ("model.", "runtime.dtype"),
    "model": ("model.",),
    "wording": ("model.", "task.", "protocol."),
    "queries": ("task.",),
    "demonstrations": ("task.", "seed"),
    "training": ("task.", "finetune.", "reference.", "metric.", "seed"),
    "calibration": ("task.", "finetune.", "metric.", "seed"),
}
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
            for starts in set(_MAY_DIFFER_WITH.values())
        }
        for part, value in _fingerprint(run).items():
            kind = part.partition(" ")[0]
            if kind in _MAY_DIFFER_WITH and seen.setdefault((part, groups[_MAY_DIFFER_WITH[kind]]), value) != value:
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
        content: dict[str, Any] = read(run.folder / FINGERPRINT, dict[str, Any])
    except DamagedRun:
        return {}
    return {part: str(value) for part, value in content.items()}
