"""Planted truths: what each score says where a finetuning variant plays ICL's part.

A truth is what plays ICL's part (`reference.name`), a candidate what is finetuned (`finetune.name`). The draws of
demonstrations are the sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from iclgd.config.enumerations import Better
from iclgd.results.catalogue import ScoreInfo
from iclgd.results.frame import Results
from iclgd.results.rates import VARIANT, Contender, contenders, other_keys
from iclgd.statistics import Interval, draws_interval

TRUTH = "reference.name"
ICL = "icl"
Cells = Mapping[tuple[str, str], Mapping[Any, float]]  # by truth and candidate, the values by draw


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
class Notice:
    """All that one sweep of truths and candidates says, for one model and task."""

    setting: Mapping[str, Any]  # the model, the task and what else varied
    matrix: pd.DataFrame  # columns score, truth, candidate, mean, low, high, draws: a row for each cell
    ranking: tuple[Identification, ...]  # by score, the best at identifying first


def notices(results: Results) -> list[Notice]:
    """What every setting (model, task and whatever else varied) says; none where only ICL has played ICL's part."""
    of_icl: list[Contender] = []
    of_planted: dict[tuple[Any, ...], list[Contender]] = {}
    for one in contenders(results)[0]:
        truth = one.others.get(TRUTH, ICL)
        setting = tuple((key, value) for key, value in one.others.items() if key != TRUTH)
        if truth == ICL:
            of_icl.append(one)
        else:
            of_planted.setdefault(setting, []).append(one)
    order = {name: at for at, name in enumerate([ICL, *results.variants])}
    of_each = []
    for setting, planted in of_planted.items():
        shared = [(key, value) for key, value in setting if not key.startswith("reference.")]  # which ICL has not
        icl = [one for one in of_icl if all(one.others[key] == value for key, value in shared)]
        cells = {(one.others[TRUTH], one.variant): one for one in (*icl, *planted)}
        if len({truth for truth, _ in cells}) > 1:
            # a truth that is not a candidate comes last
            cells = dict(sorted(cells.items(), key=lambda cell: [order.get(name, len(order)) for name in cell[0]]))
            of_each.append(_notice(results, dict(setting), cells))
    return [one for one in of_each if len(one.matrix)]


def _notice(results: Results, setting: Mapping[str, Any], contenders: Mapping[tuple[str, str], Contender]) -> Notice:
    """The notice of one setting, from contenders by truth and candidate."""
    chosen = any(len(one.tried) > 1 for one in contenders.values())
    matrix, ranking = [], []
    for score in results.scores.values():
        if score.better is Better.neither or not (score.reads("icl") and score.reads("ft")):
            continue
        cells = {cell: one.values[score.name] for cell, one in contenders.items() if one.defined(score.name)}
        for (truth, candidate), one in contenders.items():
            if one.defined(score.name):
                interval = one.interval(score)
                cell = {"score": score.name, "truth": truth, "candidate": candidate, "draws": interval.n}
                matrix.append({**cell, "mean": interval.mean, "low": interval.low, "high": interval.high})
        if cells:
            ranking.append(identification(score, cells, chosen))
    best_first = sorted((rank for rank in ranking if rank.share.n), key=lambda rank: -rank.share.mean)
    return Notice(setting, pd.DataFrame(matrix), tuple(best_first))


def identification(score: ScoreInfo, cells: Cells, chosen: bool = False) -> Identification:
    """How often the true candidate comes first among all candidates, over truths that are candidates too.

    Truths of one draw share its demonstrations. How closely they hang together, the spread between draws says; where
    all draws agree nothing says it, and each draw counts once.
    """
    rows = [(*cell, str(draw), value) for cell, values in cells.items() for draw, value in values.items()]
    frame: Any = pd.DataFrame(rows, columns=["truth", "candidate", "draw", "value"]).dropna()
    values = frame.set_index(["truth", "candidate", "draw"])["value"]
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


def in_words(results: Results, notice: Notice) -> str:
    """One paragraph: which scores tell truths apart, which do not, and what the first headline score confuses."""
    if not notice.ranking:
        return ""
    names, best, worst = labels(results), notice.ranking[0], notice.ranking[-1]
    other = f" and {results.scores[worst.score].label} in {_percent(worst.share)}" if worst is not best else ""
    text = (
        f"Over the planted truths of {best.share.n} draws, {results.scores[best.score].label} puts the true variant "
        f"first in {_percent(best.share)}{other}; guessing would in {best.chance:.0%}."
    )
    by_name = {rank.score: rank for rank in notice.ranking}
    first = next((by_name[name] for name in results.headline if name in by_name), best)
    most = sorted(first.confusions.items(), key=lambda pair: -pair[1][1])[:2]
    confused = [f"{names.get(t, t)} for {names.get(c, c)} ({share:.0%} of draws)" for t, (c, share) in most]
    return f"{text} {results.scores[first.score].label} takes {' and '.join(confused)}." if confused else text


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
    keys = [*(key for key in other_keys(results) if not key.startswith("reference.")), VARIANT, "score"]
    planted = rows[rows[TRUTH] == rows[VARIANT]].groupby(keys, dropna=False)["mean"].mean()
    return rows[rows[TRUTH] == ICL].join(planted.rename("planted"), on=keys)
