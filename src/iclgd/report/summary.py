"""What do several seeds say together, and can one setting be told from another?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from iclgd.metrics.statistics import Comparison, compare, holm_corrected, nanmean, seed_interval
from iclgd.report.finished_run import NAN, FinishedRun
from iclgd.report.settings import Group


@dataclass(frozen=True)
class Summary:
    """A score over the repetitions of one setting.

    Attributes:
        mean: over seeds.
        std: standard deviation over seeds; NaN for one seed.
        low: lower end of the 95 % interval, over queries for one seed (bootstrap), else over seeds (t), where it does
            not lie beyond what the score can be.
        high: its upper end.
        seeds: how many seeds have a value.
        undefined: how many values had no direction and are left out.
        diverged: how many of the runs diverged.
    """

    mean: float
    std: float
    low: float
    high: float
    seeds: int
    undefined: int = 0
    diverged: int = 0


def summarise(runs: Sequence[FinishedRun], score: str, over: str = "all") -> Summary:
    """A score's summary over runs that differ in nothing but the draw."""
    estimates = [run.estimate(score, over) for run in runs]
    diverged, undefined = sum(run.diverged for run in runs), sum(estimate.undefined for estimate in estimates)
    known = [estimate for estimate in estimates if not math.isnan(estimate.mean)]
    if not known:
        return Summary(NAN, NAN, NAN, NAN, 0, undefined, diverged)
    if len(known) == 1:
        return Summary(known[0].mean, NAN, known[0].low, known[0].high, 1, undefined, diverged)
    means = [estimate.mean for estimate in known]
    interval = seed_interval(means)
    spread, (least, most) = statistics.stdev(means), runs[0].limits(score)
    low, high = max(interval.low, least), min(interval.high, most)
    return Summary(interval.mean, spread, low, high, len(known), undefined, diverged)


def curve(runs: Sequence[FinishedRun], score: str) -> tuple[np.ndarray, np.ndarray]:
    """A score by layer: its mean over seeds and half the width of its error bar.

    The bar is the standard deviation over seeds, as in the papers, or for one seed 1.96 standard errors over queries.
    """
    known = [run for run in runs if not all(map(math.isnan, run.layers(score)))]
    known = known or [run for run in runs if run.layers(score)]
    depth = max((len(run.layers(score)) for run in known), default=0)
    known = [run for run in known if len(run.layers(score)) == depth]
    stacked = np.array([run.layers(score) for run in known]).reshape(-1, depth)
    mean = nanmean(stacked)
    if len(stacked) > 1:
        count = (~np.isnan(stacked)).sum(0)
        spread = nanmean((stacked - mean) ** 2) * count / np.maximum(count - 1, 1)
        return mean, np.where(count > 1, np.sqrt(spread), NAN)
    values = known[0].values.get(score, np.full((0, depth), NAN)) if known else np.full((0, depth), NAN)
    count = np.maximum((~np.isnan(values)).sum(0), 1)
    spread = np.sqrt(nanmean((values - nanmean(values)) ** 2))
    return mean, 1.96 * spread / np.sqrt(np.maximum(count - 1, 1))


@dataclass(frozen=True)
class Difference:
    """One setting against another on the same seeds and queries.

    Attributes:
        first: the group whose scores come first.
        second: the group they are compared with.
        score: which score.
        result: first minus second, with interval and Holm-corrected p.
    """

    first: Group
    second: Group
    score: str
    result: Comparison


def differences(pairs: Sequence[tuple[Group, Group]], scores: Sequence[str]) -> list[Difference]:
    """Paired differences, Holm-corrected for all of them together; what cannot be paired is left out."""
    found: dict[tuple[int, str], Comparison] = {}
    for at, (first, second) in enumerate(pairs):
        for score in scores:
            paired = _paired(first.runs, second.runs, score)
            if paired is not None:
                found[at, score] = compare(*paired, name=f"report/{score}", seed=0)
    return [Difference(*pairs[at], score, result) for (at, score), result in holm_corrected(found).items()]


def _paired(
    first: Sequence[FinishedRun], second: Sequence[FinishedRun], score: str
) -> tuple[np.ndarray, np.ndarray] | None:
    by_draw = {run.draw: run.values.get(score) for run in second}
    pairs = [(run.values.get(score), by_draw.get(run.draw)) for run in first]
    whole = [(a, b) for a, b in pairs if a is not None and b is not None and a.shape == b.shape]
    if not whole or len({a.shape for a, _ in whole}) > 1:
        return None
    return np.stack([a for a, _ in whole]), np.stack([b for _, b in whole])


def zero_shot_notes(runs: Sequence[FinishedRun]) -> list[str]:
    """Sentences where in-context learning is not seen to beat zero-shot: similarity to it then means little.

    Neither accuracy depends on the variant or its rate, so that every draw is counted once.
    """
    draws: dict[tuple[object, ...], dict[tuple[int, int, int], FinishedRun]] = {}
    for run in runs:
        if {"zsl", "icl"} <= run.accuracies().keys():
            where = (run.task, run.model, run.weights, run.shots)
            draws.setdefault(where, {}).setdefault(run.draw, run)
    notes = []
    for (task, model, weights, shots), members in draws.items():
        said = _zero_shot_note(list(members.values()))
        if said:
            kind = "" if weights == "pretrained" else f" ({weights})"
            notes.append(f"{task}, {model}{kind}, {shots} shots: {said}")
    return notes


def _zero_shot_note(runs: Sequence[FinishedRun]) -> str | None:
    icl, zsl = summarise(runs, "accuracy/icl"), summarise(runs, "accuracy/zsl")
    numbers = f"({icl.mean:.1%} against {zsl.mean:.1%})"
    if icl.mean <= zsl.mean:
        return f"ICL does not beat zero-shot {numbers}, so similarity to it means little here."
    values = [(run.values.get("accuracy/icl"), run.values.get("accuracy/zsl")) for run in runs]
    whole = [(a, b) for a, b in values if a is not None and b is not None]
    told = icl.low > zsl.high
    if len(whole) == len(runs) and len({a.shape for pair in whole for a in pair}) == 1:
        first, second = (np.stack(column) for column in zip(*whole, strict=True))
        result = compare(first, second, name="report/zero-shot", seed=0)
        told = told if math.isnan(result.p) else result.distinguishable
    return None if told else f"ICL's lead over zero-shot {numbers} is within chance; read similarity to it with care."


def by_task(groups: Sequence[Group]) -> Mapping[tuple[str, ...], dict[str, Group]]:
    """Groups that differ in nothing but the task, together: {other settings: {task: group}}."""
    rows: dict[tuple[str, ...], dict[str, Group]] = {}
    for entry in groups:
        others = tuple(text for key, text in entry.settings.items() if key != "task.name")
        rows.setdefault(others, {})[entry.runs[0].task] = entry
    return rows
