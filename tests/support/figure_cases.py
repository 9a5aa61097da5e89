"""Finished runs made up in memory, with the labels, roles and colours of conf/."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from iclgd.report import figures
from iclgd.report.chart import DATA, Figure
from iclgd.results import reading
from iclgd.results.frame import Results
from iclgd.runs import varying_keys
from iclgd.runs.files import Status
from report_fixtures import make_config

CONF = Path(__file__).parents[2] / "conf"


@functools.cache
def described(kind: str) -> dict[str, Any]:
    """What the files of conf/finetune say by variant, or those of conf/metric by score."""
    contents = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in (CONF / kind).glob("*.yaml")}
    return (
        contents
        if kind == "finetune"
        else {name: one for content in contents.values() for name, one in content.items()}
    )


def results(
    variants: Sequence[str] = ("gd", "lcgd"),
    scores: Sequence[str] = ("sim_aou", "sim_am_delta"),
    seeds: int = 3,
    layers: int = 30,
    diverges: Callable[[dict[str, Any]], bool] = lambda settings: False,
    own: dict[str, Any] | None = None,
    **swept: Sequence[Any],
) -> Results:
    """Results of a sweep.

    Args:
        variants: files of conf/finetune, or others, which then have no description.
        scores: of conf/metric, or others.
        seeds: how many draws each setting has.
        layers: of the model.
        diverges: which settings diverge.
        own: descriptions of further variants and scores by name.
        swept: values by key, such as `finetune__lr=[1e-3, 1e-2]`.
    """
    rng, runs = np.random.default_rng(0), []
    axes = {key.replace("__", "."): values for key, values in swept.items()}
    known = {**described("finetune"), **described("metric"), **(own or {})}
    for variant, *values, seed in itertools.product(variants, *axes.values(), range(seeds)):
        config = make_config(variant=variant, seed=seed, scores=())
        config["finetune"] |= {
            k: v for k, v in known.get(variant, {}).items() if k in ("label", "role", "order", "color", "sees")
        }
        config["metric"]["scores"] = {name: known.get(name, {"function": name}) for name in scores}
        chosen = dict(zip(axes, values, strict=True))
        for key, value in chosen.items():
            group, _, name = key.partition(".")
            config.setdefault(group, {})[name] = value
        settings = varying_keys.settings_of(config, "float32")
        factor = 1 + sum(0.2 * np.sin(2 + axes[key].index(value)) for key, value in chosen.items())
        height = (0.1 + 0.04 * variants.index(variant)) * factor
        raw = {}
        bad = diverges(settings)
        for at, name in enumerate(scores):
            share = bool(known.get(name, {}).get("share"))
            curve = height * (1 + 0.8 * np.sin(np.linspace(0, 6, layers) + at)) + 0.02 * rng.standard_normal(layers)
            curve = (0.4 + curve if share else curve) + 0.02 * rng.standard_normal()
            curve, error = (np.full(layers, np.nan) if bad else curve), 0.03
            mean = None if bad else float(curve.mean())
            ci = None if mean is None else [mean - error, mean + error]
            layers_of_score = [] if share else [None if bad else value for value in curve.tolist()]
            raw[name] = {"mean": mean, "n": 100, "undefined": 0, "ci": ci, "layers": layers_of_score}
        status = Status.model_validate({"state": "done", "diverged": bad})
        folder = Path(f"run{len(runs)}")
        runs.append(reading.FinishedRun(folder, config, {}, raw, status, settings))
    return Results(tuple(runs))


def changed(made: Results, change: Callable[[reading.FinishedRun, dict[str, Any]], object]) -> Results:
    """The results after `change` of each run's scores."""
    runs = []
    for run in made:
        scores = copy.deepcopy(dict(run.scores))
        change(run, scores)
        runs.append(replace(run, scores=scores))
    return replace(made, runs=tuple(runs))


def by_name(made: Iterable[Figure]) -> dict[str, Figure]:
    made = list(made)
    assert len({figure.name for figure in made}) == len(made)
    return {figure.name: figure for figure in made}


def every(made: Results) -> dict[str, Figure]:
    return by_name(figures.figures(made))


def rows(figure: Figure) -> list[dict[str, Any]]:
    return figure.specification["datasets"][DATA]


def parts(specification: Any) -> list[dict[str, Any]]:
    """Every mapping inside a specification."""
    if isinstance(specification, list):
        return [part for item in specification for part in parts(item)]
    if not isinstance(specification, dict):
        return []
    return [specification, *(part for key, item in specification.items() if key != "datasets" for part in parts(item))]


def encoded(figure: Figure, channel: str) -> list[dict[str, Any]]:
    return [part[channel] for part in parts(figure.specification) if isinstance(part.get(channel), dict)]
