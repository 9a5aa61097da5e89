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
from iclgd.statistics import Comparison, holm_corrected
from iclgd.statistics.comparisons import DRAWS_FOR_P

ITSELF = "replay"  # ICL as a mechanism: what the others are compared with
_CANDIDATES = (Role.variant, Role.rival, Role.mechanism)
_MOST_SETTINGS = 3  # of which each has a sentence in plain words
_LEVEL = 0.05
_RULE = (
    "Floors, anchors and what sees the queries are left out. Each score is judged by itself, at p < 0.05 corrected for "
    "the number of comparisons. These are paired by draw: a worse mean may be nearer if its differences vary much."
)


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
    for setting, (label, draws) in accuracies.items():
        shares = _recovered(results, score, setting, among)
        if shares:
            icl, zsl = draws["mean"].mean(), draws["mean_zsl"].mean()
            named = results.setting_text({key: value for key, value in setting if key in results.varied})
            text = f"In short ({named})" if named else "In short"
            shots = results.text("task.shots", dict(setting)["task.shots"])
            text += f": with {shots} demonstrations in its prompt the model answers {icl:.0%} of the queries right, "
            text += f"without them {zsl:.0%} ({label}). Of the change that they make to its next-token distribution, "
            sentences.append(f"{text}these reproduce: {', '.join(shares)}.")
    return sentences


def _recovered(results: Results, score: ScoreInfo, setting: Setting, among: Sequence[Contender]) -> list[str]:
    """The share of ICL's effect that each candidate makes in a setting, most first; negative where it leads away."""
    among = [
        one
        for one in among
        if _is_candidate(results, one) and all(one.others.get(key, value) == value for key, value in setting)
    ]
    texts = []
    for one in _nearest_first(score, among):
        interval = one.interval(score)
        ends = "" if math.isnan(interval.low) else f" [{100 * interval.low:z.0f}, {100 * interval.high:z.0f}]"
        texts.append(f"{_named(results, one, among)} {100 * interval.mean:z.0f}%{ends}")
    partly = [one for one in among if one.defined(score.name) and one not in _nearest_first(score, among)]
    return [*texts, *(f"{_named(results, one, among)} has no value in some draws" for one in partly)]


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

    Floors, anchors and whatever sees the measured queries are not candidates. Nothing where no mechanism ran.
    """
    if not any(variant.role is Role.mechanism for variant in results.variants.values()):
        return []
    by_setting: dict[tuple[Any, ...], list[Contender]] = {}
    for one in among:
        by_setting.setdefault(tuple(one.others.items()), []).append(one)
    paragraphs = []
    for setting, of_setting in by_setting.items():
        itself = next((one for one in of_setting if one.variant == ITSELF), None)
        candidates = [one for one in of_setting if _is_candidate(results, one)]
        text = _paragraph(results, candidates, itself) if len(candidates) > 1 else ""
        if text:
            named = results.setting_text({k: value for k, value in setting if k in results.varied and k != TRUTH})
            paragraphs.append(f"{named}: {text}" if named else text)
    return paragraphs


def _is_candidate(results: Results, one: Contender) -> bool:
    variant = results.variants[one.variant]
    return variant.role in _CANDIDATES and variant.sees is not Sees.queries


def _paragraph(results: Results, candidates: Sequence[Contender], itself: Contender | None) -> str:
    sentences, comparisons = [], []
    for score in (results.scores[name] for name in results.headline):
        if not score.learned or score.better is Better.neither:
            continue
        order = _nearest_first(score, candidates)
        if order:
            rivals = {one.variant: order[0].minus(one, score.name) for one in order[1:]}
            icl: dict[str, Comparison] = {}
            if itself is not None and score.name in itself.values:
                icl = holm_corrected({one.variant: itself.minus(one, score.name) for one in order})
            missing = [one for one in candidates if one not in order and one.defined(score.name)]
            sentences.append(_sentence(results, score, order[0], missing, rivals, icl))
            comparisons += [*rivals.values(), *icl.values()]
        elif any(one.defined(score.name) for one in candidates):
            sentences.append(f"By {score.label}, none is named nearest, since none has a value in every draw.")
    if any(comparison.p >= 0 for comparison in comparisons):
        sentences.append(_RULE)
    elif any(comparison.draws < DRAWS_FOR_P for comparison in comparisons):
        sentences.append(f"With fewer than {DRAWS_FOR_P} draws nothing is tested.")
    return " ".join(sentences)


def _nearest_first(score: ScoreInfo, candidates: Sequence[Contender]) -> list[Contender]:
    """Those with a value in every draw that any has: a mean over the draws that went well would flatter it."""
    draws = [{draw for draw, mean in one.values.get(score.name, {}).items() if mean == mean} for one in candidates]
    every = set().union(*draws)
    complete = [one for one, its in zip(candidates, draws, strict=True) if its and its == every]
    return sorted(complete, key=lambda one: one.interval(score).mean, reverse=score.better is not Better.lower)


def _sentence(
    results: Results,
    score: ScoreInfo,
    best: Contender,
    missing: Sequence[Contender],
    rivals: Mapping[str, Comparison],
    icl: Mapping[str, Comparison],
) -> str:
    """Which is nearest by this score, with its interval and what it sees; what else may be; what differs from ICL.

    `missing` have no value in some draw; `rivals` are the nearest minus each other one, `icl` is ICL minus each.
    """
    labels = results.labels
    interval = best.interval(score)
    mean, low, high = (f"{value:.{score.digits}f}" for value in (interval.mean, interval.low, interval.high))
    ends = "" if math.isnan(interval.low) else f" [{low}, {high}]"
    sees = results.text(SEES, results.variants[best.variant].sees)
    text = f"By {score.label}, {labels[best.variant]} is nearest to ICL: {mean}{ends} (sees {sees})."
    if missing:
        names = ", ".join(labels[one.variant] for one in missing)
        text += f" Left out, since not every draw of theirs has a value: {names}."
    tested = {variant: comparison.p for variant, comparison in rivals.items() if comparison.p >= 0}
    if tested:
        # Multiple comparisons with the best (Hsu 1984): the one that is truly nearest is ruled out only if one of its
        # comparisons with the others errs. Their number is corrected for, not that of all pairs, though the nearest is
        # chosen by the same draws.
        possible = [labels[variant] for variant, p in tested.items() if p * len(tested) >= _LEVEL]
        text += f" May be nearer: {', '.join(possible) or 'none of the others'}."
        untested = [labels[variant] for variant in rivals if variant not in tested]
        if untested:
            text += f" Not tested, as the difference is the same in every draw: {', '.join(untested)}."
    same = [labels[variant] for variant, comparison in icl.items() if comparison.p >= 0 and not comparison.marked]
    differ = sum(comparison.marked for comparison in icl.values())
    if same:
        text += f" Not told apart from ICL itself: {', '.join(same)}."
    elif differ:
        text += f" {f'{differ} of {len(icl)}' if differ < len(icl) else 'All'} differ from ICL itself."
    return text
