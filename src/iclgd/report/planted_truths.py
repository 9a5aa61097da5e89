"""Maps and tables of planted truths: who is identified, and what is confused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from iclgd.common.printable import printable
from iclgd.report.chart import DATA, Figure, themed
from iclgd.report.formats import Table, number
from iclgd.report.marks import color_scale
from iclgd.report.panels import Frame, records
from iclgd.results.planted_truths import Notice, in_words, labels, notices, setting_in_words

if TYPE_CHECKING:
    from iclgd.results.frame import Results


def planted_truths(results: Results) -> Iterator[Figure]:
    """For each score, what every candidate scores where each variant plays ICL's part."""
    names, sweeps = labels(results), notices(results)
    for notice in sweeps:
        setting = setting_in_words(results, notice)
        parts: Any = notice.matrix.groupby("score", sort=False)
        for score, cells in parts:
            info = results.scores[str(score)]
            chart: Any = matrix(cells.replace({"truth": names, "candidate": names}), info.label, info.limits)
            caption = f"{info.label}, {setting}. Rows: what plays ICL's part; columns: candidates. "
            caption += "Mean over draws [95 % interval over draws]."
            name, choice = f"planted_truths/{info.name}", info.label
            if len(sweeps) > 1:
                name, choice = f"{name}/{setting}", f"{choice}, {setting}"
            yield Figure(name, "Would the scores notice?", chart, caption, choice, info.headline)


def matrix(frame: Frame, label: str, limits: Sequence[float]) -> alt.LayerChart:
    """A map of numbers, truths down and candidates across, with the interval of each written below it.

    The colour scale ends at `limits` where both are finite, so that it is the same for all matrices.
    """
    cells = frame[["candidate", "truth", "mean"]].set_axis(["x", "y", "mean"], axis=1)
    cells = cells.assign(x=cells["x"].map(printable), y=cells["y"].map(printable))
    ends = zip(frame["low"], frame["high"], strict=True)
    cells["value"] = [f"{value:.2f}" if np.isfinite(value) else "\N{EN DASH}" for value in frame["mean"]]
    cells["about"] = [f"[{low:.2f}, {high:.2f}]" if np.isfinite(low + high) else "" for low, high in ends]
    color = color_scale(pd.Series(limits) if np.isfinite(limits).all() else cells["mean"], label, limits)
    low, high = color.to_dict()["scale"]["domain"]
    dark = f"datum.mean !== null && abs(datum.mean - {(low + high) / 2}) > {(high - low) * 0.32}"
    ink = alt.when(dark).then(alt.value("white")).otherwise(alt.value("#1d2327"))
    axis = alt.Axis(orient="top", labelAngle=-35, domain=False, ticks=False)
    x = alt.X("x:N", sort=list(dict.fromkeys(cells["x"])), title=None, axis=axis)
    y = alt.Y("y:N", sort=list(dict.fromkeys(cells["y"])), title=None)
    base = alt.Chart(alt.NamedData(name=DATA))
    tiles = base.mark_rect(stroke="white", strokeWidth=1).encode(x, y, color)
    numbers = base.mark_text(dy=-5).encode(x, y, alt.Text("value:N"), color=ink)
    intervals = base.mark_text(dy=6, fontSize=6).encode(x, y, alt.Text("about:N"), color=ink)
    planted = base.mark_rect(filled=False, stroke="#1d2327", strokeWidth=1.6).encode(x, y)
    planted = planted.transform_filter("datum.x === datum.y")
    chart = alt.layer(tiles, planted, numbers, intervals).properties(width=alt.Step(42), height=alt.Step(27))
    return themed(chart, records(cells))


def notice_tables(results: Results) -> list[Table]:
    """For each model and task: the matrices of the headline scores, and the ranking of scores."""
    tables = []
    for at, notice in enumerate(notices(results)):
        suffix, setting = f"_{at + 1}" if at else "", setting_in_words(results, notice)
        tables += [make(results, notice, suffix, setting) for make in (_matrices, _ranking)]
    return [table for table in tables if table.rows]


def _matrices(results: Results, notice: Notice, suffix: str, setting: str) -> Table:
    names, texts = labels(results), []
    cells: Any = notice.matrix[notice.matrix["score"].isin(results.headline)]
    for cell in cells.to_dict("records"):
        score, truth, candidate = results.scores[cell["score"]], cell["truth"], cell["candidate"]
        text = number(cell["mean"], cell["low"], cell["high"], share=score.share, digits=score.digits)
        texts.append(((score.label, names.get(truth, truth)), (names.get(candidate, candidate),), text))
    title = f"What candidates score where a planted truth plays ICL's part: {setting}"
    notes = ("Mean over draws [95 % interval over draws].", in_words(results, notice))
    rows = notice.matrix.to_dict("records")
    return Table.pivot(f"notice_matrix{suffix}", title, ("score", "truth"), texts, notes, rows)


def _ranking(results: Results, notice: Notice, suffix: str, setting: str) -> Table:
    names, rows = labels(results), []
    for rank in notice.ranking:
        worst = sorted(rank.confusions.items(), key=lambda pair: -pair[1][1])[:3]
        confused = "; ".join(f"{names.get(t, t)} for {names.get(c, c)} ({part:.0%})" for t, (c, part) in worst)
        share = number(rank.share.mean, rank.share.low, rank.share.high, share=True)
        rows.append((results.scores[rank.score].label, share, f"{rank.chance:.0%}", confused))
    title = f"How often each score puts the true candidate first: {setting}"
    header = ("score", "identified", "chance", "most often taken for another")
    notes = ("Share of planted truths and draws [95 % interval over draws].",)
    numbers = [{"score": rank.score, "chance": rank.chance} | vars(rank.share) for rank in notice.ranking]
    return Table(f"notice_ranking{suffix}", title, header, 1, tuple(rows), notes, tuple(numbers))
