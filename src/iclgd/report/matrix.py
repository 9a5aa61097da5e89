"""Maps of numbers: what each candidate scores where each variant plays ICL's part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np

from iclgd.common.printable import printable
from iclgd.report.chart import DATA, Figure, themed
from iclgd.report.marks import color_scale
from iclgd.report.panels import Frame, records
from iclgd.results.planted_truths import labels, notices, place_in_words

if TYPE_CHECKING:
    from iclgd.results.frame import Results


def planted_truths(results: Results) -> Iterator[Figure]:
    """For each score, what every candidate scores where each variant plays ICL's part."""
    names, found = labels(results), notices(results)
    for notice in found:
        place = place_in_words(results, notice)
        parts: Any = notice.matrix.groupby("score", sort=False)
        for score, cells in parts:
            info = results.scores[str(score)]
            chart: Any = matrix(cells.replace({"truth": names, "candidate": names}), info.label, info.limits)
            caption = f"{info.label}, {place}. Rows: what plays ICL's part; columns: candidates. "
            caption += "Mean over draws [95 % interval over draws]."
            name, choice = f"planted_truths/{info.name}", info.label
            if len(found) > 1:
                name, choice = f"{name}/{place}", f"{choice}, {place}"
            yield Figure(name, "Would the scores notice?", chart, caption, choice, info.headline)


def matrix(frame: Frame, label: str, limits: Sequence[float]) -> alt.LayerChart:
    """A map of numbers with the interval of each written below it.

    Args:
        frame: columns truth (rows, from the top), candidate (across), mean, low and high; a row for each cell, in the
            order in which rows and columns are to stand.
        label: what the number is.
        limits: its least and largest value; a scale with a negative end is centred on zero.
    """
    cells = frame[["candidate", "truth", "mean"]].set_axis(["x", "y", "mean"], axis=1)
    cells = cells.assign(x=cells["x"].map(printable), y=cells["y"].map(printable))
    ends = zip(frame["low"], frame["high"], strict=True)
    cells["value"] = [f"{value:.2f}" if np.isfinite(value) else "\N{EN DASH}" for value in frame["mean"]]
    cells["about"] = [f"[{low:.2f}, {high:.2f}]" if np.isfinite(low + high) else "" for low, high in ends]
    color = color_scale(cells["mean"], label, limits)
    low_end, high_end = color.to_dict()["scale"]["domain"]
    dark = f"datum.mean !== null && abs(datum.mean - {(low_end + high_end) / 2}) > {(high_end - low_end) * 0.32}"
    ink = alt.when(dark).then(alt.value("white")).otherwise(alt.value("#1d2327"))
    axis = alt.Axis(orient="top", labelAngle=-35, domain=False, ticks=False)
    x = alt.X("x:N", sort=list(dict.fromkeys(cells["x"])), title=None, axis=axis)
    y = alt.Y("y:N", sort=list(dict.fromkeys(cells["y"])), title=None)
    base = alt.Chart(alt.NamedData(name=DATA))
    tiles = base.mark_rect(stroke="white", strokeWidth=1).encode(x, y, color)
    numbers = base.mark_text(dy=-5).encode(x, y, alt.Text("value:N"), color=ink)
    intervals = base.mark_text(dy=6, fontSize=6).encode(x, y, alt.Text("about:N"), color=ink)
    chart = alt.layer(tiles, numbers, intervals).properties(width=alt.Step(42), height=alt.Step(27))
    return themed(chart, records(cells))
