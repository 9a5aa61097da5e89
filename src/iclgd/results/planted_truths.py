"""Planted truths: what each score says where a finetuning variant plays ICL's part.

A truth is what plays ICL's part (`reference.name`), a candidate what is finetuned (`finetune.name`). The draws of
demonstrations are the sample.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from iclgd.config.enumerations import Better, Role
from iclgd.results.catalogue import ScoreInfo
from iclgd.results.frame import Results, overall
from iclgd.results.rates import other_keys
from iclgd.statistics import Interval, draws_interval, held_out, ratio_interval

TRUTH, CANDIDATE, RATE = "reference.name", "finetune.name", "finetune.lr"
_DRAW = ("seed", "model.weights_seed")
ICL = "icl"
Cells = dict[tuple[str, str], pd.Series]  # by truth and candidate, the values by draw


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


def notice(setting: Mapping[str, Any], rows: Any, scores: Sequence[ScoreInfo], floors: Collection[str]) -> Notice:
    """The notice of one setting; rows are one for each run and score, as in `Results.frame`."""
    rates = rows.groupby(CANDIDATE)[RATE].nunique()
    several = set(rates[rates > 1].index)  # whose rate is chosen
    matrix, ranking, standings = [], [], []
    for score in scores:
        cells = cells_of(rows, score)
        if not cells:
            continue
        ranking.append(identification(score, cells, bool(several)))
        intervals = {
            cell: draws_interval(values.to_numpy(), score.limits, chosen=cell[1] in several)
            for cell, values in cells.items()
        }
        for (truth, candidate), interval in intervals.items():
            cell = {"score": score.name, "truth": truth, "candidate": candidate, "draws": interval.n}
            matrix.append({**cell, "mean": interval.mean, "low": interval.low, "high": interval.high})
        standings += _standings(score, cells, intervals, floors, several)
    best_first = sorted((rank for rank in ranking if rank.share.n), key=lambda rank: -rank.share.mean)
    return Notice(setting, pd.DataFrame(matrix), tuple(best_first), tuple(standings))


def cells_of(rows: Any, score: ScoreInfo) -> Cells:
    """Each truth's and candidate's value by draw, at a rate of the candidate's that the other draws chose."""
    defined = rows[(rows["score"] == score.name) & rows["mean"].notna()]
    draws = defined.groupby([key for key in _DRAW if key in defined], dropna=False).ngroup()
    cells: Cells = {}
    for cell, group in defined.assign(draw=draws).groupby([TRUTH, CANDIDATE], sort=False):
        means = group.groupby(["draw", RATE])["mean"].mean().unstack(RATE)
        values = means.iloc[:, 0]
        if means.shape[1] > 1:
            rates = held_out(means.to_dict("index"), str(score.better))
            values = pd.Series({draw: means.at[draw, rate] for draw, rate in rates.items()}, dtype=float)
        if len(values):
            cells[cell] = values
    return cells


def identification(score: ScoreInfo, cells: Cells, chosen: bool = False) -> Identification:
    """How often the true candidate comes first among all candidates, over truths that are candidates too.

    Truths of one draw share its demonstrations. How closely they hang together, the spread between draws says; where
    all draws agree nothing says it, and each draw counts once.
    """
    values: Any = pd.concat(cells).rename_axis(["truth", "candidate", "draw"])
    signed = -values if score.better is Better.lower else values
    firsts, chances, confusions = {}, [], {}
    for truth, rows in signed.unstack("candidate", sort=False).groupby(level="truth", sort=False):
        if truth not in rows or rows[truth].isna().all():
            continue  # it is not a candidate
        own = rows.droplevel("truth").dropna(subset=truth)
        several = own[own.count(axis=1) > 1]
        best = several.eq(several.max(axis=1), axis=0)
        first = best.div(best.sum(axis=1), axis=0)  # equal first places share one
        firsts[truth] = first[truth]
        chances += list(1 / several.count(axis=1))
        instead = first.drop(columns=truth).sum() / len(own)
        if instead.max() > 0:
            confusions[truth] = (instead.idxmax(), float(instead.max()))
    of_truths = pd.DataFrame(firsts)
    by_draw = of_truths.mean(axis=1)
    trials = of_truths.count(axis=1) if by_draw.nunique() > 1 else pd.Series(len(by_draw), by_draw.index)
    share = draws_interval(by_draw.to_numpy(), trials=trials.tolist(), chosen=chosen)
    return Identification(score.name, share, float(np.mean(chances)) if chances else math.nan, confusions)


def _standings(
    score: ScoreInfo,
    cells: Cells,
    intervals: Mapping[tuple[str, str], Interval],
    floors: Collection[str],
    several: Set[str],
) -> Iterator[Standing]:
    nearest = min if score.better is Better.lower else max
    bottoms = [name for name in floors if (ICL, name) in cells]
    if not bottoms:
        return
    bottom = nearest(bottoms, key=lambda name: cells[ICL, name].mean())
    for truth, candidate in cells:
        if truth == ICL and candidate not in floors and (candidate, candidate) in cells:
            keys = (ICL, candidate), (ICL, bottom), (candidate, candidate)
            chosen = not several.isdisjoint({candidate, bottom})
            part = anchored(*(cells[key] for key in keys), chosen=chosen)
            yield Standing(score.name, candidate, *(intervals[key] for key in keys), anchored=part)


def anchored(icl: pd.Series, floor: pd.Series, planted: pd.Series, chosen: bool = False) -> Interval:
    """(icl - floor) / (planted - floor) of the means over the draws that all three have.

    The interval is Fieller's (`ratio_interval`), so that it moves with the anchors too. No value where the distance
    between the anchors is not told apart from zero.
    """
    values = pd.concat([icl, floor, planted], axis=1, join="inner").to_numpy()
    return ratio_interval(values[:, 0] - values[:, 1], values[:, 2] - values[:, 1], chosen=chosen)


def in_words(notice: Notice, score_labels: Mapping[str, str], labels: Mapping[str, str], standing_of: str) -> str:
    """One paragraph: which scores tell truths apart, which do not, and what a score says of ICL.

    The last sentences are about the score `standing_of`.
    """
    sentences, about = [], score_labels.get(standing_of, "")
    if notice.ranking:
        best, worst = notice.ranking[0], notice.ranking[-1]
        other = f" and {score_labels[worst.score]} in {_percent(worst.share)}" if worst is not best else ""
        sentences.append(
            f"Over the planted truths of {best.share.n} draws, {score_labels[best.score]} puts the true variant first "
            f"in {_percent(best.share)}{other}; guessing would in {best.chance:.0%}."
        )
    confusions = [pair for rank in notice.ranking if rank.score == standing_of for pair in rank.confusions.items()]
    if confusions:
        most = sorted(confusions, key=lambda pair: -pair[1][1])[:2]
        names = [f"{labels.get(t, t)} for {labels.get(c, c)} ({share:.0%} of draws)" for t, (c, share) in most]
        sentences.append(f"{about} takes {' and '.join(names)}.")
    standings = [standing for standing in notice.standings if standing.score == standing_of]
    apart = [at for at in standings if not math.isnan(at.anchored.mean)]
    if apart:
        values = (f"{labels.get(at.candidate, at.candidate)} {at.icl.mean:.2f} ({at.planted.mean:.2f})" for at in apart)
        parts = [f"{text}, which is {_percent(at.anchored)}" for text, at in zip(values, apart, strict=True)]
        sentences.append(
            f"{about} on ICL and, in brackets, what it would be if ICL were that variant: {'; '.join(parts)}. "
            f"The floor scores {standings[0].floor.mean:.2f}; "
            "percentages say how far on the way from it to the value in brackets."
        )
    if len(apart) < len(standings):
        others = ", ".join(labels.get(at.candidate, at.candidate) for at in standings if at not in apart)
        sentences.append(f"It would not show if ICL were one of these, whose scores are not above the floor: {others}.")
    return " ".join(sentences)


def paragraph(results: Results, notice: Notice) -> str:
    """What the sweep says, about the first headline score that it ranks."""
    ranked = {rank.score for rank in notice.ranking}
    of = next((name for name in results.headline if name in ranked), next(iter(ranked), ""))
    return in_words(notice, {name: score.label for name, score in results.scores.items()}, labels(results), of)


def setting_in_words(results: Results, notice: Notice) -> str:
    """The model, the task and what else varied."""
    weights = [] if "model.weights" in results.varied else ["model.weights"]
    return results.setting_text({key: value for key, value in notice.setting.items() if key not in weights})


def labels(results: Results) -> dict[str, str]:
    """What variants are called, and ICL."""
    return results.labels | {ICL: "ICL"}


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
