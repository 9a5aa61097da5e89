"""Maps of what ICL and every mechanism have learned, for tasks whose queries are points in a plane."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from iclgd.common.printable import printable
from iclgd.report.chart import TEXT_WIDTH, Figure
from iclgd.report.panels import PLACE, Frame, Grid, free_keys, labelled
from iclgd.results.averages import first_draws

if TYPE_CHECKING:
    from iclgd.results.frame import Results
    from iclgd.results.reading import FinishedRun

_NUMBER = r"-?\d+(?:\.\d+)?"
_ACROSS, _MOST_RUNS = 4, 60  # maps in a row; runs that are read, unless there are more settings
_FIXED = {"zsl": "Zero-shot", "icl": "ICL"}  # settings that are the same for every mechanism
_TRUTH = "The task"


def plane(results: Results) -> Iterator[Figure]:
    """The probability of the second label at every query, where queries are points and a task has two labels.

    Side by side: the task itself, zero-shot, ICL and every mechanism, for one draw of demonstrations. These are circles
    in the colours of their labels. It reads the log-odds of single queries.
    """
    scores = {
        setting: info.name
        for info in results.scores.values()
        for setting in ("zsl", "icl", "ft")
        if info.function == "log_odds" and info.reads(setting) and info.inputs.get("right") == "labels"
    }
    parts, label = [], ""
    for at in first_draws(results, [not run.planted for run in results], _MOST_RUNS) if scores else ():
        run, points = results[at], _points(results[at])
        if points is not None:
            setting = results.settings.iloc[results.setting_of[at]]
            maps, label = _maps(results, run, points, scores), points.attrs["label"]
            parts.append(maps.assign(seed=run.settings["seed"], **{key: setting[key] for key in results.settings}))
    if not parts:
        return
    rows: Frame = pd.concat(parts, ignore_index=True)
    rows = rows.drop_duplicates([*PLACE, *_others(results, rows), "panel", "about", "x", "y"], ignore_index=True)
    rows["setting"], choices = labelled(results, rows, [*PLACE, *_others(results, rows)])
    order = [_TRUTH, *_FIXED.values(), *results.labels.values()]
    panels = [panel for panel in order if panel in set(rows["panel"])]
    split = Grid(rows, panels, choices, min(_ACROSS, len(panels)))
    caption = f"Probability of the label {printable(label, 20)} at each query, by colour; circles are demonstrations."
    yield Figure("plane", "What was learned, as maps", _chart(split, label), caption)


def _others(results: Results, rows: Frame) -> list[str]:
    """The keys, besides place and mechanism, by which maps differ."""
    keys = [key for key in free_keys(results, rows) if key not in PLACE]
    return [*keys, "seed"] if rows["seed"].nunique() > 1 else keys


def _points(run: FinishedRun) -> Frame | None:
    """The run's queries and demonstrations as points with labels; None where they are not points with two labels."""
    prompts = run.prompts()
    words = prompts.get("label_words") or []
    items = [(kind, item["text"], item["label"]) for kind in ("queries", "demonstrations") for item in prompts[kind]]
    texts: Frame = pd.DataFrame(items, columns=["about", "text", "label"])
    points: Frame = texts["text"].str.extract(rf"(?P<x>{_NUMBER}).*?(?P<y>{_NUMBER})", flags=re.DOTALL).astype(float)
    queries = texts["text"][texts["about"] == "queries"]
    is_form_shared = queries.str.replace(_NUMBER, "#", regex=True).nunique() == 1
    if len(words) != 2 or not is_form_shared or queries.nunique() < 9 or points.isna().any(axis=None):
        return None
    points = points.assign(label=texts["label"].astype(float), about=texts["about"])
    points.attrs["label"] = words[1]
    return points


def _maps(results: Results, run: FinishedRun, points: Frame, scores: Mapping[str, str]) -> Frame:
    """The rows of a run's maps: for each setting every query with its probability, and the demonstrations."""
    names = {**_FIXED, "ft": results.labels[run.config["finetune"]["name"]]}
    queries = points[points["about"] == "queries"]
    shown = {_TRUTH: queries["label"].to_numpy()}
    for setting, score in scores.items():
        odds = run.values.get(score)
        if odds is not None and (setting != "ft" or run.state == "sane"):
            of_second = np.where(queries["label"] == 1, odds[:, 0], -odds[:, 0])
            shown[names[setting]] = 1 / (1 + np.exp(-of_second))
    demonstrations = points[points["about"] != "queries"]
    parts = [queries.assign(mean=values, panel=panel) for panel, values in shown.items()]
    parts += [demonstrations.assign(mean=demonstrations["label"], panel=panel) for panel in shown]
    maps: Frame = pd.concat(parts, ignore_index=True)
    return maps.assign(variant=maps["panel"])


def _chart(split: Grid, label: str) -> Any:
    """Squares for queries, as large as the queries lie apart, and circles for demonstrations."""
    queries = split.rows[split.rows["about"] == "queries"]
    domain, half = {}, {}
    for axis in ("x", "y"):
        values = np.unique(queries[axis])
        half[axis] = float(np.diff(values).min()) / 2 if len(values) > 1 else 0.5
        domain[axis] = [float(values[0]) - half[axis], float(values[-1]) + half[axis]]
    scale = alt.Scale(domain=[0, 1], scheme="blueorange")
    color = alt.Color("mean:Q", title=f"P({printable(label, 20)})", scale=scale, legend=alt.Legend(format="~%"))
    tooltip = ["x:Q", "y:Q", alt.Tooltip("mean:Q", format=".3f", title=f"P({printable(label, 20)})")]
    across, up = (
        channel(f"{axis}0:Q", title=axis, scale=alt.Scale(domain=domain[axis], nice=False), axis=alt.Axis(tickCount=3))
        for channel, axis in ((alt.X, "x"), (alt.Y, "y"))
    )
    edges = {f"{axis}{end}": f"datum.{axis} {sign} {half[axis]}" for axis in half for end, sign in ((0, "-"), (1, "+"))}
    squares = alt.Chart().transform_filter("datum.about === 'queries'").transform_calculate(**edges)
    squares = squares.mark_rect().encode(across, up, color, x2="x1:Q", y2="y1:Q", tooltip=tooltip)
    circles = alt.Chart().transform_filter("datum.about !== 'queries'").transform_calculate(x0="datum.x", y0="datum.y")
    circles = circles.mark_point(filled=True, size=14, stroke="white", strokeWidth=0.7, opacity=1)
    side = (TEXT_WIDTH - 80) / split.columns - 14
    return split.draw(squares, circles.encode(across, up, color, tooltip=tooltip), height=min(side, split.width))
