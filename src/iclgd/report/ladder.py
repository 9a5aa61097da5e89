"""The figure of every variant from floor to ceiling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd

from iclgd.config.enumerations import Better, Role
from iclgd.report.chart import DATA, Figure, looks
from iclgd.report.marks import Measure, interval_words, measured, zero_rule
from iclgd.report.panels import PLACE, Frame, Grid, free_keys, labelled
from iclgd.results.rates import once

if TYPE_CHECKING:
    from iclgd.results.frame import Results

_MOST_STEPS, _MOST_SCORES = 40, 3  # rows of a ladder; scores side by side


def ladder(results: Results) -> Iterator[Figure]:
    """Every variant from floor to ceiling, once for each of its settings; the headline scores side by side.

    A variant that ran at several rates stands at those that its other draws chose; with a single draw none can choose,
    and each rate has a row.
    """
    rows = once(results)
    known = [pair for pair in measured(results, layered=False, rows=rows) if not pair[0].info.reads("other")]
    first = [pair for pair in known if pair[0].info.headline][:_MOST_SCORES] or known[:1]
    for pairs in filter(None, [first, *([pair] for pair in known[len(first) :])]):
        shown = [measure for measure, _ in pairs]
        split, steps = _split(results, pairs)
        if len(steps) > 1:
            inside = [_steps(measure, at, split, steps, len(shown)) for at, measure in enumerate(shown)]
            labels = ", ".join(measure.info.label for measure in shown)
            caption = f"{labels} of each variant. {interval_words(split.rows)}"
            if "rates" in split.rows and split.rows["rates"].notna().any():
                caption += " Where several rates were run, each draw is at the one that the other draws choose."
            if split.rows[["floor", "ceiling"]].notna().any(axis=None):
                caption += " Dotted: the best floor; dashed: the best ceiling."
            chart = split.choosing(alt.hconcat(*inside), filtered=True)
            name, choice = ("headline", "headline scores") if len(shown) > 1 else (shown[0].info.name, labels)
            yield Figure(f"ladder/{name}", "Variants side by side", chart, caption, choice, shown[0].info.headline)


def _split(results: Results, pairs: Sequence[tuple[Measure, Frame]]) -> tuple[Grid, list[str]]:
    """The rows by place, with bounds and the setting's text, and the ladder's steps from the floor up."""
    rows: Frame = pd.concat([part.assign(value=at) for at, (_, part) in enumerate(pairs)], ignore_index=True)
    order = list(results.labels)
    rows = rows.dropna(subset="mean").sort_values("finetune.name", key=lambda n: n.map(order.index), kind="stable")
    rows["panel"], panels = labelled(results, rows, PLACE)
    keys, choices = free_keys(results, rows), []
    settings, _ = labelled(results, rows, keys)
    several = rows.assign(text=settings).groupby(["panel", "variant"])["text"].transform("nunique") > 1
    rows["about"] = rows["variant"].where(~several, rows["variant"] + " · " + settings)
    if rows.groupby("panel")["about"].nunique().max() > _MOST_STEPS:
        rows["about"], (rows["setting"], choices) = rows["variant"], labelled(results, rows, keys)
    _set_bounds(results, [measure for measure, _ in pairs], rows)
    whole, order = labelled(results, rows, ["variant", *keys])
    about = dict(zip(whole, rows["about"], strict=True))
    return Grid(rows, panels, choices), list(dict.fromkeys(about[one] for one in order))


def _set_bounds(results: Results, shown: Sequence[Measure], rows: Frame) -> None:
    """Set `floor` and `ceiling` of every panel and score to the best of each."""
    roles = rows["finetune.name"].map({name: variant.role for name, variant in results.variants.items()})
    lower = rows["value"].map([one.info.better is Better.lower for one in shown].__getitem__)
    for column, role in (("floor", Role.floor), ("ceiling", Role.ceiling)):
        of = rows.assign(mean=rows["mean"].where(roles == role)).groupby(["panel", "value"])["mean"]
        rows[column] = of.transform("min").where(lower, of.transform("max"))


def _steps(measure: Measure, at: int, split: Grid, steps: list[str], count: int) -> Any:
    """One score of a ladder: rows are variants, the first score names them."""
    rows = split.rows[split.rows["value"] == at]
    look = looks(measure.results.variants, rows["variant"], ())
    y = alt.Y("about:N", sort=steps, title=None, axis=alt.Axis(labels=at == 0, grid=True, labelLimit=230))
    base = alt.Chart()
    bounds = [
        base.mark_rule(strokeDash=dash, strokeWidth=1).encode(alt.X(f"max({name}):Q"))
        for name, dash in (("floor", [1, 2]), ("ceiling", [5, 2]))
        if rows[name].notna().any()
    ]
    interval = base.mark_rule(strokeWidth=1.4).encode(alt.X("low:Q"), alt.X2("high:Q"), y, look["color"])
    mark = base.mark_point(filled=True, size=34, opacity=1).encode(
        measure.axis(rows, alt.X), y, look["color"], look["shape"], tooltip=measure.tooltip("about:N")
    )
    unseen = alt.Chart().mark_rule(color="transparent").encode(x=alt.value(0))  # so that panels have one height
    panel: Any = alt.layer(*(zero_rule(rows, "x") or [unseen]), *bounds, interval, mark)
    panel = panel.properties(width=230 if count == 1 else 330 / count, height=alt.Step(13))
    if len(split.panels) > 1:
        header = alt.Header(labelOrient="top", labelAnchor="start", labels=at == 0, labelPadding=2)
        row = alt.Row("panel:N", sort=list(split.panels), header=header, title=None)
        panel = panel.facet(row=row, data=alt.NamedData(name=DATA)).resolve_scale(y="independent")
    else:
        panel.data = alt.NamedData(name=DATA)
    wanted = " && datum.setting === setting" if len(split.choices) > 1 else ""
    return panel.transform_filter(f"datum.value === {at}{wanted}")
