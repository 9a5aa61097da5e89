"""The name of a run by its settings: two configs are one run exactly if they ask the same scientific question."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from iclgd.config import ReferenceConfig
from iclgd.config.bounds import parse_layers

SCIENCE = ("model", "task", "finetune", "protocol", "metric", "seed")
_ICL = dataclasses.asdict(ReferenceConfig())
_MACHINE = {"task": ("rates",)}  # the rate that counts is finetune.lr
_MEASURING = {"matmul": "highest", "jitter": 0}  # of runtime: what a run measures, or how precisely
LOOKS = {
    "finetune": ("label", "role", "order", "against", "color"),
    "score": ("label", "limits", "headline", "better", "share"),
}


def canonical(content: Any) -> str:
    """JSON that is the same text for the same content: sorted keys, no spaces, no NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def science(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that decides what is measured.

    Args:
        config: plain values, as `config.as_dict` gives them.

    Returns:
        model, task, finetune, protocol, metric, seed and runtime.dtype; `finetune.layers` as a list or "all", whichever
        way it was written; without the settings that only place the work on a machine, and without the seed of
        untrained weights where the weights are pretrained.
    """
    chosen = {key: config[key] for key in SCIENCE}
    for group, dropped in _MACHINE.items():
        chosen[group] = {key: value for key, value in chosen[group].items() if key not in dropped}
    if chosen["model"].get("weights") == "pretrained":
        chosen["model"] = _without(chosen["model"], ("weights_seed",))  # nothing is drawn
    if chosen["metric"].get("compare_with") is not None:  # whose rate is among the task's
        chosen["task"] = config["task"]
    reference = _without(config.get("reference") or _ICL, ("label",))
    if reference != _without(_ICL, ("label",)):  # a run against ICL itself is named as before there was a choice
        chosen["reference"], chosen["task"] = reference, config["task"]
    layers = parse_layers(chosen["finetune"]["layers"])
    chosen["finetune"] = {**chosen["finetune"], "layers": "all" if layers is None else list(layers)}
    chosen["finetune"] = _without(chosen["finetune"], LOOKS["finetune"])
    scores = (chosen["metric"].get("scores") or {}).items()
    chosen["metric"] = {**chosen["metric"], "scores": {name: _without(s, LOOKS["score"]) for name, s in scores}}
    chosen["dtype"] = config["runtime"]["dtype"]
    for key, usual in _MEASURING.items():
        if config["runtime"].get(key, usual) != usual:
            chosen[key] = config["runtime"][key]
    return chosen


def _without(settings: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names}


def run_id(config: Mapping[str, Any]) -> str:
    """12 hexadecimal digits that name a run by its content."""
    return hashlib.sha256(canonical(science(config)).encode()).hexdigest()[:12]
