"""What figures share: rows of one score, axes, marks, colour scales, and words on what an interval is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import altair as alt
import numpy as np
import pandas as pd

from iclgd.report import published
from iclgd.report.chart import Figure, looks
from iclgd.report.panels import Frame, Grid
from iclgd.shown import printable

if TYPE_CHECKING:
    from iclgd.report.reading import FinishedRun
    from iclgd.report.results import Results

_VALUES = ("mean", "low", "high", "published")
_PLAIN = "format(datum.value, '~g')"  # an axis's own format writes 10 as 1e+1
_MAPS = {"diverging": "purpleorange", "sequential": "viridis"}
_MOST_RUNS, _LOG_RATIO = 24, 30  # runs whose tables are read; how much an axis spans that is logarithmic


def of_score(
    results: Results, kind: str, score: str, among: Sequence[str], title: str, chart: Any, caption: str
) -> Figure:
    """A figure of one kind about one score; `among` are all scores that this kind of figure shows."""
    headline = is_headline(results, score, among)
    return Figure(f"{kind}/{score}", title, chart, caption, label_of(results, score), headline)


def is_headline(results: Results, score: str, among: Sequence[str]) -> bool:
    """Whether a score's figures are also files; where no score is a headline, all are."""
    return results.scores[score].headline or not any(results.scores[name].headline for name in among)


def label_of(results: Results, score: str) -> str:
    """What figures call a score."""
    return printable(results.scores[score].label, 40)


def score_rows(results: Results, score: str, layered: bool) -> Frame:
    """The summary's rows of one score; those without a mean only where every draw diverged."""
    summary: Frame = results.summary
    of = (summary["score"] == score) & (summary["examples"] == "all") & (summary["layer"].notna() == layered)
    rows = summary[of & (summary["mean"].notna() | (summary[["diverged", "unstable"]].sum(axis=1) > 0))]
    return rows.assign(variant=rows["finetune.name"].map(looks(results.variants).labels))


def measured(results: Results, layered: bool) -> list[str]:
    """The scores that were measured, headlines first, then as the runs have them."""
    summary: Frame = results.summary
    measured = set(summary.loc[summary["mean"].notna() & (summary["layer"].notna() == layered), "score"])
    names = [name for name in results.scores if name in measured]
    return sorted(names, key=lambda name: not results.scores[name].headline)


def lines(
    results: Results, score: str, rows: Frame, x: Any, look: dict[str, Any], about: str, marked: bool = True
) -> list[Any]:
    """A line and a band for each variant, with marks where there is room for them."""
    base, y = alt.Chart(), score_axis(results, score, rows)
    opacity = 0.16 if rows["variant"].nunique() <= 6 else 0.07
    band = base.mark_area(opacity=opacity).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), look["fill"])
    line = base.mark_line().encode(x, y, look["color"], look["strokeDash"])
    point = base.mark_point(filled=True, size=20, opacity=int(marked)).transform_filter("datum.mean !== null")
    seen = [look["fill"], look["shape"]] if marked else []
    return [
        *zero_rule(rows),
        *([band] if rows["low"].notna().any() else []),
        line,
        point.encode(x, y, *seen, tooltip=tooltip(results, score, about)),
    ]


def score_axis(results: Results, score: str, rows: Frame, channel: Any = alt.Y) -> Any:
    """The axis of a score: it holds zero where the score can be negative, or where its values come near zero."""
    info = results.scores[score]
    known = rows[[name for name in _VALUES if name in rows]]
    zero = info.limits[0] < 0 or bool(known.min().min() < 0.35 * known.max().max())
    axis = alt.Axis(tickCount=5, format="~%") if info.share else alt.Axis(tickCount=5, labelExpr=_PLAIN)
    return channel("mean:Q", title=label_of(results, score), scale=alt.Scale(zero=zero, nice=True), axis=axis)


def number_axis(key: str, values: Frame, step: bool = False) -> Any:
    """The axis of a swept number: ticks at the values themselves while they are few, logarithmic if they span much."""
    known = sorted(set(values.astype(float)))
    log = not step and known[0] > 0 and known[-1] / known[0] >= _LOG_RATIO
    counted = all(value.is_integer() for value in known)
    ticks: dict[str, Any] = {"values": known} if len(known) <= 8 else {"tickCount": 6}
    ticks |= {"tickMinStep": 1} if counted and not log else {}
    scale = alt.Scale(type="log", nice=False, padding=4) if log else alt.Scale(zero=False, nice=False, padding=4)
    axis = alt.Axis(labelExpr=_PLAIN, labelOverlap=True, labelFlush=True, **ticks)
    return alt.X("x:Q", title=printable(key), scale=scale, axis=axis)


def zero_rule(rows: Frame, axis: str = "y") -> list[Any]:
    """A rule at zero, where there are values on both sides of it or below."""
    below = rows[[name for name in _VALUES if name in rows]].min().min() < 0
    return [alt.Chart().mark_rule().encode(**{axis: alt.datum(0)})] if below else []


def tooltip(results: Results, score: str, about: str) -> list[Any]:
    """What is told of a mark under the pointer."""
    numbers = [("mean", label_of(results, score)), ("low", "low"), ("high", "high")]
    return ["variant:N", f"{about}:N", *(alt.Tooltip(f"{n}:Q", format=".4f", title=title) for n, title in numbers)]


def interval_words(rows: Frame) -> str:
    """What the intervals are over."""
    known = rows[rows["low"].notna()]
    draws = sorted({int(count) for count in known.loc[known["unit"] == "draws", "draws"]})
    count = "" if not draws else f"{draws[0]}" if len(draws) == 1 else f"{draws[0]} to {draws[-1]}"
    if known.empty:
        return "No intervals: one draw of demonstrations."
    if (known["unit"] == "draws").all():
        return f"95 % intervals over {count} draws of demonstrations (Student's t)."
    if draws:
        return f"95 % intervals over {count} draws of demonstrations, or over the queries where there is one draw."
    return "95 % intervals over the queries of one draw of demonstrations; other draws may lie outside."


def published_layers(rows: Frame, score: str) -> list[float]:
    """For each row the published value of its layer, NaN where there is none."""
    keys = ["task.name", "model.name", "model.weights", "task.shots", "finetune.name"]
    curves = {
        tuple(setting[key] for key in keys): published.layers(setting, score) or []
        for setting in rows[keys].drop_duplicates().to_dict("records")
    }
    at = zip(*(rows[key] for key in [*keys, "layer"]), strict=True)
    return [curve[layer] if layer < len(curve := curves[tuple(where)]) else np.nan for *where, layer in at]


def heat_map(split: Grid, label: str, x: str, y: str, limits: Sequence[float] | None, log: bool = False) -> Any:
    """Heat maps that share one colour scale, counted from the lower left."""
    known = {name: sorted({int(value) for value in split.rows[name]}) for name in ("x", "y")}
    axes = {
        name: alt.Axis(values=values[:: -(-len(values) // 8)], labelAngle=0, grid=False, domain=False)
        for name, values in known.items()
    }
    across = alt.X("x:O", title=x, axis=axes["x"], scale=alt.Scale(domain=known["x"], padding=0))
    up = alt.Y("y:O", title=y, axis=axes["y"], sort=None, scale=alt.Scale(domain=known["y"][::-1], padding=0))
    cell = alt.Chart().mark_rect().encode(across, up, color_scale(split.rows["mean"], label, limits, log))
    cell = cell.encode(tooltip=["variant:N", alt.Tooltip("y:O", title=y), alt.Tooltip("x:O", title=x), "mean:Q"])
    return split.draw(cell, height=min(0.85 * split.width, 180))


def color_scale(values: Frame, label: str, limits: Sequence[float] | None, log: bool) -> Any:
    """A colour scale: centred on zero where values can be negative, else from dark to light."""
    known = values.dropna().astype(float)
    if limits is not None and limits[0] < 0:
        most = float(known.abs().max()) if len(known) else 1.0
        domain, scheme = [-(most or 1.0), most or 1.0], _MAPS["diverging"]
    else:
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        domain, scheme = [low, high if high > low else low * 10 if log else low + 1], _MAPS["sequential"]
    scale = alt.Scale(domain=domain, scheme=cast(Any, scheme), type="log" if log else "linear")
    return alt.Color("mean:Q", title=label, scale=scale, legend=alt.Legend(orient="right", format="~g", tickCount=4))


def some_runs(results: Results) -> list[tuple[dict[str, Any], FinishedRun]]:
    """Runs whose own tables are read, first draws first, and their settings; a few, for each costs a file."""
    labels = looks(results.variants).labels
    pairs = sorted(zip(results.setting_of, results.runs, strict=True), key=lambda pair: (str(pair[1].draw), pair[0]))
    chosen = []
    for at, run in pairs[:_MOST_RUNS]:
        settings = results.settings.iloc[at].to_dict()
        settings |= {"variant": labels[settings["finetune.name"]], "draw": str(run.draw)}
        chosen.append((settings, run))
    return chosen


def run_tables(results: Results, name: str, by: list[str], value: str = "value") -> Frame:
    """A table of some runs, its mean over everything else and over draws."""
    parts = []
    for settings, run in some_runs(results):
        table: Frame = run.table(name)
        if table is not None and len(table) and run.state == "sane":
            mean = table.groupby(by, as_index=False, sort=False)[value].mean().rename(columns={value: "value"})
            parts.append(mean.assign(**settings))
    return mean_over_draws(parts, by, "value")


def mean_over_draws(parts: Sequence[Frame], by: Sequence[str], value: str) -> Frame:
    """The mean of a column over the draws of each setting, for each value of the columns `by`."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return pd.DataFrame(columns=[*by, value, "variant", "draws"])
    rows = pd.concat(parts, ignore_index=True)
    keys = [key for key in rows if key not in (value, "draw")]
    found = rows.groupby(keys, as_index=False, sort=False, dropna=False)
    return found.agg(**{value: (value, "mean"), "draws": ("draw", "nunique")})


def draws_words(rows: Frame) -> str:
    """What a mean without an interval is over."""
    draws = int(rows["draws"].max())
    return f"mean over {draws} draws of demonstrations." if draws > 1 else "one draw of demonstrations."
