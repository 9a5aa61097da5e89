"""Planted truths: what each score says where a finetuning variant plays ICL's part.

A truth is what plays ICL's part (`reference.name`), a candidate what is finetuned (`finetune.name`). The draws of
demonstrations are the sample.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from iclgd.config.enumerations import Better, Role
from iclgd.results.catalogue import ScoreInfo
from iclgd.results.frame import Results, overall
from iclgd.results.rates import other_keys
from iclgd.statistics import Interval, draws_interval, held_out, ratio_interval

TRUTH, CANDIDATE, RATE, DRAW = "reference.name", "finetune.name", "finetune.lr", "seed"
ICL = "icl"
Draws = Mapping[Hashable, float]
Cells = Mapping[tuple[str, str], Draws]  # (truth, candidate)


@dataclass(frozen=True)
class Identification:
    """How often a score puts the true candidate first."""

    score: str  # its name
    # over pairs of a truth and a draw, with its interval over draws; equal first places count in part
    share: Interval
    chance: float  # the share that guessing has
    # by truth, the candidate that most often stands first instead, and the share of draws
    confusions: Mapping[str, tuple[str, float]]


@dataclass(frozen=True)
class Standing:
    """Where what a score says of a candidate and ICL lies between its anchors."""

    score: str  # its name
    candidate: str  # the variant
    icl: Interval  # the score where ICL is ICL
    floor: Interval  # the same of the floor that comes nearest to ICL
    planted: Interval  # the score where the candidate's own variant plays ICL's part
    # (icl - floor) / (planted - floor), with an interval that carries the uncertainty of all three; NaN where
    # the anchors cannot be told apart
    anchored: Interval


@dataclass(frozen=True)
class Notice:
    """All that one sweep of truths and candidates says, for one model and task."""

    setting: Mapping[str, Any]  # the model, the task and what else varied
    matrix: pd.DataFrame  # columns score, truth, candidate, mean, low, high, draws: a row for each cell
    ranking: tuple[Identification, ...]  # by score, the best at identifying first
    standings: tuple[Standing, ...]  # by score and candidate that was planted too


def notices(results: Results) -> list[Notice]:
    """What every setting (model, task and whatever else varied) says; none where only ICL has played ICL's part."""
    frame: Any = results.frame
    if TRUTH not in frame:
        return []
    rows = overall(frame)
    rows = rows[rows["state"] == "sane"]
    scores = [s for s in results.scores.values() if s.better is not Better.neither and s.reads("icl") and s.reads("ft")]
    floors = [name for name, variant in results.variants.items() if variant.role is Role.floor]
    order = {name: index for index, name in enumerate([ICL, *results.variants])}
    rows = rows.sort_values(by=[TRUTH, CANDIDATE], key=lambda names: names.map(order).fillna(len(order)), kind="stable")
    keys = [key for key in other_keys(results) if key != TRUTH]
    of_icl, of_planted = rows[rows[TRUTH] == ICL], rows[rows[TRUTH] != ICL]
    of_each = []
    for values, planted in of_planted.groupby(keys, sort=False, dropna=False):
        setting = dict(zip(keys, values, strict=True))
        group: Any = pd.concat([_in_setting(of_icl, setting), planted])
        if group[TRUTH].nunique() > 1:
            of_each.append(notice(setting, group, scores, floors))
    return [one for one in of_each if len(one.matrix)]


def _in_setting(rows: Any, setting: Mapping[str, Any]) -> Any:
    """ICL's own rows in a setting; what only planted truths have (their rate) may be missing from them."""
    for key, value in setting.items():
        missing = rows[key].isna()
        same = missing if pd.isna(value) else rows[key] == value
        rows = rows[same if same.any() or not key.startswith("reference.") else missing]
    return rows


def notice(
    setting: Mapping[str, Any], rows: pd.DataFrame, scores: Sequence[ScoreInfo], floors: Collection[str]
) -> Notice:
    """The notice of one setting; rows are one for each run and score, as in `Results.frame`."""
    table: Any = rows
    several = {name for name, group in table.groupby(CANDIDATE) if group[RATE].nunique() > 1}  # whose rate is chosen
    cells = [(score, cells_of(rows, score)) for score in scores]
    cells = [(score, own) for score, own in cells if own]
    ranking = [identification(score, own, bool(several)) for score, own in cells]
    best_first = sorted((rank for rank in ranking if rank.share.n), key=lambda rank: -rank.share.mean)
    matrix = [row for score, own in cells for row in _matrix(score, own, several)]
    standings = [row for score, own in cells for row in _standings(score, own, floors, several)]
    return Notice(setting, pd.DataFrame(matrix), tuple(best_first), tuple(standings))


def cells_of(rows: pd.DataFrame, score: ScoreInfo) -> Cells:
    """Each truth's and candidate's value by draw, at a rate of the candidate's that the other draws chose."""
    table: Any = rows
    defined = table[(table["score"] == score.name) & table["mean"].notna()]
    cells: dict[tuple[str, str], Draws] = {}
    for (truth, candidate), group in defined.groupby([TRUTH, CANDIDATE], sort=False):
        means = group.groupby([DRAW, RATE])["mean"].mean()
        by_draw = {draw: means[draw].to_dict() for draw in means.index.get_level_values(0).unique()}
        if group[RATE].nunique() > 1:
            choice = held_out(by_draw, str(score.better))
            values = {} if choice is None else dict(choice.values)
        else:
            values = {draw: next(iter(rates.values())) for draw, rates in by_draw.items()}
        if values:
            cells[truth, candidate] = values
    return cells


def identification(score: ScoreInfo, cells: Cells, chosen: bool = False) -> Identification:
    """How often the true candidate comes first among all candidates, over truths that are candidates too.

    Truths of one draw share its demonstrations. How closely they hang together, the spread between draws says; where
    all draws agree nothing says it, and each draw counts once.
    """
    candidates = list(dict.fromkeys(candidate for _, candidate in cells))
    first: dict[Hashable, list[float]] = {}  # by draw: truths of one draw share its demonstrations and hang together
    chances, confusions, sign = [], {}, -1 if score.better is Better.lower else 1
    for truth in [name for name in candidates if (name, name) in cells]:
        instead: dict[str, float] = {}
        draws = cells[truth, truth]
        for draw in draws:
            values = {c: sign * cells[truth, c][draw] for c in candidates if draw in cells.get((truth, c), {})}
            if len(values) < 2:
                continue
            best = [c for c, value in values.items() if value == max(values.values())]
            first.setdefault(draw, []).append((truth in best) / len(best))
            chances.append(1 / len(values))
            for other in best:
                instead[other] = instead.get(other, 0) + 1 / len(best) / len(draws)
        instead.pop(truth, None)
        if instead:
            confusions[truth] = max(instead.items(), key=lambda pair: pair[1])
    chance = float(np.mean(chances)) if chances else math.nan
    by_draw = [float(np.mean(truths)) for truths in first.values()]
    apart = len(set(by_draw)) > 1
    trials = [len(truths) if apart else len(first) for truths in first.values()]
    share = draws_interval(by_draw, trials=trials, chosen=chosen)
    return Identification(score.name, share, chance, confusions)


def _standings(score: ScoreInfo, cells: Cells, floors: Collection[str], several: Set[str]) -> Iterator[Standing]:
    bottoms = [name for name in floors if (ICL, name) in cells]
    if not bottoms:
        return
    nearest = min if score.better is Better.lower else max
    bottom = nearest(bottoms, key=lambda name: float(np.mean(list(cells[ICL, name].values()))))
    floor = cells[ICL, bottom]
    for (truth, candidate), icl in cells.items():
        if truth == ICL and candidate not in floors and (candidate, candidate) in cells:
            planted = cells[candidate, candidate]
            on_icl, on_floor, on_planted = (
                draws_interval(list(draws.values()), score.limits, chosen=name in several)
                for name, draws in ((candidate, icl), (bottom, floor), (candidate, planted))
            )
            part = anchored(icl, floor, planted, chosen=not several.isdisjoint({candidate, bottom}))
            yield Standing(score.name, candidate, on_icl, on_floor, on_planted, part)


def anchored(icl: Draws, floor: Draws, planted: Draws, chosen: bool = False) -> Interval:
    """(icl - floor) / (planted - floor) of the means over the draws that all three have.

    The interval is Fieller's (`ratio_interval`), so that it moves with the anchors too. No value where the distance
    between the anchors is not told apart from zero.
    """
    draws = [draw for draw in icl if draw in floor and draw in planted]
    above = np.array([icl[draw] - floor[draw] for draw in draws])
    return ratio_interval(above, np.array([planted[draw] - floor[draw] for draw in draws]), chosen=chosen)


def _matrix(score: ScoreInfo, cells: Cells, several: Set[str]) -> Iterator[dict[str, Any]]:
    for (truth, candidate), draws in cells.items():
        interval = draws_interval(list(draws.values()), score.limits, chosen=candidate in several)
        cell = {"score": score.name, "truth": truth, "candidate": candidate, "draws": interval.n}
        yield {**cell, "mean": interval.mean, "low": interval.low, "high": interval.high}


def in_words(notice: Notice, score_labels: Mapping[str, str], labels: Mapping[str, str], standing_of: str) -> str:
    """One paragraph: which scores tell truths apart, which do not, and what a score says of ICL.

    The last sentences are about the score `standing_of`.
    """
    sentences = []
    if notice.ranking:
        best, worst = notice.ranking[0], notice.ranking[-1]
        other = f" and {score_labels[worst.score]} in {_percent(worst.share)}" if worst is not best else ""
        sentences.append(
            f"Over the planted truths of {best.share.n} draws, {score_labels[best.score]} puts the true variant first "
            f"in {_percent(best.share)}{other}; guessing would in {best.chance:.0%}."
        )
    for rank in notice.ranking:
        if rank.score == standing_of and rank.confusions:
            pairs = sorted(rank.confusions.items(), key=lambda pair: -pair[1][1])[:2]
            names = [f"{labels.get(t, t)} for {labels.get(c, c)} ({share:.0%} of draws)" for t, (c, share) in pairs]
            sentences.append(f"{score_labels[standing_of]} takes {' and '.join(names)}.")
    standings = [standing for standing in notice.standings if standing.score == standing_of]
    if standings:
        of_each = "; ".join(_of_the_way(standing, labels) for standing in standings)
        sentences.append(
            f"{score_labels[standing_of]} on ICL and, in brackets, what it would be if ICL were that variant: "
            f"{of_each}. The floor scores {standings[0].floor.mean:.2f}; "
            "percentages say how far on the way from it to the value in brackets."
        )
    return " ".join(sentences)


def _of_the_way(at: Standing, labels: Mapping[str, str]) -> str:
    values = f"{labels.get(at.candidate, at.candidate)} {at.icl.mean:.2f} ({at.planted.mean:.2f})"
    if math.isnan(at.anchored.mean):
        return values
    return f"{values}, which is {_percent(at.anchored)}"


def setting_in_words(results: Results, notice: Notice) -> str:
    """The model, the task and what else varied."""
    weights = [] if "model.weights" in results.varied else ["model.weights"]
    return results.setting_text({key: value for key, value in notice.setting.items() if key not in weights})


def labels(results: Results) -> dict[str, str]:
    """What variants are called, and ICL."""
    return results.labels | {ICL: "ICL"}


def paragraph(results: Results, notice: Notice) -> str:
    """What the sweep says, about the first headline score that it ranks."""
    ranked = {rank.score for rank in notice.ranking}
    of = next((name for name in results.headline if name in ranked), next(iter(ranked), ""))
    return in_words(notice, {name: score.label for name, score in results.scores.items()}, labels(results), of)


def _percent(share: Interval) -> str:
    ends = "" if math.isnan(share.low) else f" [{share.low:.0%}, {share.high:.0%}]"
    return f"{share.mean:.0%}{ends}"


def beside_planted(results: Results, rows: Any) -> Any:
    """Rows of `Results.summary` against ICL itself; `planted` is the score where the mechanism itself plays its part.

    All rows as they are where ICL never plays its own part, or nothing else does.
    """
    if TRUTH not in rows or not (rows[TRUTH] == ICL).any():
        return rows
    keys = [*(key for key in other_keys(results) if not key.startswith("reference.")), CANDIDATE, "score"]
    planted = rows[rows[TRUTH] == rows[CANDIDATE]].groupby(keys, dropna=False)["mean"].mean()
    return rows[rows[TRUTH] == ICL].join(planted.rename("planted"), on=keys)
