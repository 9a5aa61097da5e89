"""What figures share: one score's rows, axes, marks and colours, and words on what an interval is over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np

from iclgd.common.printable import printable
from iclgd.report.chart import LINES, Figure, looks
from iclgd.report.panels import Frame, Grid
from iclgd.results.catalogue import ScoreInfo, Variant

if TYPE_CHECKING:
    from iclgd.results.frame import Results

_VALUES = ("mean", "low", "high", "planted", "published")
_PLAIN = "format(datum.value, '~g')"  # an axis's own format writes 10 as 1e+1
_LABEL = "datum.value === -1 ? 'all' : isNumber(datum.value) ? format(datum.value, '~g') : datum.value"
LOGARITHMIC = ("finetune.lr", "task.shots")  # keys whose axes are logarithmic
LOG_RATIO = 30  # how much any other axis spans that is logarithmic
_MOST_MARKED = 16  # marks on a line
_NAMED = 340  # points: the width of a map whose rows have names
# Not mechanisms, but what they are compared with: by setting, what a figure calls it and its colour.
SETTINGS = {
    "icl": Variant(name="icl", label="ICL", color="#000000"),
    "zsl": Variant(name="zsl", label="Zero-shot", color="#9a9a9a"),
}
_TITLES = {"finetune.lr": "learning rate", "task.shots": "demonstrations", "finetune.layers": "trained layers"}


@dataclass(frozen=True)
class Measure:
    """One number of some results, such as a score, as figures show it."""

    results: Results
    info: ScoreInfo

    def figure(self, kind: str, title: str, chart: Any, caption: str) -> Figure:
        """A figure about it."""
        return Figure(f"{kind}/{self.info.name}", title, chart, caption, self.info.label, self.info.headline)

    def axis(self, rows: Frame, channel: Any = alt.Y, log: bool = False, ticks: int = 5) -> Any:
        """Its axis: it holds zero where the score can be negative, or where its values come near zero."""
        values = rows[[name for name in _VALUES if name in rows]]
        low, high = values.min().min(), values.max().max()
        scale = alt.Scale(zero=bool(self.info.limits[0] < 0 or low < 0.35 * high), nice=True)
        options: dict[str, Any] = {"format": "~%"} if self.info.share else {"labelExpr": _PLAIN}
        if log and 0 < low <= high / LOG_RATIO:
            scale = alt.Scale(type="log", nice=True)
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            options["values"] = [10.0**power for power in powers]
        return channel("mean:Q", title=self.info.label, scale=scale, axis=alt.Axis(tickCount=ticks, **options))

    def tooltip(self, *about: Any) -> list[Any]:
        """What is shown of a mark under the pointer."""
        numbers = [("mean", self.info.label), ("low", "low"), ("high", "high")]
        return ["variant:N", *about, *(alt.Tooltip(f"{n}:Q", format=".4f", title=title) for n, title in numbers)]

    def curves(self, split: Grid, x: Any, about: str, log: bool = False, dots: str = "") -> tuple[Any, str]:
        """A line and a band for each variant with marks where there is room, and words on what they mean.

        `published` is a dotted line, on which `dots` has words, a draw alone among several a hollow mark,
        and a value where no draw gave a usable result a cross on the axis.
        """
        rows, base = split.rows, alt.Chart()
        words, layers = [f"{self.info.label} {about}. {interval_words(rows)}"], zero_rule(rows)
        look = looks({**SETTINGS, **self.results.variants}, rows["variant"], LINES, split.total)
        y = self.axis(rows, log=log)
        several = "low" in rows and bool(rows["low"].notna().any())
        if several:
            rows["lone"] = (rows["draws"] == 1) & rows["mean"].notna()  # it has no interval, and a band shows none
            band = base.mark_area(opacity=0.16 if rows["variant"].nunique() <= 6 else 0.07)
            layers.append(band.encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), look["fill"]))
        layers.append(base.mark_line().encode(x, y, look["color"], look["strokeDash"]))
        marked = rows["x"].nunique() <= _MOST_MARKED
        point = base.mark_point(filled=True, size=20, opacity=int(marked)).transform_filter("isValid(datum.mean)")
        tooltip = self.tooltip(alt.Tooltip("x", type=x["type"], title=x["title"]))
        layers.append(point.encode(x, y, *[look["fill"], look["shape"]] * marked, tooltip=tooltip))
        if several and rows["lone"].any():
            hollow = base.mark_point(filled=True, fill="white", size=24, strokeWidth=1.2).transform_filter("datum.lone")
            layers.append(hollow.encode(x, y, look["color"], look["shape"], tooltip=tooltip))
        if "published" in rows and rows["published"].notna().any():
            theirs = base.mark_line(strokeDash=[1, 2], strokeWidth=1.1)
            layers.append(theirs.encode(x, alt.Y("published:Q"), look["color"]))
            words.append(dots)
        if rows["mean"].isna().any():
            cross = base.mark_text(text="\N{MULTIPLICATION SIGN}", fontSize=12, baseline="bottom")
            cross = cross.transform_filter("datum.mean === null")
            layers.append(cross.encode(x, alt.Y(value=split.height), look["fill"]))
            words.append("Crosses: no draw gave a usable result.")
        return split.draw(*layers), " ".join(words)

    def heat_map(self, split: Grid, x: str, y: str, about: str, log: bool = False) -> tuple[Any, str]:
        """Maps that share one colour scale, numbers upwards and names downwards, and words on what they show."""
        across, up = (_levels(split.rows[name]) for name in ("x", "y"))
        names = isinstance(up[0], str)
        ticks = [levels[:: -(-len(levels) // 8)] for levels in (across, up)]
        look: dict[str, Any] = {"labelAngle": 0, "grid": False, "domain": False, "labelExpr": _LABEL}
        channels = (
            alt.X("x:O", title=x, axis=alt.Axis(values=ticks[0], **look), scale=alt.Scale(domain=across, padding=0)),
            alt.Y("y:O", title=y, axis=alt.Axis(values=up if names else ticks[1], **look), sort=None,
                  scale=alt.Scale(domain=up if names else up[::-1], padding=0)),
            color_scale(split.rows["mean"], self.info.label, self.info.limits, log),
        )  # fmt: skip
        tooltip = ["variant:N", alt.Tooltip("y:O", title=y), alt.Tooltip("x:O", title=x), "mean:Q"]
        size = {"width": split.width, "height": min(0.85 * split.width, 180)}
        if names:
            size = {"width": max(split.width, _NAMED), "height": 11.0 * len(up)}
        layers, words = [alt.Chart().mark_rect().encode(*channels, tooltip=tooltip)], mean_words(split.rows)
        if (split.rows["mean"] < 0).any():  # without colour, both ends of the scale look alike
            minus = alt.Chart().mark_text(text="\N{MINUS SIGN}", fontSize=11).transform_filter("datum.mean < 0")
            layers.append(minus.encode(*channels[:2]))
            words += " Minus: below zero."
        return split.draw(*layers, **size), f"{self.info.label} {about}. {words}"


def _levels(column: Frame) -> list[Any]:
    """The different values of a column: numbers by size, names as they come."""
    values = list(dict.fromkeys(column))
    return values if isinstance(values[0], str) else sorted(values)


def measured(results: Results, layered: bool, rows: Frame = None) -> Iterator[tuple[Measure, Frame]]:
    """Each score that was measured, headlines first, with its rows of the summary; without a mean if all diverged.

    Intervals over draws stay; those over the queries of a single draw are dropped, because they are narrower and would
    make the setting with the fewest draws look the most precise.
    """
    rows = results.summary if rows is None else rows
    usable = rows["mean"].notna() | (rows[["diverged", "unstable"]].sum(axis=1) > 0)
    rows = rows[(rows["examples"] == "all") & (rows["layer"].notna() == layered) & usable].copy()
    rows.loc[rows["unit"] != "draws", ["low", "high"]] = np.nan
    parts = dict(iter(rows.assign(variant=rows["finetune.name"].map(results.labels)).groupby("score")))
    for name, info in results.scores.items():
        if name in parts and parts[name]["mean"].notna().any():
            yield Measure(results, info), parts[name].copy()


def axis_title(results: Results, key: str) -> str:
    """What an axis calls a key."""
    return printable(_TITLES.get(key) or results.heading(key).replace("_", " "))


def number_axis(title: str, values: Frame, log: bool = False) -> Any:
    """The axis of a number: ticks at the values themselves while they are few; logarithmic where that is possible."""
    ticks = sorted(set(values.astype(float)))
    log = log and ticks[0] > 0
    options: dict[str, Any] = {"values": ticks} if len(ticks) <= 9 else {"tickCount": 6}
    options |= {"tickMinStep": 1} if not log and all(value.is_integer() for value in ticks) else {}
    scale = alt.Scale(type="log", nice=False, padding=4) if log else alt.Scale(zero=False, nice=False, padding=4)
    axis = alt.Axis(labelExpr=_PLAIN, labelOverlap=True, labelFlush=True, **options)
    return alt.X("x", type="quantitative", title=title, scale=scale, axis=axis)


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
    with_interval = rows[rows["low"].notna()] if "low" in rows else rows[:0]
    if with_interval.empty:
        return f"{mean_words(rows)} No intervals."
    draws: Frame = with_interval["draws"].astype(int)
    count = f"{draws.min()}" if draws.nunique() == 1 else f"{draws.min()} to {draws.max()}"
    lone = bool(((rows["draws"] == 1) & rows["mean"].notna()).any())
    return f"95 % intervals over {count} draws of demonstrations." + " One draw alone has no interval." * lone


def color_scale(values: Frame, label: str, limits: Sequence[float], log: bool = False) -> Any:
    """A colour scale: centred on zero where values can be negative, else from dark to light."""
    defined = values.dropna().astype(float)
    low, high = (float(defined.min()), float(defined.max())) if len(defined) else (0.0, 1.0)
    if limits[0] < 0 and (low < 0 or math.isfinite(limits[0])):
        most = max(abs(low), abs(high)) or 1.0
        domain, scheme = [-most, most], "blueorange"
    else:
        domain, scheme = [low, high if high > low else low * 10 if log else low + 1], "viridis"
    scale = alt.Scale(domain=domain, scheme=scheme, type="log" if log else "linear")  # pyright: ignore
    return alt.Color(
        "mean:Q", title=label, scale=scale, legend=alt.Legend(titleOrient="left", format="~g", tickCount=4)
    )
