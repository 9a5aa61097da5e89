"""What does the page know? Numbers of every setting and the prompts of every run, as plain values for its script."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from iclgd.report import controls, published, style
from iclgd.report.finished_run import SETTINGS, BrokenRun, FinishedRun
from iclgd.report.run_figures import gradient_grid
from iclgd.report.settings import Group, group, numeric_axes, own_settings, place
from iclgd.report.summary import curve, summarise

_MOST_QUERIES, _MOST_TEXT = 200, 2000
_SYMBOLS = {
    "o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross", "X": "x",
    "*": "star", "<": "triangle-left", ">": "triangle-right", "h": "hexagon", "p": "pentagon", "d": "diamond-tall",
    "8": "octagon",
}  # fmt: skip
_DASHES = {"gd": "solid", "lcgd": "dash"}
_FURTHER_DASHES = ("dashdot", "longdash", "longdashdot")  # dots are for what was published


def page_data(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Everything the page's script draws from; floats have five digits, NaN is null."""
    controlled = controls.has_controls(runs)
    groups = controls.ordered(group(runs)) if controlled else group(runs)
    shown = controls.contenders(groups) if controlled else [controls.Contender(entry) for entry in groups]
    rates = {id(chosen.entry): chosen.rate for chosen in shown}  # a group without one is shown among its rates only
    variants = list(dict.fromkeys(run.variant for run in runs))
    looks = style.looks(variants)
    prompts: dict[str, Any] = {}
    names = list(dict.fromkeys(name for run in runs for name in run.entries))
    return {
        "labels": {name: next(run.label(name) for run in runs if name in run.entries) for name in names},
        "variants": {
            name: [looks[name].color, _SYMBOLS[looks[name].marker], _DASHES.get(name, _FURTHER_DASHES[at % 3])]
            for at, name in enumerate(variants)
        },
        "axes": numeric_axes(runs),
        "controls": controlled,
        "bounds": _bounds(groups) if controlled else [],
        "groups": [_group(entry, groups) | {"rate": rates.get(id(entry))} for entry in groups],
        "runs": [_run(run, prompts) for run in runs],
        "prompts": prompts,
    }


def _group(entry: Group, groups: Sequence[Group]) -> dict[str, Any]:
    first = entry.runs[0]
    names = list(dict.fromkeys(name for run in entry.runs for name in run.entries))
    found = {name: summarise(entry.runs, name) for name in names}
    layered = [name for name in names if any(run.layers(name) for run in entry.runs)]
    table = first.table("gradient_norms")
    grid = None if table is None else gradient_grid(table)
    return {
        "task": first.task,
        "model": first.model,
        "weights": first.weights,
        "variant": first.variant,
        "setting": own_settings(entry, groups),
        "numbers": {key: value for key, value in entry.values.items() if isinstance(value, int | float)},
        "scores": {name: _digits([s.mean, s.std, s.low, s.high, s.seeds]) for name, s in found.items()},
        "layers": {name: [_digits(part) for part in curve(entry.runs, name)] for name in layered},
        "published": {
            name: theirs for name in layered if (theirs := published.layers(first.settings, name)) is not None
        },
        "heads": {name: _digits(first.entries[name]["heads"]) for name in layered if first.entries[name].get("heads")},
        "gradients": _digits(grid) if grid is not None and grid.size else None,
        "trajectory": _trajectory(first),
        "diverged": sum(run.diverged for run in entry.runs),
        "draws": len(entry.runs),
    }


def _bounds(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Floor, ceiling and noise ceiling of each place, by score."""
    found = []
    for where in dict.fromkeys(place(entry) for entry in groups):
        members = [entry for entry in groups if place(entry) == where]
        task, model, weights = where
        scores = {name: _digits(controls.bounds(members, name)) for name in controls.SCORES}
        found.append({"task": task, "model": model, "weights": weights, "scores": scores})
    return found


def _trajectory(run: FinishedRun) -> dict[str, Any]:
    """Mean over layers after each recorded step, by score."""
    table = run.table("trajectory")
    if table is None:
        return {}
    found = table.pivot_table(index="step", columns="score", values="mean", aggfunc="mean", dropna=False)
    return {str(name): [found.index.tolist(), _digits(found[name].to_numpy())] for name in found.columns}


def _run(run: FinishedRun, prompts: dict[str, Any]) -> dict[str, Any]:
    facts = run.environment.get("iclgd") or {}
    return {
        **run.identity(),
        "revision": facts.get("revision"),
        "dirty": bool(facts.get("dirty")),
        "seconds": run.status.get("seconds"),
        "scores": {name: _digits([run.estimate(name).mean])[0] for name in run.entries},
        "config": yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True),
        "environment": yaml.safe_dump(dict(run.environment), sort_keys=False, allow_unicode=True),
        "prompts": _prompts(run, prompts),
        "right": _right(run),
        "predicted": _predicted(run),
    }


def _prompts(run: FinishedRun, known: dict[str, Any]) -> str | None:
    """Put the run's prompts among those of all runs, once for the same content, and return their key."""
    try:
        content = run.prompts()
        shown = {
            "demonstrations": [_item(item) for item in content["demonstrations"]],
            "queries": [_item(item) for item in content["queries"][:_MOST_QUERIES]],
            "left_out": max(len(content["queries"]) - _MOST_QUERIES, 0),
            "labels": [str(word) for word in content.get("label_words") or []],
        }
    except (BrokenRun, KeyError, TypeError, ValueError):
        return None
    key = hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:12]
    known.setdefault(key, shown)
    return key


def _item(item: Mapping[str, Any]) -> list[Any]:
    text = str(item["text"])
    cut = text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}… ({len(text):,} characters)"
    return [cut, int(item["label"]), len(item["token_ids"])]


def _right(run: FinishedRun) -> dict[str, str]:
    """For each setting one character a query: 1 right, 0 wrong, ? where there is no prediction."""
    marks = {1.0: "1", 0.0: "0"}
    return {
        setting: "".join(marks.get(float(value), "?") for value in values[:_MOST_QUERIES, 0])
        for setting in SETTINGS
        if (values := run.values.get(f"accuracy/{setting}")) is not None
    }


def _predicted(run: FinishedRun) -> dict[str, list[int]]:
    """The index of the label that each setting chooses, where the run kept its recordings."""
    path = run.folder / "recordings.safetensors"
    if not path.is_file():
        return {}
    from safetensors import SafetensorError, safe_open

    found = {}
    try:
        with safe_open(path, framework="numpy") as tensors:
            for setting in SETTINGS:
                if f"{setting}.label_scores" in tensors.keys():
                    scores = tensors.get_tensor(f"{setting}.label_scores")[:_MOST_QUERIES]
                    best = np.where(np.isnan(scores), -np.inf, scores).argmax(1)
                    found[setting] = np.where(np.isnan(scores).all(1), -1, best).tolist()
    except (OSError, SafetensorError):
        return {}
    return found


def _digits(values: Any) -> Any:
    """Nested numbers with five significant digits, null where undefined."""
    if isinstance(values, list | tuple | np.ndarray):
        return [_digits(value) for value in values]
    if values is None or not math.isfinite(values):
        return None
    return int(values) if isinstance(values, int | np.integer) else float(f"{float(values):.5g}")
