"""The numbers of a run's files beside scores.parquet, as its evidence gives them, and as the files have them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from iclgd.common.records import Evidence
from iclgd.config import Config
from iclgd.evidence.gather import gather
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.outcome import means_so_far, outcome
from iclgd.runs.folder import RunFolder
from iclgd.runs.schema import Status, read

TOLERANCE = 1e-3  # of a single value, beyond what rounding explains
SHOWN = ("trajectory.parquet", "jitter.json")  # what some runs have, and what is computed from all queries
TABLES = ("gradient_norms.parquet", "weight_updates.parquet", "losses.parquet")  # the same whatever is asked
_FACTS = ("diverged", "diverged_at", "unstable")


def taken(lab: Laboratory, whole: bool) -> tuple[Evidence, dict[str, float]]:
    """The evidence, and the numbers of the run's files but scores.parquet, by FILE/PLACE.

    `whole` says whether all of the run's queries are asked; otherwise only those numbers are given that do not depend
    on them.
    """
    so_far: list[Any] = []
    evidence = gather(lab, (lambda step, now: so_far.extend(means_so_far(lab.config, step, now))) if whole else None)
    jitter = lab.config.runtime.jitter
    if not whole:
        lab = replace(lab, config=replace(lab.config, runtime=replace(lab.config.runtime, jitter=0)))
    made = outcome(lab, evidence, so_far)
    judged = whole or not jitter or made.facts["unstable"]  # repeats, which may decide it, take all queries
    facts = {name: made.facts[name] for name in _FACTS if name != "unstable" or judged}
    files = {name: made.files[name] for name in made.files if whole or name in TABLES}
    files.pop("scores.parquet", None)
    return evidence, flat({**files, "status.json": facts})


def of_all(config: Config) -> list[str]:
    """Which files of `SHOWN` a run may have."""
    return [name for name, count in zip(SHOWN, (config.metric.every, config.runtime.jitter), strict=True) if count]


def read_numbers(folder: RunFolder, status: Status, name: str) -> dict[str, float]:
    """The numbers of one of the run's files, by FILE/PLACE.

    Raises:
        DamagedRun: it is missing or cannot be read.
    """
    if name == "status.json":
        return flat({name: {fact: status.facts.get(fact) for fact in _FACTS}})
    return flat({name: read(folder.path / name)})


def flat(content: Any, path: str = "") -> dict[str, float]:
    """The numbers in nested content or tables, by path; texts are a part of the path, null is NaN."""
    if isinstance(content, pd.DataFrame):
        content = content.to_dict("list")
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if isinstance(content, dict):
        parts = (flat(each, f"{path}/{key}" if path else str(key)) for key, each in content.items())
        return {at: value for part in parts for at, value in part.items()}
    if isinstance(content, str):
        return {f"{path}={content}": 0.0}
    return {path: math.nan if content is None else float(content)}


def column(path: str) -> str:
    """The part of FILE/PLACE that a column of a table, or a list, has in common."""
    return path.rstrip("0123456789")


def apart(path: str, a: float, b: float) -> float:
    """How far two numbers of a file lie apart: in tables relative to themselves, since these may be small."""
    return float(distance(np.array(a), np.array(b), 1e-30 if path.startswith(TABLES) else 1.0))


def distance(a: np.ndarray, b: np.ndarray, least: float = 1.0) -> np.ndarray:
    """How far values lie apart, relative to the larger of the two or to `least`.

    Returns:
        0 where both are undefined or equal; infinity where one is undefined or one is infinite.
    """
    with np.errstate(invalid="ignore"):
        far = np.abs(a - b) / np.fmax(least, np.fmax(np.abs(a), np.abs(b)))
    return np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.where(np.isnan(far), np.inf, far))
