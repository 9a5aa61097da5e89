"""Tables of planted truths: who is identified, what is confused, and where ICL stands between its anchors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from iclgd.report.catalogue import ScoreInfo
from iclgd.report.formats import Table, number
from iclgd.report.notice import ICL, Notice, in_words
from iclgd.report.results import Results
from iclgd.runs import varied
from iclgd.statistics import Interval


def notice_tables(results: Results, found: Iterable[Notice]) -> list[Table]:
    """For each model and task: the matrices of the headline scores, the ranking of scores, and the anchored scores."""
    made = []
    for at, notice in enumerate(found):
        end = f"_{at + 1}" if at else ""
        made += [_matrices(results, notice, end), _ranking(results, notice, end), _anchored(results, notice, end)]
    return [table for table in made if table.rows]


def place_in_words(results: Results, notice: Notice) -> str:
    """The model, the task and what else varied."""
    own = ("model.name", "task.name", "task.shots")
    return ", ".join(
        results.text(key, value) if key in own else f"{varied.heading(key, results.keys)} {results.text(key, value)}"
        for key, value in notice.place.items()
        if key != "model.weights" or key in results.varied
    )


def labels(results: Results) -> dict[str, str]:
    """What variants are called, and ICL."""
    return {name: variant.label for name, variant in results.variants.items()} | {ICL: "ICL"}


def paragraph(results: Results, notice: Notice) -> str:
    """What the sweep says, about the first headline score that it ranks."""
    names = {name: score.label for name, score in results.scores.items()}
    ranked = {rank.score for rank in notice.ranking}
    of = next((name for name in results.headline if name in ranked), next(iter(ranked), ""))
    return in_words(notice, names, labels(results), of)


def _matrices(results: Results, notice: Notice, end: str) -> Table:
    names, rows = labels(results), []
    cells: Any = notice.matrix[notice.matrix["score"].isin(results.headline)]
    candidates = list(dict.fromkeys(map(str, cells["candidate"])))
    groups: Any = cells.groupby(["score", "truth"], sort=False)
    for (score, truth), group in groups:
        by = {cell["candidate"]: cell for cell in group.to_dict("records")}
        texts = [_cell(by.get(candidate), results.scores[score]) for candidate in candidates]
        rows.append((results.scores[score].label, names.get(truth, truth), *texts))
    return Table(
        f"notice_matrix{end}",
        f"What candidates score where a planted truth plays ICL's part: {place_in_words(results, notice)}",
        ("score", "truth", *(names.get(name, name) for name in candidates)),
        2,
        tuple(rows),
        ("Mean over draws [95 % interval over draws].", paragraph(results, notice)),
        tuple(notice.matrix.to_dict("records")),
    )


def _ranking(results: Results, notice: Notice, end: str) -> Table:
    names, rows, records = labels(results), [], []
    for rank in notice.ranking:
        share = number(rank.share.mean, rank.share.low, rank.share.high, share=True)
        worst = sorted(rank.confusions.items(), key=lambda pair: -pair[1][1])[:3]
        confused = "; ".join(f"{names.get(t, t)} for {names.get(c, c)} ({part:.0%})" for t, (c, part) in worst)
        rows.append((results.scores[rank.score].label, share, f"{rank.chance:.0%}", confused))
        records.append({"score": rank.score, "chance": rank.chance} | vars(rank.share))
    return Table(
        f"notice_ranking{end}",
        f"How often each score puts the true candidate first: {place_in_words(results, notice)}",
        ("score", "identified", "chance", "most often taken for another"),
        1,
        tuple(rows),
        ("Share of planted truths and draws [95 % interval over draws].",),
        tuple(records),
    )


def _anchored(results: Results, notice: Notice, end: str) -> Table:
    names, rows, records = labels(results), [], []
    for at in notice.standings:
        score = results.scores[at.score]
        texts = [_interval(part, score) for part in (at.icl, at.floor, at.planted)]
        anchored = "not told apart" if math.isnan(at.anchored.mean) else _interval(at.anchored, None)
        rows.append((score.label, names.get(at.candidate, at.candidate), *texts, anchored))
        parts = {"icl": at.icl, "floor": at.floor, "planted": at.planted, "anchored": at.anchored}
        numbers = {f"{name}_{key}": value for name, part in parts.items() for key, value in vars(part).items()}
        records.append({"score": at.score, "candidate": at.candidate} | numbers)
    return Table(
        f"notice_anchored{end}",
        f"Scores on ICL between their anchors: {place_in_words(results, notice)}",
        ("score", "candidate", "on ICL", "floor on ICL", "if ICL were the candidate", "anchored"),
        2,
        tuple(rows),
        ("Anchored: 0 is the floor's score and 1 what the candidate scores where its own variant plays ICL's part.",),
        tuple(records),
    )


def _cell(cell: Mapping[str, Any] | None, score: ScoreInfo) -> str:
    return "" if cell is None else number(cell["mean"], cell["low"], cell["high"], share=score.share)


def _interval(found: Interval, score: ScoreInfo | None) -> str:
    return number(found.mean, found.low, found.high, share=bool(score and score.share))
