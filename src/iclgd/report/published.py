"""What did the papers report for the same model, task and number of demonstrations?

The numbers lie in published.json, with their sources.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from iclgd.report.finished_run import FinishedRun


@functools.cache
def published() -> dict[str, Any]:
    """The numbers of the papers, with their sources."""
    return json.loads(Path(__file__).with_name("published.json").read_text("utf-8"))


def learning_rate(task: str) -> float:
    """The rate of the published runs on this task; SST-2's for a task that they did not have."""
    known = published()["runs"]
    return known.get(task, known["sst2"])["lr"]


def matches(run: FinishedRun) -> bool:
    """Whether the papers measured this model with as many demonstrations; other models are not set beside them."""
    return run.model.lower() == published()["model"].lower() and run.shots == published()["shots"]


def mean_and_std(run: FinishedRun, score: str) -> tuple[float, float] | None:
    """The published mean and standard deviation for a run like this one, or None."""
    if not matches(run):
        return None
    if run.weights == "pretrained":
        found = published()["variants"].get(score, {}).get(run.variant, {}).get(run.task)
    else:  # untrained models were finetuned by gd only
        found = published()["untrained_gd"].get(score, {}).get(run.weights, {}).get(run.task)
        found = found if run.variant == "gd" else None
    return None if found is None else (found[0], found[1])


def layers(run: FinishedRun, score: str) -> list[float] | None:
    """The published means by layer for a run like this one, or None."""
    if not matches(run) or run.weights != "pretrained":
        return None
    return published()["layers"].get(score, {}).get(run.task, {}).get(run.variant)
