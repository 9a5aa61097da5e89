"""The figures: each is specified once here, in Altair, for the page, for files and for W&B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from iclgd.choices import Better, Role
from iclgd.config import ConfigError, parse_layers
from iclgd.report import published
from iclgd.report.chart import DATA, Figure, looks, themed
from iclgd.report.panels import PLACE, Grid, free_keys, grid, in_order, place_texts, records, setting_texts, text
from iclgd.shown import printable

if TYPE_CHECKING:
    from iclgd.report.reading import FinishedRun
    from iclgd.report.results import Results

_VALUES = ("mean", "low", "high", "published")
_PLAIN = "format(datum.value, '~g')"  # an axis's own format writes 10 as 1e+1
_MAPS = {"diverging": "purpleorange", "sequential": "viridis"}
_MOST_STEPS, _MOST_RUNS, _LOG_RATIO = 40, 24, 30  # rows of a ladder, runs whose tables are read, when an axis is log


def figures(results: Results) -> list[Figure]:
    """Every figure that the results have the data for, in reading order."""
    makers = (ladder, by_layer, along_axes, layer_map, between_variants, gradient_norms, by_head, training)
    return [figure for make in makers for figure in make(results)]


def by_layer(results: Results) -> list[Figure]:
    """Each score by layer: a line for each variant with its interval, and what was published where that is known."""
    made, names = [], _scores(results, layered=True)
    for score in names:
        rows = _rows(results, score, layered=True).dropna(subset="mean")
        if rows["layer"].nunique() < 2:
            continue
        rows["published"] = _published(results, rows, score)
        split = grid(results, rows)
        look = looks(results.variants).of(rows["variant"].unique(), "strokeDash")
        axis = alt.Axis(format="d", tickMinStep=1, tickCount=6)
        x = alt.X("layer:Q", title="layer", axis=axis, scale=alt.Scale(nice=False, zero=False, padding=3))
        marks = _lines(results, score, rows, x, look, "layer", marked=rows["layer"].max() < 16)
        beside = alt.Chart().mark_line(strokeDash=[1, 2], strokeWidth=1.1)
        theirs = rows["published"].notna().any()
        marks += [beside.encode(x, alt.Y("published:Q"), look["color"])] if theirs else []
        caption = f"{_label(results, score)} by layer. {_interval_words(rows)}"
        caption += " Fine dots: published values (Deutch et al., 2024, figure 3)." if theirs else ""
        made.append(_figure(results, "layers", score, names, "Scores by layer", split.draw(*marks), caption))
    return made


def along_axes(results: Results) -> list[Figure]:
    """Each score along each number that was swept over; other swept keys are headings of panels or choices."""
    made, names = [], _scores(results, layered=False)
    for key in results.varied:
        for score in names:
            rows = _rows(results, score, layered=False)
            if key not in free_keys(results, rows):
                continue
            rows["x"] = pd.to_numeric(rows[key], errors="coerce")
            if rows["x"].isna().any() or rows["x"].nunique() < 2 or rows[key].map(type).eq(bool).any():
                continue
            split = grid(results, rows, used=[key])
            look = looks(results.variants).of(rows["variant"].unique(), "strokeDash")
            marks = _lines(results, score, rows, _number_axis(key, rows["x"]), look, "x")
            lost = alt.Chart().mark_text(text="×", fontSize=12, baseline="bottom").transform_filter("datum.mean === null")
            lost = lost.encode(_number_axis(key, rows["x"]), alt.Y(value=split.height), look["fill"])
            diverged = rows["mean"].isna().any()
            caption = f"{_label(results, score)} against {key}. {_interval_words(rows)}"
            caption += " Crosses: no draw gave a usable result." if diverged else ""
            chart = split.draw(*marks, *([lost] if diverged else []))
            title = f"Scores along {printable(key)}"
            made.append(_figure(results, f"along.{key}", score, names, title, chart, caption))
    return made


def ladder(results: Results) -> list[Figure]:
    """Every variant from floor to ceiling, a row for each of its settings; the headline scores side by side."""
    names = [name for name in _scores(results, layered=False) if not _reads_other(results, name)]
    first = [name for name in names if _is_headline(results, name, names)][:3]
    sets = [first, *[[name] for name in names if name not in first]] if len(first) > 1 else [[name] for name in names]
    made = []
    for scores in sets:
        split = _ladder_rows(results, scores)
        if split is None:
            continue
        inside = [_steps(results, score, at, split, len(scores)) for at, score in enumerate(scores)]
        labels = ", ".join(_label(results, score) for score in scores)
        caption = f"{labels} of each variant. {_interval_words(split.rows)}"
        if split.rows[["floor", "ceiling"]].notna().any(axis=None):
            caption += " Dotted: the best floor; dashed: the best ceiling."
        chart = split.choosing(alt.hconcat(*inside), filtered=True)
        name, choice = ("headline", "headline scores") if len(scores) > 1 else (scores[0], labels)
        headline = any(_is_headline(results, score, names) for score in scores)
        made.append(Figure(f"ladder/{name}", "Between floor and ceiling", chart, caption, choice, headline))
    return made


def _ladder_rows(results: Results, scores: Sequence[str]) -> Grid | None:
    parts = [_rows(results, score, layered=False) for score in scores]
    rows = pd.concat([part.assign(value=at) for at, part in enumerate(parts)], ignore_index=True)
    rows = rows.dropna(subset="mean")
    if rows.empty:
        return None
    rows["panel"] = place_texts(results, rows)
    keys = free_keys(results, rows)
    whole = rows.assign(about=rows["variant"])
    if keys:
        own = rows.assign(text=setting_texts(rows, keys))
        several = own.groupby(["panel", "variant"])["text"].transform("nunique") > 1
        whole["about"] = np.where(several, own["variant"] + " · " + own["text"], own["variant"])
    if whole.groupby("panel")["about"].nunique().max() > _MOST_STEPS:
        whole = rows.assign(about=rows["variant"], setting=setting_texts(rows, keys))
    choices = in_order(whole, "setting", keys) if "setting" in whole else []
    whole["rank"] = whole["variant"].map(list(looks(results.variants).labels.values()).index)
    roles = whole["finetune.name"].map(lambda name: results.variants[name].role)
    for column, role in (("floor", Role.floor), ("ceiling", Role.ceiling)):
        best = {}
        for (panel, at), part in whole[roles == role].groupby(["panel", "value"]):
            lower = results.scores[scores[at]].better is Better.lower
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
    x = _value(results, score, rows, alt.X)
    base = alt.Chart()
    marks = [
        *_zero(rows, "x"),
        base.mark_rule(strokeDash=[1, 2], strokeWidth=1).encode(alt.X("max(floor):Q")),
        base.mark_rule(strokeDash=[5, 2], strokeWidth=1).encode(alt.X("max(ceiling):Q")),
        base.mark_rule(strokeWidth=1.4).encode(alt.X("low:Q"), alt.X2("high:Q"), y, look["color"]),
        base.mark_point(filled=True, size=34, opacity=1).encode(
            x, y, look["color"], look["shape"], tooltip=_tooltip(results, score, "about")
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
    made, names = [], _scores(results, layered=True)
    for score in names:
        rows = _rows(results, score, layered=True)
        rows["y"] = rows["finetune.layers"].map(trained_layer)
        rows = rows.dropna(subset=["y", "mean"]).assign(x=lambda r: r["layer"])
        if rows["y"].nunique() < 2:
            continue
        split = grid(results, rows, used=["finetune.layers"], panel=["variant"])
        chart = _map(split, _label(results, score), "layer read", "layer trained", results.scores[score].limits)
        draws = rows["draws"].max()
        caption = f"{_label(results, score)} read at each layer (across) where one layer alone was trained (up); "
        caption += f"mean over {draws} draws." if draws > 1 else "one draw."
        made.append(_figure(results, "layer_map", score, names, "Layer trained, layer read", chart, caption))
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
    made, names = [], _scores(results, layered=False)
    for score in [name for name in names if _reads_other(results, name)]:
        rows = _rows(results, score, layered=False).dropna(subset="mean")
        rows["about"] = [place or "" for place in place_texts(results, rows)]
        split = grid(results, rows, places=False)
        look = looks(results.variants).of(rows["variant"].unique())
        x = alt.X("about:N", sort=in_order(rows, "about", PLACE), title=None, axis=alt.Axis(labelAngle=-35))
        offset = alt.XOffset("variant:N")
        base = alt.Chart()
        mark = base.mark_point(filled=True, size=34, opacity=1)
        marks = [
            *_zero(rows),
            base.mark_rule(strokeWidth=1.3).encode(x, offset, alt.Y("low:Q"), alt.Y2("high:Q"), look["color"]),
            mark.encode(x, offset, _value(results, score, rows), look["color"], look["shape"]),
        ]
        others = {str((run.config.get("metric") or {}).get("compare_with")) for run in results.runs if score in run.scores}
        caption = f"{_label(results, score)} between each variant and {printable(', '.join(sorted(others)))}. "
        chart = split.draw(*marks)
        made.append(_figure(results, "pairs", score, [score], "Between variants", chart, caption + _interval_words(rows)))
    return made


def _reads_other(results: Results, score: str) -> bool:
    return any(path.startswith("other.") for path in (results.scores[score].inputs or {}).values())


def gradient_norms(results: Results) -> list[Figure]:
    """Gradient norms by layer and demonstration, a map for each variant and place; the mean over a few draws."""
    rows = _tables(results, "gradient_norms", ["layer", "demonstration"])
    rows = rows[rows["value"] > 0].rename(columns={"demonstration": "x", "layer": "y", "value": "mean"})
    if rows.empty:
        return []
    split = grid(results, rows, panel=["variant"])
    chart = _map(split, "gradient norm", "demonstration", "layer", None, log=True)
    caption = f"Gradient norm of each demonstration in each trained layer; {_draws_words(rows)}"
    return [Figure("gradient_norms", "Gradient norms", chart, caption)]


def by_head(results: Results) -> list[Figure]:
    """Scores of every head, as a map of layers and heads."""
    made: list[Figure] = []
    names = [name for name in results.scores if any(run.scores.get(name, {}).get("heads") for run in results.runs)]
    for score in names:
        parts = []
        for settings, run in _some_runs(results):
            heads = (run.scores.get(score) or {}).get("heads") or []
            cells = [(y, x, v) for y, layer in enumerate(heads) for x, v in enumerate(layer) if v is not None]
            parts.append(pd.DataFrame(cells, columns=["y", "x", "mean"]).assign(**settings))
        rows = _mean_over_draws(parts, ["y", "x"], "mean")
        if rows.empty:
            continue
        split = grid(results, rows, panel=["variant"])
        chart = _map(split, _label(results, score), "head", "layer", results.scores[score].limits)
        caption = f"{_label(results, score)} of each head; {_draws_words(rows)}"
        made.append(_figure(results, "heads", score, names, "Scores by head", chart, caption))
    return made


def training(results: Results) -> list[Figure]:
    """The loss, and scores where they were taken, after each step of finetuning."""
    made = []
    losses = _tables(results, "losses", ["step"], value="loss").assign(score="loss")
    measured = _tables(results, "trajectory", ["step", "score"], value="mean")
    rows = pd.concat([losses.rename(columns={"value": "mean"}), measured.rename(columns={"value": "mean"})])
    for score in rows["score"].unique():
        part = rows[rows["score"] == score].dropna(subset="mean").rename(columns={"step": "x"})
        if part["x"].nunique() < 2:
            continue
        split = grid(results, part)
        label = _label(results, score) if score in results.scores else score
        look = looks(results.variants).of(part["variant"].unique(), "strokeDash")
        x = _number_axis("step", part["x"], step=True)
        y = alt.Y("mean:Q", title=label, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
        line = alt.Chart().mark_line().encode(x, y, look["color"], look["strokeDash"])
        caption = f"{label} after each step of finetuning; {_draws_words(part)}"
        made.append(Figure(f"training/{score}", "Along finetuning", split.draw(line), caption, label, score == "loss"))
    return made


def matrix(
    frame: pd.DataFrame,
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
    cells["value"] = [f"{v:.2f}" if np.isfinite(v) else "–" for v in frame[value]]
    if low and high:
        cells["about"] = [
            f"[{a:.2f}, {b:.2f}]" if np.isfinite(a) and np.isfinite(b) else ""
            for a, b in zip(frame[low], frame[high], strict=True)
        ]
    color = _color(cells["mean"], label, limits, log=False)
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


# What figures share


def _figure(
    results: Results, kind: str, score: str, among: Sequence[str], title: str, chart: Any, caption: str
) -> Figure:
    headline = _is_headline(results, score, among)
    return Figure(f"{kind}/{score}", title, chart, caption, _label(results, score), headline)


def _is_headline(results: Results, score: str, among: Sequence[str]) -> bool:
    """Whether a score's figures are also files; where no score is a headline, all are."""
    return results.scores[score].headline or not any(results.scores[name].headline for name in among)


def _label(results: Results, score: str) -> str:
    return printable(results.scores[score].label, 40)


def _rows(results: Results, score: str, layered: bool) -> pd.DataFrame:
    """The summary's rows of one score; those without a mean only where every draw diverged."""
    summary = results.summary
    of = (summary["score"] == score) & (summary["examples"] == "all") & (summary["layer"].notna() == layered)
    rows = summary[of & (summary["mean"].notna() | (summary[["diverged", "unstable"]].sum(axis=1) > 0))]
    return rows.assign(variant=rows["finetune.name"].map(looks(results.variants).labels))


def _scores(results: Results, layered: bool) -> list[str]:
    """The scores that were measured, headlines first, then as the runs have them."""
    summary = results.summary
    measured = set(summary.loc[summary["mean"].notna() & (summary["layer"].notna() == layered), "score"])
    names = [name for name in results.scores if name in measured]
    return sorted(names, key=lambda name: not results.scores[name].headline)


def _lines(
    results: Results, score: str, rows: pd.DataFrame, x: Any, look: dict[str, Any], about: str, marked: bool = True
) -> list[Any]:
    """A line and a band for each variant, with marks where there is room for them."""
    base, y = alt.Chart(), _value(results, score, rows)
    opacity = 0.16 if rows["variant"].nunique() <= 6 else 0.07
    band = base.mark_area(opacity=opacity).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), look["fill"])
    line = base.mark_line().encode(x, y, look["color"], look["strokeDash"])
    point = base.mark_point(filled=True, size=20, opacity=int(marked)).transform_filter("datum.mean !== null")
    seen = [look["fill"], look["shape"]] if marked else []
    return [*_zero(rows), band, line, point.encode(x, y, *seen, tooltip=_tooltip(results, score, about))]


def _value(results: Results, score: str, rows: pd.DataFrame, channel: Any = alt.Y) -> Any:
    """The axis of a score: it holds zero where the score can be negative, or where its values come near zero."""
    info = results.scores[score]
    known = rows[[name for name in _VALUES if name in rows]]
    zero = info.limits[0] < 0 or bool(known.min().min() < 0.35 * known.max().max())
    axis = alt.Axis(tickCount=5, format="~%") if info.share else alt.Axis(tickCount=5, labelExpr=_PLAIN)
    return channel("mean:Q", title=_label(results, score), scale=alt.Scale(zero=zero, nice=True), axis=axis)


def _number_axis(key: str, values: pd.Series, step: bool = False) -> Any:
    """The axis of a swept number: ticks at the values themselves while they are few, logarithmic if they span much."""
    known = sorted(set(values.astype(float)))
    log = not step and known[0] > 0 and known[-1] / known[0] >= _LOG_RATIO
    counted = all(value.is_integer() for value in known)
    ticks: dict[str, Any] = {"values": known} if len(known) <= 8 else {"tickCount": 6}
    ticks |= {"tickMinStep": 1} if counted and not log else {}
    scale = alt.Scale(type="log" if log else "linear", zero=False, nice=False, padding=4)
    axis = alt.Axis(labelExpr=_PLAIN, labelOverlap=True, labelFlush=True, **ticks)
    return alt.X("x:Q", title=printable(key), scale=scale, axis=axis)


def _zero(rows: pd.DataFrame, axis: str = "y") -> list[Any]:
    """A rule at zero, where there are values on both sides of it or below."""
    below = rows[[name for name in _VALUES if name in rows]].min().min() < 0
    return [alt.Chart().mark_rule().encode(**{axis: alt.datum(0)})] if below else []


def _tooltip(results: Results, score: str, about: str) -> list[Any]:
    numbers = [("mean", _label(results, score)), ("low", "low"), ("high", "high")]
    return ["variant:N", f"{about}:N", *(alt.Tooltip(f"{n}:Q", format=".4f", title=title) for n, title in numbers)]


def _interval_words(rows: pd.DataFrame) -> str:
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


def _published(results: Results, rows: pd.DataFrame, score: str) -> list[float]:
    """For each row the published value of its layer, NaN where there is none."""
    known = published.published()
    curves = known["layers"].get(score, {})
    alike = (rows["task.shots"] == known["shots"]) & (rows["model.weights"] == "pretrained")
    alike &= rows["model.name"].str.lower().str.endswith(known["model"].lower())
    values = []
    for same, task, variant, layer in zip(alike, rows["task.name"], rows["finetune.name"], rows["layer"], strict=True):
        curve = curves.get(task, {}).get(variant, []) if same else []
        values.append(curve[layer] if layer < len(curve) else np.nan)
    return values


def _map(
    split: Grid, label: str, x: str, y: str, limits: Sequence[float] | None, log: bool = False
) -> Any:
    """Heat maps that share one colour scale, counted from the lower left."""
    known = {name: sorted({int(value) for value in split.rows[name]}) for name in ("x", "y")}
    axes = {
        name: alt.Axis(values=values[:: -(-len(values) // 8)], labelAngle=0, grid=False, domain=False)
        for name, values in known.items()
    }
    across = alt.X("x:O", title=x, axis=axes["x"], scale=alt.Scale(domain=known["x"], padding=0))
    up = alt.Y("y:O", title=y, axis=axes["y"], sort=None, scale=alt.Scale(domain=known["y"][::-1], padding=0))
    cell = alt.Chart().mark_rect().encode(across, up, _color(split.rows["mean"], label, limits, log))
    cell = cell.encode(tooltip=["variant:N", alt.Tooltip("y:O", title=y), alt.Tooltip("x:O", title=x), "mean:Q"])
    return split.draw(cell, height=min(0.85 * split.width, 180))


def _color(values: pd.Series, label: str, limits: Sequence[float] | None, log: bool) -> Any:
    """A colour scale: centred on zero where values can be negative, else from dark to light."""
    known = values.dropna().astype(float)
    if limits is not None and limits[0] < 0:
        most = float(known.abs().max()) if len(known) else 1.0
        domain, scheme = [-(most or 1.0), most or 1.0], _MAPS["diverging"]
    else:
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        domain, scheme = [low, high if high > low else low * 10 if log else low + 1], _MAPS["sequential"]
    scale = alt.Scale(domain=domain, scheme=scheme, type="log" if log else "linear")
    return alt.Color("mean:Q", title=label, scale=scale, legend=alt.Legend(orient="right", format="~g", tickCount=4))


def _some_runs(results: Results) -> list[tuple[dict[str, Any], FinishedRun]]:
    """Runs whose own tables are read, first draws first, and their settings; a few, for each costs a file."""
    labels = looks(results.variants).labels
    pairs = sorted(zip(results.setting_of, results.runs, strict=True), key=lambda pair: (str(pair[1].draw), pair[0]))
    chosen = []
    for at, run in pairs[:_MOST_RUNS]:
        settings = results.settings.iloc[at].to_dict()
        settings |= {"variant": labels[settings["finetune.name"]], "draw": str(run.draw)}
        chosen.append((settings, run))
    return chosen


def _tables(results: Results, name: str, by: list[str], value: str = "value") -> pd.DataFrame:
    """A table of some runs, its mean over everything else and over draws."""
    parts = []
    for settings, run in _some_runs(results):
        table = run.table(name)
        if table is not None and len(table) and run.state == "sane":
            mean = table.groupby(by, as_index=False, sort=False)[value].mean().rename(columns={value: "value"})
            parts.append(mean.assign(**settings))
    return _mean_over_draws(parts, by, "value")


def _mean_over_draws(parts: Sequence[pd.DataFrame], by: Sequence[str], value: str) -> pd.DataFrame:
    parts = [part for part in parts if len(part)]
    if not parts:
        return pd.DataFrame(columns=[*by, value, "variant", "draws"])
    rows = pd.concat(parts, ignore_index=True)
    keys = [key for key in rows if key not in (value, "draw")]
    found = rows.groupby(keys, as_index=False, sort=False, dropna=False)
    return found.agg(**{value: (value, "mean"), "draws": ("draw", "nunique")})


def _draws_words(rows: pd.DataFrame) -> str:
    draws = int(rows["draws"].max())
    return f"mean over {draws} draws of demonstrations." if draws > 1 else "one draw of demonstrations."
