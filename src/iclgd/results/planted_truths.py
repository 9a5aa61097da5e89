"""Planted truths: what each score says where a finetuning variant plays ICL's part.

A truth is what plays ICL's part (`reference.name`), a candidate what is finetuned (`finetune.name`). The draws of
demonstrations are the sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from iclgd.config.enumerations import Better
from iclgd.results.catalogue import ScoreInfo
from iclgd.results.frame import Results, overall
from iclgd.results.rates import other_keys
from iclgd.statistics import Interval, draws_interval, held_out

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
class Notice:
    """All that one sweep of truths and candidates says, for one model and task."""

    setting: Mapping[str, Any]  # the model, the task and what else varied
    matrix: pd.DataFrame  # columns score, truth, candidate, mean, low, high, draws: a row for each cell
    ranking: tuple[Identification, ...]  # by score, the best at identifying first


def notices(results: Results) -> list[Notice]:
    """What every setting (model, task and whatever else varied) says; none where only ICL has played ICL's part."""
    frame: Any = results.frame
    if TRUTH not in frame:
        return []
    rows = overall(frame)
    rows = rows[rows["state"] == "sane"]
    scores = [s for s in results.scores.values() if s.better is not Better.neither and s.reads("icl") and s.reads("ft")]
    order = {name: index for index, name in enumerate([ICL, *results.variants])}
    rows = rows.sort_values(by=[TRUTH, CANDIDATE], key=lambda names: names.map(order).fillna(len(order)), kind="stable")
    keys = [key for key in other_keys(results) if key != TRUTH]
    of_icl, of_planted = rows[rows[TRUTH] == ICL], rows[rows[TRUTH] != ICL]
    of_each = []
    for values, planted in of_planted.groupby(keys, sort=False, dropna=False):
        setting = dict(zip(keys, values, strict=True))
        group: Any = pd.concat([_in_setting(of_icl, setting), planted])
        if group[TRUTH].nunique() > 1:
            of_each.append(notice(setting, group, scores))
    return [one for one in of_each if len(one.matrix)]


def _in_setting(rows: Any, setting: Mapping[str, Any]) -> Any:
    """ICL's own rows in a setting; what only planted truths have (their rate) may be missing from them."""
    for key, value in setting.items():
        missing = rows[key].isna()
        same = missing if pd.isna(value) else rows[key] == value
        rows = rows[same if same.any() or not key.startswith("reference.") else missing]
    return rows


def notice(setting: Mapping[str, Any], rows: Any, scores: Sequence[ScoreInfo]) -> Notice:
    """The notice of one setting; rows are one for each run and score, as in `Results.frame`."""
    rates = rows.groupby(CANDIDATE)[RATE].nunique()
    several = set(rates[rates > 1].index)  # whose rate is chosen
    matrix, ranking = [], []
    for score in scores:
        cells = cells_of(rows, score)
        if not cells:
            continue
        ranking.append(identification(score, cells, bool(several)))
        for (truth, candidate), values in cells.items():
            interval = draws_interval(values.to_numpy(), score.limits, chosen=candidate in several)
            cell = {"score": score.name, "truth": truth, "candidate": candidate, "draws": interval.n}
            matrix.append({**cell, "mean": interval.mean, "low": interval.low, "high": interval.high})
    best_first = sorted((rank for rank in ranking if rank.share.n), key=lambda rank: -rank.share.mean)
    return Notice(setting, pd.DataFrame(matrix), tuple(best_first))


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
    keys = [*(key for key in other_keys(results) if not key.startswith("reference.")), CANDIDATE, "score"]
    planted = rows[rows[TRUTH] == rows[CANDIDATE]].groupby(keys, dropna=False)["mean"].mean()
    return rows[rows[TRUTH] == ICL].join(planted.rename("planted"), on=keys)
