"""What the papers report for the same model, task and number of demonstrations.

A published number stands beside a setting only where model, task and number of demonstrations are the paper's; beside
another model it would compare models, not measurements. The numbers lie in published.json, with their sources.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NOTHING = (math.nan, math.nan)
_SETTING = ["task.name", "model.name", "model.weights", "task.shots", "finetune.name"]


@functools.cache
def published() -> dict[str, Any]:
    """The numbers of the papers, with their sources."""
    return json.loads(Path(__file__).with_name("published.json").read_text("utf-8"))


def beside(record: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `Results.summary` with the published mean and standard deviation and the difference, where known."""
    theirs = mean_and_std(record, record["score"])
    if theirs is None:
        return dict(record)
    mean, std = theirs
    return {**record, "published_mean": mean, "published_std": std, "difference": record["mean"] - mean}


def mean_and_std(setting: Mapping[str, Any], score: str) -> tuple[float, float] | None:
    """The published mean and standard deviation for a setting (by Hydra name) like this one, or None."""
    task, variant, weights = (setting[key] for key in ("task.name", "finetune.name", "model.weights"))
    if weights == "pretrained":
        theirs = _numbers(setting, "variants", score, variant, task)
    else:  # untrained models were finetuned by gd only
        theirs = _numbers(setting, "untrained_gd", score, weights, task) if variant == "gd" else None
    return (theirs[0], theirs[1]) if theirs else None


def layers(setting: Mapping[str, Any], score: str) -> list[float] | None:
    """The published means by layer for a setting like this one, or None."""
    if setting["model.weights"] != "pretrained":
        return None
    return _numbers(setting, "layers", score, setting["task.name"], setting["finetune.name"])


def by_layer(rows: Any, score: str) -> list[float]:
    """For each row of a frame, a setting and a layer, the published value; NaN where there is none."""
    settings = rows[_SETTING].drop_duplicates().to_dict("records")
    curves = {tuple(setting.values()): layers(setting, score) or [] for setting in settings}
    at = zip(*(rows[key] for key in [*_SETTING, "layer"]), strict=True)
    return [curve[layer] if layer < len(curve := curves[tuple(where)]) else math.nan for *where, layer in at]


def band(setting: Mapping[str, Any], score: str) -> tuple[float, float]:
    """The two numbers between which most published values lie for a setting like this one; NaN where there are none."""
    known = setting["model.weights"] == "pretrained" and setting["task.name"] in published()["runs"]
    low, high = (_numbers(setting, "bands", score) if known else None) or _NOTHING
    return low, high


def _numbers(setting: Mapping[str, Any], *path: str) -> Any:
    """What stands at this path of published.json; None where nothing does, or the setting is not the papers'."""
    content = published() if matches(setting) else {}
    for name in path:
        content = content.get(name) or {}
    return content or None


def matches(setting: Mapping[str, Any]) -> bool:
    """Whether the papers measured this model with as many demonstrations; other models are not set beside them."""
    model = str(setting["model.name"]).rstrip("/").rpartition("/")[2]
    return model.lower() == published()["model"].lower() and setting["task.shots"] == published()["shots"]
