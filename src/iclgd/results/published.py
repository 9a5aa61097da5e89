"""What the papers report for the same model, task and number of demonstrations.

A published number stands beside a setting only where model, task and number of demonstrations are the paper's; beside
another model it would compare models, not measurements. The numbers lie in published.json, with their sources.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


@functools.cache
def published() -> dict[str, Any]:
    """The numbers of the papers, with their sources."""
    return json.loads(Path(__file__).with_name("published.json").read_text("utf-8"))


def mean_and_std(setting: Mapping[str, Any]) -> Sequence[float] | None:
    """The published mean and standard deviation for a row of `Results.summary`, or None."""
    task, variant, weights, score = _where(setting)
    if weights == "pretrained":
        return _number(setting, "variants", score, variant, task)
    return _number(setting, "untrained_gd", score, weights, task) if variant == "gd" else None  # by gd only


def of_layer(setting: Mapping[str, Any]) -> float | None:
    """The published mean for a row of `Results.summary` in its layer, or None."""
    task, variant, weights, score = _where(setting)
    curve = _number(setting, "layers", score, task, variant) if weights == "pretrained" else None
    return curve[setting["layer"]] if curve and setting["layer"] < len(curve) else None


def _where(setting: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return setting["task.name"], setting["finetune.name"], setting["model.weights"], setting["score"]


def _number(setting: Mapping[str, Any], *path: str) -> Any:
    """What stands at this path of published.json; None where nothing does, or model or shots are not the papers'."""
    content: Any = published()
    model = str(setting["model.name"]).rstrip("/").rpartition("/")[2]
    if model.lower() != content["model"].lower() or setting["task.shots"] != content["shots"]:
        return None
    for name in path:
        content = content.get(name) or {}
    return content or None
