"""What some runs say in plain sentences: what context does, which mechanism is nearest, what can be told apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from iclgd.config.enumerations import Better, Role, Sees
from iclgd.results.catalogue import ScoreInfo
from iclgd.results.frame import SEES, Results
from iclgd.results.planted_truths import ICL, TRUTH
from iclgd.results.rates import Contender, contenders
from iclgd.results.remarks import Setting, context_accuracies
from iclgd.statistics import Comparison, draws_interval, holm_corrected

ITSELF = "replay"  # ICL as a mechanism: what the others are compared with
_CANDIDATES = (Role.variant, Role.rival, Role.mechanism)
_MOST_SETTINGS = 3  # of which each has a sentence in plain words


def findings(results: Results) -> list[str]:
    """Paragraphs on the mechanisms, and last what was seen in one sentence for each setting."""
    if all(run.planted for run in results):  # what plays ICL's part is not ICL
        return []
    among = [one for one in contenders(results)[0] if one.others.get(TRUTH, ICL) == ICL]
    return [*_nearest(results, among), *_in_short(results, among)]


def _in_short(results: Results, among: Sequence[Contender]) -> list[str]:
    """For each of a few settings: how often the model is right with and without context, and who repeats that effect.

    Nothing where accuracies or the share that is recovered were not measured.
    """
    score = next((one for one in results.scores.values() if one.function == "recovered"), None)
    accuracies = context_accuracies(results)
    if score is None or len(accuracies) > _MOST_SETTINGS:
        return []
    sentences = []
    for setting, draws in accuracies.items():
        shares = _recovered(results, score, setting, among)
        if shares:
            icl, zsl = draws["mean"].mean(), draws["mean_zsl"].mean()
            named = results.setting_text({key: value for key, value in setting if key in results.varied})
            text = f"In short ({named})" if named else "In short"
            shots = results.text("task.shots", dict(setting)["task.shots"])
            text += f": with {shots} demonstrations in its prompt the model answers {icl:.0%} of the queries right, "
            sentences.append(f"{text}without them {zsl:.0%}; of that change in what it predicts, {', '.join(shares)}.")
    return sentences


def _recovered(results: Results, score: ScoreInfo, setting: Setting, among: Sequence[Contender]) -> list[str]:
    """How much of ICL's effect each candidate makes in a setting, most first; a negative share is none."""
    among = [
        one
        for one in among
        if _is_candidate(results, one) and all(one.others.get(key, value) == value for key, value in setting)
    ]
    complete = _in_all_draws(score, among)
    ranked = sorted(((_mean(score, one), _named(results, one, among)) for one in complete), key=lambda pair: -pair[0])
    partly = [_named(results, one, among) for one in among if one not in complete and one.defined(score.name)]
    return [
        *(f"{name} reproduces {f'{share:.0%}' if share >= 0.005 else 'none'}" for share, name in ranked),
        *(f"{name} has no value in some draws" for name in partly),
    ]


def _named(results: Results, one: Contender, among: Sequence[Contender]) -> str:
    """The variant's label, with the finetuning settings in which it has others beside it."""
    same = [other.others for other in among if other.variant == one.variant]
    differing = {
        key: value
        for key, value in one.others.items()
        if key.startswith("finetune.") and len({others[key] for others in same}) > 1
    }
    label = results.labels[one.variant]
    return f"{label} ({results.setting_text(differing)})" if differing else label


def _nearest(results: Results, among: Sequence[Contender]) -> list[str]:
    """A paragraph for each model and task: what is nearest to ICL by each score, and what is told apart.

    Floors, anchors and whatever sees the measured queries are no candidates. Nothing where no mechanism ran.
    """
    if not any(variant.role is Role.mechanism for variant in results.variants.values()):
        return []
    places: dict[tuple[Any, ...], list[Contender]] = {}
    for one in among:
        places.setdefault(tuple(one.others.items()), []).append(one)
    paragraphs = []
    for place, here in places.items():
        itself = next((one for one in here if one.variant == ITSELF), None)
        candidates = [one for one in here if _is_candidate(results, one)]
        if len(candidates) > 1:
            varied = {key: value for key, value in place if key in results.varied and key != TRUTH}
            named, text = results.setting_text(varied), _paragraph(results, candidates, itself)
            paragraphs.append(f"{named}: {text}" if named else text)
    return paragraphs


def _is_candidate(results: Results, one: Contender) -> bool:
    variant = results.variants[one.variant]
    return variant.role in _CANDIDATES and variant.sees is not Sees.queries


def _paragraph(results: Results, candidates: Sequence[Contender], itself: Contender | None) -> str:
    scores = [results.scores[name] for name in results.headline]
    scores = [score for score in scores if score.learned and score.better is not Better.neither]
    ranked = {score.name: _nearest_first(score, _in_all_draws(score, candidates)) for score in scores}
    comparisons: dict[tuple[str, str, str], Comparison] = {}
    for name, order in ranked.items():
        for place, first in enumerate(order):  # all pairs count, since the nearest is chosen by the same numbers
            for one in order[place + 1 :]:
                comparisons[name, one.variant, first.variant] = first.minus(one, name)
        if itself is not None and name in itself.values:
            comparisons |= {(name, one.variant, ITSELF): itself.minus(one, name) for one in order}
    comparisons = holm_corrected(comparisons)
    sentences = []
    for score in scores:
        if ranked[score.name]:
            sentences.append(_sentence(results, score, candidates, ranked[score.name], comparisons))
        elif any(one.defined(score.name) for one in candidates):
            sentences.append(f"By {score.label}, none is named nearest, since none has a value in every draw.")
    tested = sum(not math.isnan(comparison.p) for comparison in comparisons.values())
    rule = f"Told apart: p < 0.05 after Holm's correction for {tested} comparisons, paired by draw."
    rule += " What is not told apart may still differ."
    return " ".join([*sentences, rule if tested else "With fewer than 5 draws nothing is tested."])


def _in_all_draws(score: ScoreInfo, candidates: Sequence[Contender]) -> list[Contender]:
    """The candidates with a value in every draw that any has: a mean over the draws that went well is no fair one."""
    draws = [{draw for draw, mean in one.values.get(score.name, {}).items() if mean == mean} for one in candidates]
    every = set().union(*draws)
    return [one for one, its in zip(candidates, draws, strict=True) if its and its == every]


def _nearest_first(score: ScoreInfo, candidates: Sequence[Contender]) -> list[Contender]:
    return sorted(candidates, key=lambda one: _mean(score, one), reverse=score.better is not Better.lower)


def _mean(score: ScoreInfo, one: Contender) -> float:
    return draws_interval(one.defined(score.name)).mean


def _sentence(
    results: Results,
    score: ScoreInfo,
    candidates: Sequence[Contender],
    order: Sequence[Contender],
    comparisons: Mapping[tuple[str, str, str], Comparison],
) -> str:
    """Which is nearest by this score, with its interval and what it sees, and what is told apart from it and ICL."""
    best, labels = order[0], results.labels
    interval = draws_interval(best.defined(score.name), score.limits, chosen=len(best.tried) > 1)
    ends = "" if math.isnan(interval.low) else f" [{interval.low:.{score.digits}f}, {interval.high:.{score.digits}f}]"
    sees = results.text(SEES, results.variants[best.variant].sees)
    text = f"By {score.label}, {labels[best.variant]} is nearest to ICL: {interval.mean:.{score.digits}f}{ends}"
    text += f" (sees {sees})."
    missing = [labels[one.variant] for one in candidates if one not in order and one.defined(score.name)]
    if missing:
        text += f" Left out, since not every draw of theirs has a value: {', '.join(missing)}."
    for other, name in ((best.variant, "it"), (ITSELF, "ICL itself")):
        tested = {v: c for (s, v, o), c in comparisons.items() if (s, o) == (score.name, other) and not math.isnan(c.p)}
        same = [labels[variant] for variant, comparison in tested.items() if not comparison.marked]
        if tested:
            text += f" Not told apart from {name}: {', '.join(same) or 'none'} (of {len(tested)})."
    return text
