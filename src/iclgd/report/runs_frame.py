"""What did the finished runs find? Reads run folders; a broken or unfinished one is listed, never fatal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from iclgd.report.finished_run import NAN, BrokenRun, Estimate, FinishedRun, ReportError, first_line, read_json
from iclgd.runs.folder import EARLIER

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Runs:
    """What a look into folders found.

    Attributes:
        finished: every readable run whose status is `done`, by path.
        left_out: the other run folders, each with the reason.
    """

    finished: tuple[FinishedRun, ...]
    left_out: tuple[tuple[Path, str], ...]


def read_runs(folders: Iterable[Path]) -> Runs:
    """The finished runs in or below the given folders.

    Raises:
        ReportError: a folder does not exist.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"{folder} is no folder: name a run folder or a sweep's, such as outputs/first_look")
        for status in folder.rglob("status.json"):
            hidden = any(part.startswith(".") or part == EARLIER for part in status.relative_to(folder).parts)
            if not hidden:
                found.setdefault(status.parent.resolve(), status.parent)
    finished: dict[object, FinishedRun] = {}
    left_out = []
    for folder in sorted(found.values()):
        try:
            run = read_run(folder)
        except BrokenRun as error:
            left_out.append((folder, str(error)))
            continue
        first = finished.setdefault(run.status.get("run_id") or folder, run)
        if first is not run:  # made in another sweep too: counted twice it would pass for a second draw
            left_out.append((folder, f"is the same run as {first.folder}"))
    return Runs(tuple(finished.values()), tuple(left_out))


def read_run(folder: Path) -> FinishedRun:
    """One finished run.

    Raises:
        BrokenRun: it is not finished, or a file of it is missing or cannot be read.
    """
    status = read_json(folder / "status.json")
    state = status.get("state")
    if state != "done":
        reason = str(status.get("error") or "").strip().splitlines()
        raise BrokenRun(f"is {state}" + (f": {reason[0]}" if reason else ""))
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise BrokenRun(f"config.yaml cannot be read: {first_line(error)}") from error
    for section, key in (
        ("task", "name"),
        ("task", "shots"),
        ("model", "name"),
        ("finetune", "name"),
        ("finetune", "lr"),
    ):
        if not isinstance(config, dict) or key not in (config.get(section) or {}):
            raise BrokenRun(f"config.yaml has no {section}.{key}")
    run = FinishedRun(folder, config, read_json(folder / "environment.json"), read_json(folder / "scores.json"), status)
    try:
        _ = run.lr, run.shots, run.seed, run.permutation, tidy([run])
    except (TypeError, ValueError, AttributeError) as error:
        raise BrokenRun(f"config.yaml or scores.json holds something unexpected: {first_line(error)}") from error
    return run


def tidy(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """One row for each run, score and layer; `layer` is None for the mean over all layers."""
    rows = []
    for run in runs:
        for name in run.entries:
            whole = run.estimate(name)
            rows.append(run.identity() | {"score": name, "layer": None} | vars(whole))
            for layer, mean in enumerate(run.layers(name)):
                rows.append(run.identity() | {"score": name, "layer": layer} | vars(Estimate(mean, NAN, NAN)))
    return rows


def frame(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """The same as a frame: run, task, model, weights, variant, lr, shots, seed, permutation, score, layer, mean, ..."""
    import pandas as pd

    return pd.DataFrame(tidy(runs))


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config as dotted keys; lists stay whole."""
    keys: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            keys |= flat(value, f"{prefix}{key}.")
        else:
            keys[f"{prefix}{key}"] = value
    return keys
