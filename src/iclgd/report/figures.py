"""The figures: each is specified once here, in Altair, for the page, for files and for W&B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from iclgd.choices import Better, Role
from iclgd.config import ConfigError, parse_layers
from iclgd.report.chart import DATA, Figure, looks, themed
from iclgd.report.marks import (
    color_scale,
    draws_words,
    heat_map,
    interval_words,
    is_headline,
    label_of,
    lines,
    mean_over_draws,
    measured,
    number_axis,
    of_score,
    published_layers,
    run_tables,
    score_axis,
    score_rows,
    some_runs,
    tooltip,
    zero_rule,
)
from iclgd.report.notice import notices
from iclgd.report.notice_tables import labels, place_in_words
from iclgd.report.panels import PLACE, Frame, Grid, free_keys, grid, in_order, place_texts, records, setting_texts, text
from iclgd.shown import printable

if TYPE_CHECKING:
    from iclgd.report.results import Results

_MOST_STEPS = 40  # rows of a ladder


def figures(results: Results) -> list[Figure]:
    """Every figure that the results have the data for, in reading order."""
    first = (ladder, planted_truths, by_layer, along_axes, layer_map)
    makers = (*first, between_variants, gradient_norms, by_head, training)
    return [figure for make in makers for figure in make(results)]


def planted_truths(results: Results) -> list[Figure]:
    """For each score, what every candidate scores where each variant plays ICL's part."""
    names, found = labels(results), []
    for notice in notices(results):
        parts: Any = notice.matrix.groupby("score", sort=False)
        for score, cells in parts:
            shown = cells.assign(truth=cells["truth"].map(names), candidate=cells["candidate"].map(names))
            info = results.scores[str(score)]
            limits = info.limits if np.isfinite(info.limits).all() else None
            chart = matrix(shown, "truth", "candidate", "mean", low="low", high="high", label=info.label, limits=limits)
            found.append((place_in_words(results, notice), info, chart))
    several = len({place for place, _, _ in found}) > 1
    caption = "Rows: what plays ICL's part; columns: candidates. Mean over draws [95 % interval over draws]."
    return [
        Figure(
            f"planted_truths/{info.name}" + (f"/{place}" if several else ""),
            "Would the scores notice?",
            chart,
            f"{info.label}, {place}. {caption}",
            choice=info.label + (f", {place}" if several else ""),
            headline=info.headline,
        )
        for place, info, chart in found
    ]


def by_layer(results: Results) -> list[Figure]:
    """Each score by layer: a line for each variant with its interval, and what was published where that is known."""
    made, names = [], measured(results, layered=True)
    for score in names:
        rows = score_rows(results, score, layered=True).dropna(subset="mean")
        if rows["layer"].nunique() < 2:
            continue
        rows["published"] = published_layers(rows, score)
        split = grid(results, rows)
        look = looks(results.variants).of(rows["variant"].unique(), "strokeDash")
        axis = alt.Axis(format="d", tickMinStep=1, tickCount=6)
        x = alt.X("layer:Q", title="layer", axis=axis, scale=alt.Scale(nice=False, zero=False, padding=3))
        marks = lines(results, score, rows, x, look, "layer", marked=bool(rows["layer"].max() < 16))
        beside = alt.Chart().mark_line(strokeDash=[1, 2], strokeWidth=1.1)
        theirs = rows["published"].notna().any()
        marks += [beside.encode(x, alt.Y("published:Q"), look["color"])] if theirs else []
        caption = f"{label_of(results, score)} by layer. {interval_words(rows)}"
        caption += " Fine dots: published values (Deutch et al., 2024, figure 3)." if theirs else ""
        made.append(of_score(results, "layers", score, names, "Scores by layer", split.draw(*marks), caption))
    return made


def along_axes(results: Results) -> list[Figure]:
    """Each score along each number that was swept over; other swept keys are headings of panels or choices."""
    made, names = [], measured(results, layered=False)
    for key in results.varied:
        for score in names:
            rows = score_rows(results, score, layered=False)
            if key not in free_keys(results, rows):
                continue
            rows["x"] = pd.to_numeric(rows[key], errors="coerce")
            if rows["x"].isna().any() or rows["x"].nunique() < 2 or rows[key].map(type).eq(bool).any():
                continue
            split = grid(results, rows, used=[key])
            look = looks(results.variants).of(rows["variant"].unique(), "strokeDash")
            marks = lines(results, score, rows, number_axis(key, rows["x"]), look, "x")
            lost = (
                alt.Chart()
                .mark_text(text="\N{MULTIPLICATION SIGN}", fontSize=12, baseline="bottom")
                .transform_filter("datum.mean === null")
            )
            lost = lost.encode(number_axis(key, rows["x"]), alt.Y(value=split.height), look["fill"])
            diverged = rows["mean"].isna().any()
            caption = f"{label_of(results, score)} against {key}. {interval_words(rows)}"
            caption += " Crosses: no draw gave a usable result." if diverged else ""
            chart = split.draw(*marks, *([lost] if diverged else []))
            title = f"Scores along {printable(key)}"
            made.append(of_score(results, f"along.{key}", score, names, title, chart, caption))
    return made


def ladder(results: Results) -> list[Figure]:
    """Every variant from floor to ceiling, a row for each of its settings; the headline scores side by side."""
    names = [name for name in measured(results, layered=False) if not _reads_other(results, name)]
    first = [name for name in names if is_headline(results, name, names)][:3]
    sets = [first, *[[name] for name in names if name not in first]] if len(first) > 1 else [[name] for name in names]
    made = []
    for scores in sets:
        split = _ladder_rows(results, scores)
        if split is None:
            continue
        inside = [_steps(results, score, at, split, len(scores)) for at, score in enumerate(scores)]
        labels = ", ".join(label_of(results, score) for score in scores)
        caption = f"{labels} of each variant. {interval_words(split.rows)}"
        if split.rows[["floor", "ceiling"]].notna().any(axis=None):
            caption += " Dotted: the best floor; dashed: the best ceiling."
        chart = split.choosing(alt.hconcat(*inside), filtered=True)
        name, choice = ("headline", "headline scores") if len(scores) > 1 else (scores[0], labels)
        headline = any(is_headline(results, score, names) for score in scores)
        made.append(Figure(f"ladder/{name}", "Between floor and ceiling", chart, caption, choice, headline))
    return made


def _ladder_rows(results: Results, scores: Sequence[str]) -> Grid | None:
    parts = [score_rows(results, score, layered=False) for score in scores]
    rows = pd.concat([part.assign(value=at) for at, part in enumerate(parts)], ignore_index=True)
    rows = rows.dropna(subset="mean")
    if rows.empty:
        return None
    rows["panel"] = place_texts(results, rows)
    keys = free_keys(results, rows)
    whole: Frame = rows.assign(about=rows["variant"])
    if keys:
        own: Frame = rows.assign(text=setting_texts(rows, keys))
        several = own.groupby(["panel", "variant"])["text"].transform("nunique") > 1
        whole["about"] = np.where(several, own["variant"] + " · " + own["text"], own["variant"])
    if whole.groupby("panel")["about"].nunique().max() > _MOST_STEPS:
        whole = rows.assign(about=rows["variant"], setting=setting_texts(rows, keys))
    choices = in_order(whole, "setting", keys) if "setting" in whole else []
    whole["rank"] = whole["variant"].map(list(looks(results.variants).labels.values()).index)
    roles = whole["finetune.name"].map(lambda name: results.variants[name].role)
    for column, role in (("floor", Role.floor), ("ceiling", Role.ceiling)):
        best = {}
        groups: Any = whole[roles == role].groupby(["panel", "value"])
        for (panel, at), part in groups:
            lower = results.scores[scores[int(at)]].better is Better.lower
            best[panel, at] = part["mean"].min() if lower else part["mean"].max()
        whole[column] = [best.get(where, np.nan) for where in zip(whole["panel"], whole["value"], strict=True)]
    if whole["about"].nunique() < 2:
        return None
    return Grid(whole, in_order(whole, "panel", PLACE), in_order(whole, "about", ["rank", *keys]), choices)


def _steps(results: Results, score: str, at: int, split: Grid, count: int) -> Any:
    """One score of a ladder: rows are variants, the first score names them."""
    rows = split.rows[split.rows["value"] == at]
    labels = rows["variant"].unique()
    look = looks(results.variants).of(labels, None)
    y = alt.Y("about:N", sort=list(split.across), title=None, axis=alt.Axis(labels=at == 0, grid=True, labelLimit=230))
    x = score_axis(results, score, rows, alt.X)
    base = alt.Chart()
    bounds = [("floor", [1, 2]), ("ceiling", [5, 2])]
    marks = [
        *zero_rule(rows, "x"),
        *(
            base.mark_rule(strokeDash=dash, strokeWidth=1).encode(alt.X(f"max({name}):Q"))
            for name, dash in bounds
            if rows[name].notna().any()
        ),
        base.mark_rule(strokeWidth=1.4).encode(alt.X("low:Q"), alt.X2("high:Q"), y, look["color"]),
        base.mark_point(filled=True, size=34, opacity=1).encode(
            x, y, look["color"], look["shape"], tooltip=tooltip(results, score, "about")
        ),
    ]
    width = 230 if count == 1 else 330 / count
    panel: Any = alt.layer(*marks).properties(width=width, height=alt.Step(13))
    if len(split.panels) > 1:
        header = alt.Header(labelOrient="top", labelAnchor="start", labels=at == 0, labelPadding=2)
        row = alt.Row("panel:N", sort=list(split.panels), header=header, title=None)
        panel = panel.facet(row=row, data=alt.NamedData(name=DATA)).resolve_scale(y="independent")
    else:
        panel.data = alt.NamedData(name=DATA)
    wanted = " && datum.setting === setting" if len(split.choices) > 1 else ""
    return panel.transform_filter(f"datum.value === {at}{wanted}")


def layer_map(results: Results) -> list[Figure]:
    """Where single layers were trained: how the score read at one layer depends on the layer that was trained."""
    if "finetune.layers" not in results.varied:
        return []
    made, names = [], measured(results, layered=True)
    for score in names:
        rows = score_rows(results, score, layered=True)
        rows["y"] = rows["finetune.layers"].map(trained_layer)
        rows = rows.dropna(subset=["y", "mean"]).assign(x=lambda r: r["layer"])
        if rows["y"].nunique() < 2:
            continue
        split = grid(results, rows, used=["finetune.layers"], panel=["variant"])
        chart = heat_map(split, label_of(results, score), "layer read", "layer trained", results.scores[score].limits)
        draws = rows["draws"].max()
        caption = f"{label_of(results, score)} read at each layer (across) where one layer alone was trained (up); "
        caption += f"mean over {draws} draws." if draws > 1 else "one draw."
        made.append(of_score(results, "layer_map", score, names, "Layer trained, layer read", chart, caption))
    return made


def trained_layer(layers: Any) -> float:
    """The one layer that `finetune.layers` names; NaN where it names more, or cannot be read."""
    try:
        parsed = parse_layers(layers)
    except ConfigError:
        return np.nan
    return float(parsed[0]) if parsed is not None and len(parsed) == 1 else np.nan


def between_variants(results: Results) -> list[Figure]:
    """Scores that compare two finetuning variants (such as alpha), by task and model."""
    made, names = [], measured(results, layered=False)
    for score in [name for name in names if _reads_other(results, name)]:
        rows = score_rows(results, score, layered=False).dropna(subset="mean")
        rows["about"] = [place or "" for place in place_texts(results, rows)]
        split = grid(results, rows, places=False)
        look = looks(results.variants).of(rows["variant"].unique())
        x = alt.X("about:N", sort=in_order(rows, "about", PLACE), title=None, axis=alt.Axis(labelAngle=-35))
        offset = alt.XOffset("variant:N")
        base = alt.Chart()
        mark = base.mark_point(filled=True, size=34, opacity=1)
        marks = [
            *zero_rule(rows),
            base.mark_rule(strokeWidth=1.3).encode(x, offset, alt.Y("low:Q"), alt.Y2("high:Q"), look["color"]),
            mark.encode(x, offset, score_axis(results, score, rows), look["color"], look["shape"]),
        ]
        others = {
            str((run.config.get("metric") or {}).get("compare_with")) for run in results.runs if score in run.scores
        }
        caption = f"{label_of(results, score)} between each variant and {printable(', '.join(sorted(others)))}. "
        chart = split.draw(*marks)
        made.append(
            of_score(results, "pairs", score, [score], "Between variants", chart, caption + interval_words(rows))
        )
    return made


def _reads_other(results: Results, score: str) -> bool:
    return any(path.startswith("other.") for path in (results.scores[score].inputs or {}).values())


def gradient_norms(results: Results) -> list[Figure]:
    """Gradient norms by layer and demonstration, a map for each variant and place; the mean over a few draws."""
    rows = run_tables(results, "gradient_norms", ["layer", "demonstration"])
    rows = rows[rows["value"] > 0].rename(columns={"demonstration": "x", "layer": "y", "value": "mean"})
    if rows.empty:
        return []
    split = grid(results, rows, panel=["variant"])
    chart = heat_map(split, "gradient norm", "demonstration", "layer", None, log=True)
    caption = f"Gradient norm of each demonstration in each trained layer; {draws_words(rows)}"
    return [Figure("gradient_norms", "Gradient norms", chart, caption)]


def by_head(results: Results) -> list[Figure]:
    """Scores of every head, as a map of layers and heads."""
    made: list[Figure] = []
    names = [name for name in results.scores if any(run.scores.get(name, {}).get("heads") for run in results.runs)]
    for score in names:
        parts = []
        for settings, run in some_runs(results):
            heads = (run.scores.get(score) or {}).get("heads") or []
            cells = [(y, x, v) for y, layer in enumerate(heads) for x, v in enumerate(layer) if v is not None]
            parts.append(pd.DataFrame(cells, columns=["y", "x", "mean"]).assign(**settings))
        rows = mean_over_draws(parts, ["y", "x"], "mean")
        if rows.empty:
            continue
        split = grid(results, rows, panel=["variant"])
        chart = heat_map(split, label_of(results, score), "head", "layer", results.scores[score].limits)
        caption = f"{label_of(results, score)} of each head; {draws_words(rows)}"
        made.append(of_score(results, "heads", score, names, "Scores by head", chart, caption))
    return made


def training(results: Results) -> list[Figure]:
    """The loss, and scores where they were taken, after each step of finetuning."""
    made = []
    losses = run_tables(results, "losses", ["step"], "loss").assign(score="loss")
    rows: Frame = pd.concat([losses, run_tables(results, "trajectory", ["step", "score"], "mean")], ignore_index=True)
    rows = rows.rename(columns={"step": "x", "value": "mean"})
    for score in rows["score"].unique():
        part = rows[rows["score"] == score].dropna(subset="mean")
        if part["x"].nunique() < 2:
            continue
        split = grid(results, part)
        label = label_of(results, score) if score in results.scores else score
        look = looks(results.variants).of(part["variant"].unique(), "strokeDash")
        x = number_axis("step", part["x"], step=True)
        y = alt.Y("mean:Q", title=label, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
        line = alt.Chart().mark_line().encode(x, y, look["color"], look["strokeDash"])
        caption = f"{label} after each step of finetuning; {draws_words(part)}"
        made.append(Figure(f"training/{score}", "Along finetuning", split.draw(line), caption, label, score == "loss"))
    return made


def matrix(
    frame: Frame,
    rows: str,
    columns: str,
    value: str,
    *,
    low: str | None = None,
    high: str | None = None,
    label: str = "",
    limits: Sequence[float] | None = None,
) -> alt.TopLevelMixin:
    """A map of numbers, such as what each candidate scores where each variant is the truth.

    Args:
        frame: one row for each cell, in the order in which rows and columns are to stand.
        rows: the column of `frame` whose values are the map's rows, from the top.
        columns: likewise across.
        value: the number that colours a cell and stands in it.
        low: lower end of its interval, written below it.
        high: the upper end.
        label: what the number is.
        limits: the ends of the colour scale; a scale with a negative end is centred on zero.
    """
    across, down = (list(dict.fromkeys(frame[name].map(text))) for name in (columns, rows))
    cells = pd.DataFrame({"x": frame[columns].map(text), "y": frame[rows].map(text), "mean": frame[value]})
    cells["value"] = [f"{v:.2f}" if np.isfinite(v) else "\N{EN DASH}" for v in frame[value]]
    if low and high:
        cells["about"] = [
            f"[{a:.2f}, {b:.2f}]" if np.isfinite(a) and np.isfinite(b) else ""
            for a, b in zip(frame[low], frame[high], strict=True)
        ]
    color = color_scale(cells["mean"], label, limits, log=False)
    low_end, high_end = color.to_dict()["scale"]["domain"]
    dark = f"datum.mean !== null && abs(datum.mean - {(low_end + high_end) / 2}) > {(high_end - low_end) * 0.32}"
    ink = alt.when(dark).then(alt.value("white")).otherwise(alt.value("#1d2327"))
    x = alt.X("x:N", sort=across, title=None, axis=alt.Axis(orient="top", labelAngle=-35, domain=False, ticks=False))
    y = alt.Y("y:N", sort=down, title=None)
    base = alt.Chart(alt.NamedData(name=DATA))
    number = base.mark_text(dy=-5 if low else 0).encode(x, y, alt.Text("value:N"), color=ink)
    layers = [base.mark_rect(stroke="white", strokeWidth=1).encode(x, y, color), number]
    if low and high:
        layers.append(base.mark_text(dy=6, fontSize=6).encode(x, y, alt.Text("about:N"), color=ink))
    size = {"width": alt.Step(42 if low else 30), "height": alt.Step(27 if low else 20)}
    return themed(alt.layer(*layers).properties(**size), records(cells))
