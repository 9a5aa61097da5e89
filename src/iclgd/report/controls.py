"""Is layer causality the cause? Which runs answer, at which learning rates, and what they say in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iclgd.report import published
from iclgd.report.finished_run import FinishedRun
from iclgd.report.formats import Table, number
from iclgd.report.settings import Group, group, place
from iclgd.report.summary import differences, summarise, zero_shot_notes

FLOORS = ("none", "random_direction")
CEILINGS = ("activation_match", "replay")
RIVALS = ("lcgd_norm_matched", "gd_norm_matched", "label_shuffled", "other_task", "full_batch", "adam", "low_rank")
CONTROLS = (*FLOORS, *RIVALS, *CEILINGS)
SCORES = ("sim_aou", "sim_am_delta")
QUESTIONS = (
    ("lcgd", "gd", "layer causality, each at its own norms"),
    ("lcgd_norm_matched", "gd", "layer causality, both at gd's norms"),
    ("lcgd", "gd_norm_matched", "layer causality, both at lcgd's norms"),
    ("lcgd", "lcgd_norm_matched", "the norms alone, both layer-causal"),
    ("lcgd", "random_direction", "lcgd above the floor"),
    ("gd", "random_direction", "gd above the floor"),
    ("lcgd", "label_shuffled", "what the right labels add"),
    ("lcgd", "other_task", "what this task's demonstrations add"),
)
_ORDER = (
    "none", "random_direction", "other_task", "label_shuffled", "gd", "gd_norm_matched", "lcgd_norm_matched", "lcgd",
    "full_batch", "adam", "low_rank", "activation_match", "replay",
)  # fmt: skip
_TRAINED_TOWARDS = {"sim_aou": "activation_match"}  # a ceiling only of the score that it is trained towards
_RATE = "finetune.lr"
_BESIDE = ("update_norm_ratio", "accuracy/ft")


@dataclass(frozen=True)
class Contender:
    """A variant at one learning rate.

    Attributes:
        entry: its runs.
        rate: why this rate: `best of 3 rates`, `published rate`, or nothing where there is no choice.
        at_edge: whether it is best at the lowest or the highest rate that was tried: beyond may be a better one.
    """

    entry: Group
    rate: str = ""
    at_edge: bool = False


def has_controls(runs: Sequence[FinishedRun]) -> bool:
    """Whether any run is a control or a rival explanation."""
    return any(run.variant in CONTROLS for run in runs)


def ordered(groups: Sequence[Group]) -> list[Group]:
    """Floors first, ceilings last, what is to be explained between them."""

    def rank(entry: Group) -> tuple[int, str, float]:
        variant = entry.runs[0].variant
        at = _ORDER.index(variant) if variant in _ORDER else _ORDER.index("lcgd")
        return at, variant, entry.runs[0].lr

    return sorted(groups, key=rank)


def contenders(groups: Sequence[Group]) -> list[Contender]:
    """Each variant at the rate where its SimAOU is highest, and at the published rate where that is another.

    The best rate is chosen by the runs that are then shown, which flatters every variant a little.
    """
    alike: dict[tuple[object, ...], list[Group]] = {}
    for entry in ordered(groups):
        others = tuple(text for key, text in entry.settings.items() if key != _RATE)
        alike.setdefault((place(entry), entry.runs[0].variant, others), []).append(entry)
    chosen = []
    for members in alike.values():
        known = [entry for entry in members if not math.isnan(summarise(entry.runs, SCORES[0]).mean)] or members
        best = max(known, key=lambda entry: summarise(entry.runs, SCORES[0]).mean)
        several, rates = len(members) > 1, [entry.runs[0].lr for entry in members]
        for entry in members:
            at_published = several and entry.runs[0].lr == published.learning_rate(entry.runs[0].task)
            if entry is best:
                also = ", the published one" if at_published else ""
                edge = several and entry.runs[0].lr in (min(rates), max(rates))
                chosen.append(Contender(entry, f"best of {len(members)} rates{also}" if several else "", edge))
            elif at_published:
                chosen.append(Contender(entry, "published rate"))
    return chosen


def bounds(groups: Sequence[Group], name: str) -> tuple[float, float, float]:
    """Floor, ceiling and noise ceiling of a score among variants in one place; NaN where not measured.

    The floor is the best of no update and random directions over all their rates. The ceiling is what training on
    ICL's own attention outputs reaches, and bounds SimAOU only. The noise ceiling is ICL against ICL with its
    demonstrations in another order.
    """
    means = [(entry.runs[0].variant, summarise(entry.runs, name).mean) for entry in groups]
    noise = {run.folder: run.estimate(f"{name}_reordered").mean for entry in groups for run in entry.runs}
    known = [mean for mean in noise.values() if not math.isnan(mean)]
    return (
        _highest(mean for variant, mean in means if variant in FLOORS),
        _highest(mean for variant, mean in means if variant == _TRAINED_TOWARDS.get(name)),
        math.fsum(known) / len(known) if known else math.nan,
    )


def _highest(means: Any) -> float:
    return max((mean for mean in means if not math.isnan(mean)), default=math.nan)


def controls(runs: Sequence[FinishedRun]) -> Table | None:
    """Every variant's scores at its best and at the published rate; None without controls."""
    if not has_controls(runs):
        return None
    scores = [name for name in (*SCORES, *_BESIDE) if any(name in run.entries for run in runs)]
    rows, records = [], []
    everything = group(runs)
    further = _further(everything)
    chosen = contenders(everything)
    for where in dict.fromkeys(place(contender.entry) for contender in chosen):
        for entry, rate in ((c.entry, c.rate) for c in chosen if place(c.entry) == where):
            found = {name: summarise(entry.runs, name) for name in scores}
            run = entry.runs[0]
            cells = [number(found[name].mean) for name in scores]
            who = (run.task, run.weights, *_texts(entry, further), run.variant, f"{run.lr:g}", rate)
            rows.append((*who, str(len(entry.runs)), *cells))
            about = _about(entry, further) | {"variant": run.variant, "lr": run.lr, "rate": rate}
            records += [about | {"score": name} | vars(summary) for name, summary in found.items()]
        noise = [bounds([entry for entry in everything if place(entry) == where], name)[2] for name in scores]
        if not all(map(math.isnan, noise)):
            cells = ["" if math.isnan(value) else f"{value:.3f}" for value in noise]
            blanks = [""] * len(further)
            rows.append((where[0], where[2], *blanks, "ICL, reordered (noise ceiling)", "", "", "", *cells))
    names = [key.rpartition(".")[2] if key != "model.name" else "model" for key in further]
    header = ("task", "weights", *names, "variant", "lr", "rate", "draws", *(runs[0].label(name) for name in scores))
    title = "Variants between floor and ceiling"
    return Table("controls", title, header, 6 + len(further), tuple(rows), _notes(runs), tuple(records))


def _further(groups: Sequence[Group]) -> list[str]:
    """What else was varied than task, weights, variant and rate."""
    own = ("task.name", "model.weights", "finetune.name", _RATE)
    return [key for key in (groups[0].settings if groups else ()) if key not in own]


def _about(entry: Group, further: Sequence[str]) -> dict[str, Any]:
    run = entry.runs[0]
    known = {"task": run.task, "model": run.model, "weights": run.weights, "shots": run.shots}
    return known | dict(zip(further, _texts(entry, further), strict=True))


def _texts(entry: Group, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(entry.runs[0].model if key == "model.name" else entry.settings[key] for key in keys)


def why_lcgd(runs: Sequence[FinishedRun]) -> Table | None:
    """Paired differences that tell layer causality from its rivals; None without controls."""
    if not has_controls(runs):
        return None
    everything = group(runs)
    further = _further(everything)
    best = [c.entry for c in contenders(everything) if c.rate != "published rate"]
    alike: dict[tuple[object, ...], dict[str, Group]] = {}  # what differs in variant and rate alone is compared
    for entry in best:
        others = tuple(text for key, text in entry.settings.items() if key not in ("finetune.name", _RATE))
        alike.setdefault((place(entry), others), {})[entry.runs[0].variant] = entry
    asked = [
        (members[first], members[second], question)
        for members in alike.values()
        for first, second, question in QUESTIONS
        if first in members and second in members
    ]
    scores = [name for name in SCORES if any(name in run.entries for run in runs)]
    found = {(id(d.first), id(d.second), d.score): d.result for d in differences([(a, b) for a, b, _ in asked], scores)}
    rows, records = [], []
    for first, second, question in asked:
        run, cells = first.runs[0], []
        for name in scores:
            result = found.get((id(first), id(second), name))
            if result is None or math.isnan(result.difference.mean):
                cells.append("")
                continue
            d, told = result.difference, "" if result.p_holm is None else f" p {result.p_holm:.2g}"
            mark = " *" if result.distinguishable else ""
            cells.append(f"{d.mean:+z.3f} [{d.low:z.3f}, {d.high:z.3f}]{told}{mark}")
            records.append(
                _about(first, further)
                | {"first": run.variant, "second": second.runs[0].variant, "score": name, "difference": d.mean}
                | {"low": d.low, "high": d.high, "p_holm": result.p_holm, "over": result.over, "n": result.n}
                | {"distinguishable": result.distinguishable}
            )
        what = f"{run.variant} minus {second.runs[0].variant}"
        rows.append((run.task, run.weights, *_texts(first, further), what, question, *cells))
    names = [key.rpartition(".")[2] if key != "model.name" else "model" for key in further]
    header = ("task", "weights", *names, "difference", "asks", *(runs[0].label(name) for name in scores))
    note = f"* p < 0.05 after Holm's correction for {len(found)} comparisons; p is shown corrected."
    return Table(
        "why_lcgd",
        "Is layer causality the cause?",
        header,
        4 + len(further),
        tuple(rows),
        (note, *_notes(runs)),
        tuple(records),
    )


def _notes(runs: Sequence[FinishedRun]) -> tuple[str, ...]:
    draws = len({run.draw for run in runs})
    notes = [
        "Each variant at the rate where its SimAOU is highest, chosen by the very runs shown, and at the published "
        "rate (for a task that is not the papers', SST-2's).",
        f"Intervals and tests are over draws where there are several (Student's t; {draws} here at most), else over "
        "queries.",
    ]
    edge = [c.entry.runs[0].variant for c in contenders(group(runs)) if c.at_edge]
    if edge:
        notes.append(
            f"Best at the lowest or highest rate tried (another may be better): {', '.join(dict.fromkeys(edge))}."
        )
    if draws == 1:
        notes.append(
            "One draw only: a single random direction may lie anywhere, so the floor needs several (seed=0,1,2)."
        )
    return (*notes, *zero_shot_notes(runs))
