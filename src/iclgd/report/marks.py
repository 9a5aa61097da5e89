"""What figures share: one score's rows, axes, marks and colours, and words on what an interval is over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import altair as alt

from iclgd.common.printable import printable
from iclgd.report.chart import LINES, Figure, looks
from iclgd.report.panels import Frame, Grid
from iclgd.results.catalogue import ScoreInfo

if TYPE_CHECKING:
    from iclgd.results.frame import Results

_VALUES = ("mean", "low", "high", "published", "upper")
_PLAIN = "format(datum.value, '~g')"  # an axis's own format writes 10 as 1e+1
_MOST_MARKED, _LOG_RATIO = 16, 30  # marks on a line; how much an axis spans that is logarithmic


@dataclass(frozen=True)
class Measure:
    """One number of some results, such as a score, as figures show it."""

    results: Results
    info: ScoreInfo

    def figure(self, kind: str, title: str, chart: Any, caption: str) -> Figure:
        """A figure about it."""
        return Figure(f"{kind}/{self.info.name}", title, chart, caption, self.info.label, self.info.headline)

    def axis(self, rows: Frame, channel: Any = alt.Y) -> Any:
        """Its axis: it holds zero where the score can be negative, or where its values come near zero."""
        known = rows[[name for name in _VALUES if name in rows]]
        zero = self.info.limits[0] < 0 or bool(known.min().min() < 0.35 * known.max().max())
        axis = alt.Axis(tickCount=5, format="~%") if self.info.share else alt.Axis(tickCount=5, labelExpr=_PLAIN)
        return channel("mean:Q", title=self.info.label, scale=alt.Scale(zero=zero, nice=True), axis=axis)

    def tooltip(self, *about: Any) -> list[Any]:
        """What is told of a mark under the pointer."""
        numbers = [("mean", self.info.label), ("low", "low"), ("high", "high")]
        return ["variant:N", *about, *(alt.Tooltip(f"{n}:Q", format=".4f", title=title) for n, title in numbers)]

    def curves(self, split: Grid, x: Any, about: str) -> tuple[Any, str]:
        """A line and a band for each variant with marks where there is room, and words on what they mean.

        What was published is a dotted line, and a value where no draw gave a usable result a cross on the axis.
        """
        rows, base, y = split.rows, alt.Chart(), self.axis(split.rows)
        look = looks(self.results.variants, rows["variant"], LINES)
        words, layers = [f"{self.info.label} {about}. {interval_words(rows)}"], zero_rule(rows)
        if "low" in rows and rows["low"].notna().any():
            band = base.mark_area(opacity=0.16 if rows["variant"].nunique() <= 6 else 0.07)
            layers.append(band.encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), look["fill"]))
        layers.append(base.mark_line().encode(x, y, look["color"], look["strokeDash"]))
        marked = rows["x"].nunique() <= _MOST_MARKED
        point = base.mark_point(filled=True, size=20, opacity=int(marked)).transform_filter("datum.mean !== null")
        seen = [look["fill"], look["shape"]] if marked else []
        layers.append(point.encode(x, y, *seen, tooltip=self.tooltip(alt.Tooltip("x:Q", title=x["title"]))))
        if "published" in rows and rows["published"].notna().any():
            theirs = base.mark_line(strokeDash=[1, 2], strokeWidth=1.1)
            layers.append(theirs.encode(x, alt.Y("published:Q"), look["color"]))
            words.append("Fine dots: published values (Deutch et al., 2024, figure 3).")
        if rows["mean"].isna().any():
            cross = base.mark_text(text="\N{MULTIPLICATION SIGN}", fontSize=12, baseline="bottom")
            cross = cross.transform_filter("datum.mean === null")
            layers.append(cross.encode(x, alt.Y(value=split.height), look["fill"]))
            words.append("Crosses: no draw gave a usable result.")
        return split.draw(*layers), " ".join(words)

    def heat_map(self, split: Grid, x: str, y: str, about: str, log: bool = False) -> tuple[Any, str]:
        """Maps that share one colour scale, counted from the lower left, and words on what they show."""
        known = {name: sorted({int(value) for value in split.rows[name]}) for name in ("x", "y")}
        axes = {
            name: alt.Axis(values=values[:: -(-len(values) // 8)], labelAngle=0, grid=False, domain=False)
            for name, values in known.items()
        }
        across = alt.X("x:O", title=x, axis=axes["x"], scale=alt.Scale(domain=known["x"], padding=0))
        up = alt.Y("y:O", title=y, axis=axes["y"], sort=None, scale=alt.Scale(domain=known["y"][::-1], padding=0))
        color = color_scale(split.rows["mean"], self.info.label, self.info.limits, log)
        told = ["variant:N", alt.Tooltip("y:O", title=y), alt.Tooltip("x:O", title=x), "mean:Q"]
        cell = alt.Chart().mark_rect().encode(across, up, color, tooltip=told)
        return split.draw(
            cell, height=min(0.85 * split.width, 180)
        ), f"{self.info.label} {about}. {mean_words(split.rows)}"


def measured(results: Results, layered: bool, rows: Frame = None) -> Iterator[tuple[Measure, Frame]]:
    """Each score that was measured, headlines first, with its rows of the summary; without a mean if all diverged."""
    rows = results.summary if rows is None else rows
    known = rows["mean"].notna() | (rows[["diverged", "unstable"]].sum(axis=1) > 0)
    rows = rows[(rows["examples"] == "all") & (rows["layer"].notna() == layered) & known]
    parts = dict(iter(rows.assign(variant=rows["finetune.name"].map(results.labels)).groupby("score")))
    for name, info in results.scores.items():
        if name in parts and parts[name]["mean"].notna().any():
            yield Measure(results, info), parts[name].copy()


def number_axis(title: str, values: Frame, may_be_log: bool = True) -> Any:
    """The axis of a number: ticks at the values themselves while they are few, logarithmic if they span much."""
    known = sorted(set(values.astype(float)))
    log = may_be_log and known[0] > 0 and known[-1] / known[0] >= _LOG_RATIO
    ticks: dict[str, Any] = {"values": known} if len(known) <= 8 else {"tickCount": 6}
    ticks |= {"tickMinStep": 1} if not log and all(value.is_integer() for value in known) else {}
    scale = alt.Scale(type="log", nice=False, padding=4) if log else alt.Scale(zero=False, nice=False, padding=4)
    axis = alt.Axis(labelExpr=_PLAIN, labelOverlap=True, labelFlush=True, **ticks)
    return alt.X("x:Q", title=printable(title), scale=scale, axis=axis)


def zero_rule(rows: Frame, axis: str = "y") -> list[Any]:
    """A rule at zero, where there are values on both sides of it or below."""
    below = rows[[name for name in _VALUES if name in rows]].min().min() < 0
    return [alt.Chart().mark_rule().encode(**{axis: alt.datum(0)})] if below else []


def mean_words(rows: Frame) -> str:
    """What means without an interval are over."""
    most = int(rows["draws"].max())
    return f"Mean over the first {most} draws of demonstrations." if most > 1 else "One draw of demonstrations."


def interval_words(rows: Frame) -> str:
    """What intervals are over."""
    known = rows[rows["low"].notna()] if "low" in rows else rows[:0]
    if known.empty:
        return f"{mean_words(rows)} No intervals."
    draws: Frame = known.loc[known["unit"] == "draws", "draws"].astype(int)
    if len(draws):
        count = f"{draws.min()}" if draws.nunique() == 1 else f"{draws.min()} to {draws.max()}"
        rest = " (Student's t)." if len(draws) == len(known) else ", or over the queries where there is one draw."
        return f"95 % intervals over {count} draws of demonstrations{rest}"
    return "95 % intervals over the queries of one draw of demonstrations; other draws may lie outside."


def color_scale(values: Frame, label: str, limits: Sequence[float], log: bool = False) -> Any:
    """A colour scale: centred on zero where values can be negative, else from dark to light."""
    known = values.dropna().astype(float)
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if limits[0] < 0 and (low < 0 or math.isfinite(limits[0])):
        most = max(abs(low), abs(high)) or 1.0
        domain, scheme = [-most, most], "purpleorange"
    else:
        domain, scheme = [low, high if high > low else low * 10 if log else low + 1], "viridis"
    scale = alt.Scale(domain=domain, scheme=cast(Any, scheme), type="log" if log else "linear")
    return alt.Color("mean:Q", title=label, scale=scale, legend=alt.Legend(orient="right", format="~g", tickCount=4))
