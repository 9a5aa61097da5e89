"""Figures with a row for every variant and setting: the ladder from floor to ceiling, and scores between variants."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd

from iclgd.common.printable import printable
from iclgd.config.enumerations import Better, Role
from iclgd.report.chart import DATA, Figure, looks
from iclgd.report.marks import Measure, interval_words, measured, zero_rule
from iclgd.report.panels import PLACE, Frame, Grid, free_keys, labelled
from iclgd.results import published
from iclgd.results.rates import once

if TYPE_CHECKING:
    from iclgd.results.frame import Results

_MOST_ROWS, _MOST_SCORES = 40, 3  # rows of a ladder; scores side by side


def ladder(results: Results) -> Iterator[Figure]:
    """Every variant from floor to ceiling, once for each of its settings; the headline scores side by side.

    A variant that ran at several rates stands at those that its other draws chose; with a single draw none can choose,
    and each rate has a row.
    """
    pairs = [pair for pair in measured(results, False, once(results)) if not pair[0].info.reads("other")]
    first = [pair for pair in pairs if pair[0].info.headline][:_MOST_SCORES] or pairs[:1]
    for group in filter(None, [first, *([pair] for pair in pairs[len(first) :])]):
        labels = ", ".join(measure.info.label for measure, _ in group)
        yield from _figures("ladder", "Variants side by side", results, group, f"{labels} of each variant.")


def between_variants(results: Results) -> Iterator[Figure]:
    """Scores that compare two finetuning variants (such as alpha), with the band where the papers' values lie."""
    for measure, rows in measured(results, False, once(results)):
        if measure.info.reads("other"):
            runs = [run for run in results if measure.info.name in run.scores]
            others = sorted({str((run.config["metric"] or {}).get("compare_with")) for run in runs})
            bands = [published.band(setting, measure.info.name) for setting in rows.to_dict("records")]
            rows["published"], rows["upper"] = zip(*bands, strict=True)
            caption = f"{measure.info.label} between each variant and {printable(', '.join(others))}."
            yield from _figures("pairs", "Between variants", results, [(measure, rows)], caption)


def _figures(
    kind: str, title: str, results: Results, pairs: Sequence[tuple[Measure, Frame]], caption: str
) -> Iterator[Figure]:
    """The figure of these scores, if it has more than one row."""
    measures = [measure for measure, _ in pairs]
    split, order = _split(results, pairs)
    if kind == "pairs":  # floors and ceilings are of the likeness to ICL
        split.rows[["floor", "ceiling"]] = math.nan
    if len(order) < 2:
        return
    charts = [_score(measure, at, split, order, len(measures)) for at, measure in enumerate(measures)]
    caption += f" {interval_words(split.rows)}"
    if "rates" in split.rows and split.rows["rates"].notna().any():
        caption += " Where several rates were run, each draw is at the one that the other draws choose."
    if split.rows[["floor", "ceiling"]].notna().any(axis=None):
        caption += " Dotted: the best floor; dashed: the best ceiling."
    if "published" in split.rows and split.rows["published"].notna().any():
        caption += f" Grey: {published.published()['sources']['bands']}."
    chart = split.with_menu(alt.hconcat(*charts), filtered=True)
    name, choice = measures[0].info.name, measures[0].info.label
    if len(measures) > 1:
        name, choice = "headline", "headline scores"
    yield Figure(f"{kind}/{name}", title, chart, caption, choice, measures[0].info.headline)


def _split(results: Results, pairs: Sequence[tuple[Measure, Frame]]) -> tuple[Grid, list[str]]:
    """The rows by place, with bounds and a text for each row of the ladder, and these texts from the floor up."""
    rows: Frame = pd.concat([part.assign(value=at) for at, (_, part) in enumerate(pairs)], ignore_index=True)
    order = list(results.labels)
    rows = rows.dropna(subset="mean").sort_values("finetune.name", key=lambda n: n.map(order.index), kind="stable")
    rows["panel"], panels = labelled(results, rows, PLACE)
    keys, choices = free_keys(results, rows), []
    settings, _ = labelled(results, rows, keys)
    several = rows.assign(text=settings).groupby(["panel", "variant"])["text"].transform("nunique") > 1
    rows["about"] = rows["variant"].where(~several, rows["variant"] + " · " + settings)
    if rows.groupby("panel")["about"].nunique().max() > _MOST_ROWS:
        rows["about"], (rows["setting"], choices) = rows["variant"], labelled(results, rows, keys)
    roles = rows["finetune.name"].map({name: variant.role for name, variant in results.variants.items()})
    lower = rows["value"].map([measure.info.better is Better.lower for measure, _ in pairs].__getitem__)
    for column, role in (("floor", Role.floor), ("ceiling", Role.ceiling)):
        means = rows.assign(mean=rows["mean"].where(roles == role)).groupby(["panel", "value"])["mean"]
        rows[column] = means.transform("min").where(lower, means.transform("max"))
    labels, in_order = labelled(results, rows, ["variant", *keys])
    about = dict(zip(labels, rows["about"], strict=True))
    return Grid(rows, panels, choices), list(dict.fromkeys(about[label] for label in in_order))


def _score(measure: Measure, at: int, split: Grid, order: list[str], count: int) -> Any:
    """One score of a ladder: rows are variants, which the first score names."""
    rows = split.rows[split.rows["value"] == at]
    look = looks(measure.results.variants, rows["variant"], ())
    y = alt.Y("about:N", sort=order, title=None, axis=alt.Axis(labels=at == 0, grid=True, labelLimit=230))
    base, marks = alt.Chart(), []
    if "published" in rows and rows["published"].notna().any():
        band = base.mark_rect(color="#888888", opacity=0.22)
        marks.append(band.encode(alt.X("published:Q"), alt.X2("upper:Q"), y))
    # An invisible rule where there is none at zero, so that all panels have one height.
    marks += zero_rule(rows, "x") or [base.mark_rule(color="transparent").encode(x=alt.value(0))]
    for name, dash in (("floor", [1, 2]), ("ceiling", [5, 2])):
        if rows[name].notna().any():
            marks.append(base.mark_rule(strokeDash=dash, strokeWidth=1).encode(alt.X(f"max({name}):Q")))
    if rows["low"].notna().any():
        interval = base.mark_rule(strokeWidth=1.4)
        marks.append(interval.encode(alt.X("low:Q"), alt.X2("high:Q"), y, look["color"]))
    point, tooltip = base.mark_point(filled=True, size=34, opacity=1), measure.tooltip("about:N")
    marks.append(point.encode(measure.axis(rows, alt.X), y, look["color"], look["shape"], tooltip=tooltip))
    panel: Any = alt.layer(*marks).properties(width=230 if count == 1 else 330 / count, height=alt.Step(13))
    if len(split.panels) > 1:
        header = alt.Header(labelOrient="top", labelAnchor="start", labels=at == 0, labelPadding=2)
        row = alt.Row("panel:N", sort=list(split.panels), header=header, title=None)
        panel = panel.facet(row=row, data=alt.NamedData(name=DATA)).resolve_scale(y="independent")
    else:
        panel.data = alt.NamedData(name=DATA)
    wanted = " && datum.setting === setting" if len(split.choices) > 1 else ""
    return panel.transform_filter(f"datum.value === {at}{wanted}")
