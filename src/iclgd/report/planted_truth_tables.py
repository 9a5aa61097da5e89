"""Tables of planted truths: who is identified, what is confused, and where ICL stands between its anchors."""

from __future__ import annotations

import math
from typing import Any

from iclgd.report.formats import Table, number
from iclgd.results.frame import Results
from iclgd.results.planted_truths import Notice, labels, notices, paragraph, place_in_words
from iclgd.statistics import Interval


def notice_tables(results: Results) -> list[Table]:
    """For each model and task: the matrices of the headline scores, the ranking of scores, and the anchored scores."""
    made = []
    for at, notice in enumerate(notices(results)):
        end, place = f"_{at + 1}" if at else "", place_in_words(results, notice)
        made += [make(results, notice, end, place) for make in (_matrices, _ranking, _anchored)]
    return [table for table in made if table.rows]


def _matrices(results: Results, notice: Notice, end: str, place: str) -> Table:
    names, entries = labels(results), []
    cells: Any = notice.matrix[notice.matrix["score"].isin(results.headline)]
    for cell in cells.to_dict("records"):
        score, truth, candidate = results.scores[cell["score"]], cell["truth"], cell["candidate"]
        text = number(cell["mean"], cell["low"], cell["high"], share=score.share, digits=score.digits)
        entries.append(((score.label, names.get(truth, truth)), (names.get(candidate, candidate),), text))
    title = f"What candidates score where a planted truth plays ICL's part: {place}"
    notes = ("Mean over draws [95 % interval over draws].", paragraph(results, notice))
    records = notice.matrix.to_dict("records")
    return Table.wide(f"notice_matrix{end}", title, ("score", "truth"), entries, notes, records)


def _ranking(results: Results, notice: Notice, end: str, place: str) -> Table:
    names, rows = labels(results), []
    for rank in notice.ranking:
        worst = sorted(rank.confusions.items(), key=lambda pair: -pair[1][1])[:3]
        confused = "; ".join(f"{names.get(t, t)} for {names.get(c, c)} ({part:.0%})" for t, (c, part) in worst)
        rows.append((results.scores[rank.score].label, _text(rank.share, True), f"{rank.chance:.0%}", confused))
    title = f"How often each score puts the true candidate first: {place}"
    header = ("score", "identified", "chance", "most often taken for another")
    notes = ("Share of planted truths and draws [95 % interval over draws].",)
    records = [{"score": rank.score, "chance": rank.chance} | vars(rank.share) for rank in notice.ranking]
    return Table(f"notice_ranking{end}", title, header, 1, tuple(rows), notes, tuple(records))


def _anchored(results: Results, notice: Notice, end: str, place: str) -> Table:
    names, rows, records = labels(results), [], []
    for at in notice.standings:
        score = results.scores[at.score]
        texts = [_text(part, score.share, score.digits) for part in (at.icl, at.floor, at.planted)]
        anchored = "not told apart" if math.isnan(at.anchored.mean) else _text(at.anchored)
        rows.append((score.label, names.get(at.candidate, at.candidate), *texts, anchored))
        parts = {"icl": at.icl, "floor": at.floor, "planted": at.planted, "anchored": at.anchored}
        numbers = {f"{name}_{key}": value for name, part in parts.items() for key, value in vars(part).items()}
        records.append({"score": at.score, "candidate": at.candidate} | numbers)
    title = f"Scores on ICL between their anchors: {place}"
    header = ("score", "candidate", "on ICL", "floor on ICL", "if ICL were the candidate", "anchored")
    note = "Anchored: 0 is the floor's score, 1 what the candidate scores where its own variant plays ICL's part."
    return Table(f"notice_anchored{end}", title, header, 2, tuple(rows), (note,), tuple(records))


def _text(found: Interval, share: bool = False, digits: int = 3) -> str:
    return number(found.mean, found.low, found.high, share=share, digits=digits)
