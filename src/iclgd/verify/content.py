"""The numbers of a run's files beside scores.parquet, as its evidence gives them, and as the files have them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from iclgd.config import Config
from iclgd.evidence import Laboratory, gather
from iclgd.evidence.outcome import flips, jitter, means_so_far, sanity, trace_tables
from iclgd.metrics import measure, summarise
from iclgd.records import Evidence
from iclgd.runs.folder import RunFolder, Status
from iclgd.runs.reader import FolderReader

TOLERANCE = 1e-3  # of a single value, beyond what rounding explains
SHOWN = ("trajectory.parquet", "jitter.json")  # what some runs have, and what is computed from all queries
_FACTS = ("diverged", "diverged_at", "unstable")
TABLES = ("gradient_norms.parquet", "weight_updates.parquet", "losses.parquet")


def taken(lab: Laboratory, whole: bool) -> tuple[Evidence, dict[str, float]]:
    """The evidence, and by FILE/PLACE the numbers of the run's files; `whole`: from all of its queries."""
    steps: list[Any] = []
    if not whole:
        evidence = gather(lab)
        return evidence, of_evidence(lab.config, evidence, whole)
    evidence = gather(lab, lambda step, so_far: steps.extend(means_so_far(lab.config, step, so_far)))
    summary = summarise(measure(lab.config.metric.scores, evidence), flips(evidence), lab.config.metric.scores)
    spreads = jitter(lab, evidence, summary)
    more = {"trajectory.parquet": pd.DataFrame(steps)} if steps else {}
    more |= {"jitter.json": spreads} if spreads else {}
    return evidence, of_evidence(lab.config, evidence, whole, spreads) | flat(more)


def of_evidence(
    config: Config, evidence: Evidence, whole: bool, spreads: dict[str, Any] | None = None
) -> dict[str, float]:
    """The same, of what follows from the evidence alone."""
    facts = sanity(config, evidence, spreads or {})
    judged = (whole and spreads is not None) or not config.runtime.jitter or facts["unstable"]
    told = {name: facts[name] for name in _FACTS if name != "unstable" or judged}  # repeats take all queries
    files: dict[str, Any] = {**trace_tables(evidence.trace), "status.json": told}
    if whole:
        scores = config.metric.scores
        files["scores.json"] = summarise(measure(scores, evidence), flips(evidence), scores)
    return flat(files)


def of_all(config: Config) -> list[str]:
    """Which files of `SHOWN` a run may have."""
    return [name for name, count in zip(SHOWN, (config.metric.every, config.runtime.jitter), strict=True) if count]


def read_numbers(folder: RunFolder, status: Status, name: str) -> dict[str, float]:
    """The same, as one of the run's files has them.

    Raises:
        OSError: it is not there.
        ValueError: it cannot be read.
    """
    if name == "status.json":
        return flat({name: {fact: status.facts.get(fact) for fact in _FACTS}})
    read = FolderReader(folder.path).table if name.endswith(".parquet") else folder.read_json
    return flat({name: read(name)})


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


def apart(path: str, a: float, b: float | None) -> float:
    """How far two numbers of a file lie apart; 0 if the second is none, for it is another's place."""
    if b is None:
        return 0.0
    return float(distance(np.array(a), np.array(b), 1e-30 if path.startswith(TABLES) else 1.0))


def distance(a: np.ndarray, b: np.ndarray, least: float = 1.0) -> np.ndarray:
    """How far values lie apart, relative to the larger, or to `least`; 0 if both are undefined, infinite if one is.

    Scores have the size 1; what finetuning did has a size of its own, which may be small.
    """
    undefined = np.isnan(a).astype(int) + np.isnan(b)
    with np.errstate(invalid="ignore"):
        far = np.abs(a - b) / np.fmax(least, np.fmax(np.abs(a), np.abs(b)))
    return np.where(undefined == 2, 0.0, np.where(undefined == 1, np.inf, far))
