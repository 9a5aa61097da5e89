"""A picture of the panels that `iclgd-dashboard` makes, drawn from what a sweep left for W&B on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from iclgd.report.chart import DATA, Figure, themed
from iclgd.results.reading import ReportError
from wandb_reader import read_runs

_WIDTH, _HEIGHT = 250, 130
_KEYS = ("rate", "shots", "seed")
_LOGARITHMIC = ("rate", "shots")


def panels(folder: Path, score: str, label: str) -> Figure:
    """Parallel coordinates, curves and a map over layers, the score by shots, and the score of each variant."""
    runs, layers = _recorded(folder, score)
    if runs.empty:
        raise ReportError(f"the runs of {folder.name} left no files for W&B: run them without tracking=none")
    colors = runs.drop_duplicates("variant").set_index("variant")["color"]
    color = alt.Color("variant:N", scale=alt.Scale(domain=list(colors.index), range=list(colors)), title=None)
    rows = pd.concat(
        [
            _coordinates(runs, label).assign(panel="coordinates"),
            layers.assign(panel="layers"),
            runs.assign(panel="runs"),
        ]
    )
    value = alt.Y("score:Q", title=label)
    coordinates = _part("coordinates").mark_line(opacity=0.6, strokeWidth=0.9)
    coordinates = coordinates.encode(
        alt.X("axis:N", sort=["variant", *_KEYS, label], title=None, axis=alt.Axis(labelAngle=0, grid=True)),
        alt.Y("height:Q", axis=None),
        color,
        alt.Detail("run:N"),
    )
    layer = alt.X("layer:O", axis=alt.Axis(labelAngle=0))
    curves = _part("layers").mark_line(point=True).encode(layer, alt.Y("mean(score):Q", title=label), color)
    across = alt.X("shots:Q", scale=alt.Scale(type="log", padding=8), axis=alt.Axis(values=sorted(set(runs["shots"]))))
    shots = _part("runs").mark_point(filled=True, size=22).encode(across, value, color)
    up = alt.Y("rate:O", title="learning rate", sort="descending")
    shade = alt.Color(
        "mean(score):Q", title=label, scale=alt.Scale(scheme="viridis"), legend=alt.Legend(orient="right")
    )
    cells = _part("layers").mark_rect().encode(layer, up, shade)
    bars = (
        _part("runs")
        .mark_bar(height=9)
        .encode(alt.X("mean(score):Q", title=label), alt.Y("variant:N", title=None), color)
    )
    parts = [
        one.properties(width=_WIDTH, height=_HEIGHT, title=title)
        for one, title in (
            (coordinates, "Every swept key and the score; a line is a run"),
            (curves, "By layer, runs grouped by variant"),
            (shots, "By demonstrations, on a logarithmic axis"),
            (bars, "Variants"),
            (cells, "By layer and learning rate"),
        )
    ]
    chart = alt.vconcat(alt.hconcat(parts[0], parts[1]), alt.hconcat(parts[2], parts[3]), parts[4])
    chart = chart.resolve_scale(color="independent")
    chart.data = alt.NamedData(name=DATA)
    plain = rows.astype(object).where(rows.notna(), None).to_dict("records")
    return Figure("wandb", "W&B", themed(chart, plain), "")


def _part(panel: str) -> Any:
    return alt.Chart().transform_filter(f"datum.panel === '{panel}'")


def _recorded(folder: Path, score: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row for each run with its keys and the score, and one for each run and layer."""
    runs, layers = [], []
    for at, recorded in enumerate(read_runs(folder)):
        if recorded.run.job_type == "sweep" or score not in recorded.summary:
            continue
        variant = recorded.config["finetune"]
        about = {"run": at, "variant": variant["label"], "color": variant["color"], "rate": variant["lr"]}
        about |= {"shots": recorded.config["task"]["shots"], "seed": recorded.config["seed"]}
        runs.append({**about, "score": recorded.summary[score]})
        layers += [{**about, "layer": layer, "score": value} for layer, value in enumerate(recorded.curve(score))]
    return pd.DataFrame(runs), pd.DataFrame(layers)


def _coordinates(runs: pd.DataFrame, label: str) -> pd.DataFrame:
    """Each run's height on each axis, between 0 and 1."""
    axes: dict[str, Any] = {"variant": pd.factorize(runs["variant"])[0]}
    axes |= {name: np.log(runs[name]) if name in _LOGARITHMIC else runs[name] for name in _KEYS}
    axes[label] = runs["score"]
    parts = []
    for name, values in axes.items():
        values = np.asarray(values, dtype=float)
        height = (values - values.min()) / (np.ptp(values) or 1)
        parts.append(pd.DataFrame({"run": runs["run"], "variant": runs["variant"], "axis": name, "height": height}))
    return pd.concat(parts)
