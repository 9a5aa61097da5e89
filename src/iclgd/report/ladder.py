"""Figures with a row for every mechanism and setting: the ladder from floor to ceiling, in every score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd

from iclgd.config.enumerations import Better, Role
from iclgd.report.chart import DATA, TEXT_WIDTH, Figure, themed
from iclgd.report.marks import Measure, interval_words, measured, zero_rule
from iclgd.report.panels import PLACE, Frame, free_keys, labelled, records
from iclgd.results.frame import SEES
from iclgd.results.planted_truths import beside_planted
from iclgd.results.rates import summary_at_chosen_rates
from iclgd.results.remarks import layer_notes

if TYPE_CHECKING:
    from iclgd.results.frame import Results

_MOST_SCORES = 4  # side by side, besides an accuracy
_GAP, _LABELS, _SEES = 9, 104, 54  # points between panels, for the names of rows, and for what they see
_BLANK = alt.Axis(labels=False, ticks=False, domain=False)
_ROLES = {  # light to dark, so that they are told apart in grey too
    Role.floor: ("#9a9a9a", "circle"), Role.control: ("#999933", "cross"), Role.variant: ("#0072B2", "square"),
    Role.rival: ("#56B4E9", "triangle-right"), Role.mechanism: ("#D55E00", "diamond"),
    Role.anchor: ("#009E73", "triangle-up"), Role.ceiling: ("#332288", "triangle-down"),
}  # fmt: skip


def ladder(results: Results) -> Iterator[Figure]:
    """Every mechanism from floor to ceiling, once for each of its settings; the headline scores and accuracy abreast.

    A variant that ran at several rates stands at those that its other draws chose; with a single draw none can choose,
    and each rate has a row. Where it also played ICL's part, a hollow mark is its score against itself.
    """
    pairs = list(measured(results, False, beside_planted(results, summary_at_chosen_rates(results))))
    rows = {measure.info.name: part for measure, part in pairs}
    pairs = [(measure, _with_bounds(measure, part, rows)) for measure, part in pairs]
    shares = [pair for pair in pairs if pair[0].info.share and pair[0].info.reads("ft")]
    accuracy = [pair for pair in shares if pair[0].info.of("icl", results.scores.values())][:1]
    first = [pair for pair in pairs if pair[0].info.headline][:_MOST_SCORES]
    first = [*first, *accuracy] if first else pairs[:1]
    shown = {measure.info.name for measure, _ in first}
    for group in filter(None, [first, *([pair] for pair in pairs if pair[0].info.name not in shown)]):
        yield from _figures(results, group)


def _with_bounds(measure: Measure, part: Frame, rows: Mapping[str, Frame]) -> Frame:
    """The rows of a score with a floor and a ceiling of the same setting.

    They are the best floor's and the best ceiling's means; of accuracy, zero-shot's and ICL's.
    """
    results = measure.results
    free = [key for key in free_keys(results, part) if not key.startswith(("finetune.", "reference."))]
    keys = [*PLACE, *free]  # of settings in which ICL itself differs
    best = "min" if measure.info.better is Better.lower else "max"
    for column, setting in ((Role.floor, "zsl"), (Role.ceiling, "icl")):
        twin = measure.info.of(setting, results.scores.values()) if measure.info.reads("ft") else None
        if twin and twin.name in rows:
            bound = rows[twin.name].groupby(keys, dropna=False)["mean"].mean()
        else:
            of_role = part[[results.variants[name].role is column for name in part["finetune.name"]]]
            bound = of_role.groupby(keys, dropna=False)["mean"].agg(best)
        part = part.merge(bound.rename(str(column)).reset_index(), on=keys, how="left")
    return part


def _figures(results: Results, pairs: Sequence[tuple[Measure, Frame]]) -> Iterator[Figure]:
    """The figure of these scores, if it has more than one row."""
    measures = [measure for measure, _ in pairs]
    rows, panels, order = _split(results, pairs)
    if len(order) < 2:
        return
    several = rows["sees"].nunique() > 1
    room = (TEXT_WIDTH - _LABELS - several * (_SEES + _GAP)) / len(measures) - _GAP
    charts = [_panel(_sees(order), panels, _SEES, True)] if several else []
    for at, measure in enumerate(measures):
        marks = _score(measure, at, rows, order, room, labels=not charts)
        charts.append(_panel(marks, panels, min(room, 230), not charts, f"datum.value === {at}"))
    labels = ", ".join(measure.info.label for measure in measures)
    words = [f"{labels} of each mechanism.", interval_words(rows), *_marks_in_words(measures, rows)]
    words += layer_notes(results, [measure.info.name for measure in measures])
    name, choice = measures[0].info.name, measures[0].info.label
    if len(measures) > 1:
        name, choice = "mechanisms", "headline scores"
    chart = themed(alt.hconcat(*charts, spacing=_GAP), records(rows))
    title = "Mechanisms side by side"
    yield Figure(f"ladder/{name}", title, chart, " ".join(words), choice, measures[0].info.headline)


def _marks_in_words(measures: Sequence[Measure], rows: Frame) -> Iterator[str]:
    """What a ladder's marks and rules mean, of those that it has."""
    if any(not math.isfinite(sum(measure.info.limits)) for measure in measures) and _any(rows, "low"):
        yield "Some are wider than the axis."
    if _any(rows, "rates"):
        yield "Where several rates were run, each draw is at the one that the other draws choose."
    if _any(rows, "planted"):
        yield "Hollow: what it would score if ICL were it."
    if _any(rows, "floor") or _any(rows, "ceiling"):
        floor, ceiling = (" (of accuracy: zero-shot)", " (of accuracy: ICL)") if measures[-1].info.share else ("", "")
        yield f"Dotted: the best floor{floor}; dashed: the best ceiling{ceiling}."


def _any(rows: Frame, column: str) -> bool:
    return column in rows and bool(rows[column].notna().any())


def _split(results: Results, pairs: Sequence[tuple[Measure, Frame]]) -> tuple[Frame, list[str], list[str]]:
    """The rows with a text for each row of the ladder, the places, and these texts from the floor up."""
    rows: Frame = pd.concat([part.assign(value=at) for at, (_, part) in enumerate(pairs)], ignore_index=True)
    order = list(results.labels)
    rows = rows.dropna(subset="mean").sort_values("finetune.name", key=lambda n: n.map(order.index), kind="stable")
    rows["panel"], panels = labelled(results, rows, PLACE)
    keys = free_keys(results, rows)
    settings, _ = labelled(results, rows, keys)
    several = rows.assign(text=settings).groupby(["panel", "variant"])["text"].transform("nunique") > 1
    rows["about"] = rows["variant"].where(~several, rows["variant"] + " · " + settings)
    variants = [results.variants[name] for name in rows["finetune.name"]]
    rows["role"] = [variant.role for variant in variants]
    seen = rows[SEES] if SEES in rows else [variant.sees for variant in variants]
    rows["sees"] = [results.text(SEES, sees) for sees in seen]
    labels, in_order = labelled(results, rows, ["variant", *keys])
    about = dict(zip(labels, rows["about"], strict=True))
    return rows, panels, list(dict.fromkeys(about[label] for label in in_order))


def _rows(order: list[str], labels: bool, grid: bool = True, **position: Any) -> Any:
    """The axis of the rows, the same in every panel; the first one has their names."""
    axis = alt.Axis(labels=labels, grid=grid, labelLimit=230)
    scale = alt.Scale(domain=order, type="band", padding=0)
    return alt.Y("about:N", sort=order, scale=scale, title=None, axis=axis, **position)


def _sees(order: list[str]) -> list[Any]:
    """What each mechanism sees, in words."""
    text = alt.Chart().transform_aggregate(count="count()", groupby=["about", "sees", "panel"])
    encodings = {"x": alt.value(_GAP), "y": _rows(order, True, grid=False), "text": "sees:N"}
    text = text.mark_text(align="left", fontSize=7).encode(**encodings)
    title = alt.Chart().mark_rule(color="transparent").encode(alt.X("value:Q", title="sees", axis=_BLANK))
    return [text, title]


def _score(measure: Measure, at: int, rows: Frame, order: list[str], width: float, labels: bool) -> list[Any]:
    """The marks of one score; rows are mechanisms, which the first panel names."""
    roles = [role for role in _ROLES if role in set(rows["role"])]
    rows = rows[rows["value"] == at]
    look: dict[str, Any] = {"legend": alt.Legend(columns=len(roles)) if len(roles) > 1 else None, "title": None}
    color, shape = (
        channel("role:N", scale=alt.Scale(domain=roles, range=[_ROLES[role][part] for role in roles]), **look)
        for part, channel in enumerate((alt.Color, alt.Shape))
    )
    y, base, marks = _rows(order, labels), alt.Chart(), []
    # An invisible rule where there is none at zero, so that all panels have one height.
    marks += zero_rule(rows, "x") or [base.mark_rule(color="transparent").encode(x=alt.value(0))]
    for name, dash in (("floor", [1, 2.25]), ("ceiling", [4.5, 2])):  # whole dashes in a row
        if _any(rows, name):
            top, bottom = _rows(order, labels, bandPosition=0), alt.Y2("about", bandPosition=1)
            bound = base.mark_rule(strokeDash=dash, strokeWidth=1)
            marks.append(bound.encode(alt.X(f"max({name}):Q"), top, bottom))
    if _any(rows, "low"):
        marks.append(base.mark_rule(strokeWidth=1.4, clip=True).encode(alt.X("low:Q"), alt.X2("high:Q"), y, color))
    if _any(rows, "planted"):
        hollow = base.mark_point(filled=False, size=44, strokeWidth=0.9).transform_filter("isValid(datum.planted)")
        marks.append(hollow.encode(alt.X("planted:Q"), y, color, shape))
    x, tooltip = measure.axis(rows, alt.X, ticks=5 if width > 80 else 3), measure.tooltip("about:N", "sees:N")
    if not math.isfinite(sum(measure.info.limits)):  # one wide interval would hide all differences
        means = rows[[name for name in ("mean", "planted", "floor", "ceiling") if name in rows]]
        low, high = min(0.0, means.min().min()), max(0.0, means.max().max())
        if _any(rows, "low"):  # a half interval as wide as all means lie apart is shown in full
            low, high = (
                max(low - (high - low), min(low, rows["low"].min())),
                min(2 * high - low, max(high, rows["high"].max())),
            )
        x["scale"]["domain"] = [low, high]
    marks.append(base.mark_point(filled=True, size=30, opacity=1).encode(x, y, color, shape, tooltip=tooltip))
    return marks


def _panel(marks: Sequence[Any], panels: list[str], width: float, labels: bool, filtered: str | None = None) -> Any:
    """The marks once for each place, one place below the other."""
    panel: Any = alt.layer(*marks).properties(width=width, height=alt.Step(13))
    if len(panels) > 1:
        header = alt.Header(labelOrient="top", labelAnchor="start", labels=labels, labelPadding=2)
        row = alt.Row("panel:N", sort=panels, header=header, title=None)
        panel = panel.facet(row=row, data=alt.NamedData(name=DATA))
    else:
        panel.data = alt.NamedData(name=DATA)
    return panel if filtered is None else panel.transform_filter(filtered)
