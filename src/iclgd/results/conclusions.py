"""What the draws of a sweep support: rates chosen on other draws, paired comparisons, and what cannot be told.

Which comparisons are asked stands with each variant (`against` in conf/finetune). Two settings are compared only where
they are equal in everything but what is compared, and draw by draw: what a draw adds to both cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from iclgd.config.enumerations import Better, Role
from iclgd.results.catalogue import Variant
from iclgd.results.frame import Results
from iclgd.results.reading import Record
from iclgd.statistics import Comparison, compare, design_power, held_out, holm_corrected

VARIANT, RATE, _WEIGHTS = "finetune.name", "finetune.lr", "model.weights"


@dataclass(frozen=True)
class Contender:
    """A variant in one setting of everything else, at rates that were not chosen by what is shown of it."""

    others: Mapping[str, Any]  # the setting without variant and rate, by Hydra name
    variant: str
    rates: Mapping[Any, float]  # the rate of each draw
    tried: tuple[float, ...]  # every rate that was run
    values: Mapping[str, Mapping[Any, float]]  # by score and draw, the mean over queries
    # whether a chosen rate is the lowest or the highest tried, so that a better one may lie beyond
    at_edge: bool = False


@dataclass(frozen=True)
class Difference:
    """One setting against another."""

    first: Contender  # whose scores come first
    second: Contender  # the one they are compared with
    asks: str  # what the difference tells
    results: Mapping[str, Comparison]  # by score, first minus second over the draws of both

    def names(self, variants: Mapping[str, Variant]) -> tuple[str, str]:
        """What the two are called: by their variants, and by their weights where these are compared."""
        first, second = (
            variants[one.variant].label + f", {one.others[_WEIGHTS]}" * (self.first.variant == self.second.variant)
            for one in (self.first, self.second)
        )
        return first, second


def contenders(results: Results) -> tuple[list[Contender], list[str]]:
    """Every variant at its rate, where it has one: the only one tried, or for each draw the one that the others choose.

    Returns:
        The contenders, and a sentence for each variant that has none: a single draw has no best rate, and neither has
        a variant without a rate at which every draw is sane.
    """
    chosen, notes = [], []
    for (others, variant), by_rate in _by_rate(results).items():
        about = dict(zip(other_keys(results), others, strict=True))
        tried = tuple(sorted(by_rate))
        if len(tried) == 1:
            values = by_rate[tried[0]]
            draws = {draw for by_draw in values.values() for draw in by_draw}
            chosen.append(Contender(about, variant, dict.fromkeys(draws, tried[0]), tried, values))
            continue
        score = _choosing(results, by_rate)
        told = None if score is None else _held_out(by_rate, score, results.scores[score].better)
        label = results.variants[variant].label
        if told is None:
            notes.append(f"{label}: {len(tried)} rates and one draw, so that no rate is best")
        elif not told.values:
            notes.append(f"{label}: no rate at which every draw is sane, so that none can be chosen")
        else:
            scores = dict.fromkeys(score for values in by_rate.values() for score in values)
            values = {score: _at(by_rate, score, told.chosen) for score in scores}
            chosen.append(Contender(about, variant, told.chosen, tried, values, told.at_edge))
    return chosen, list(dict.fromkeys(notes))


def differences(results: Results, among: Sequence[Contender]) -> list[Difference]:
    """Every comparison that the variants ask for, over the headline scores; p corrected for all that were tested."""
    scores = [name for name in results.headline if results.scores[name].learned]
    asked, found = list(_asked(results, among)), {}
    for at, (first, second, _) in enumerate(asked):
        for score in scores:
            if score in first.values and score in second.values:
                chosen = len(first.tried) > 1 or len(second.tried) > 1
                found[at, score] = compare(first.values[score], second.values[score], chosen=chosen)
    corrected = holm_corrected(found)
    made = []
    for at, (first, second, asks) in enumerate(asked):
        mine = {score: corrected[at, score] for score in scores if (at, score) in corrected}
        if any(result.draws for result in mine.values()):
            made.append(Difference(first, second, asks, mine))
    return made


def power_text(made: Sequence[Difference]) -> str:
    """One paragraph: what this sweep can tell apart, what it cannot, and how many draws would."""
    if not made:
        return ""
    results = [result for difference in made for result in difference.results.values()]
    spreads = [result.spread for result in results]
    if not any(spread > 0 for spread in spreads):
        if max(result.draws for result in results) > 1:
            return "The draws do not differ at all, so that nothing follows for draws not made."
        return "One draw of demonstrations tells no variants apart: give several seeds (seed=0,1,2,3,4)."
    told = design_power(spreads, min(result.draws for result in results if result.draws), tests=len(results))
    count = f"{told.tests} comparison{'s' if told.tests > 1 else ''}"
    text = f"With {told.draws} draws and {count}, differences between draws spread by {told.spread:.3f} (median)."
    if any(len(one.tried) > 1 for difference in made for one in (difference.first, difference.second)):
        text += " That includes the error which choosing rates on these draws adds."
    if told.draws < 5:
        text += " With fewer than 5 draws no comparison is marked."
    else:
        text += (
            f" A true difference of {told.smallest:.3f} would be marked four times in five; smaller ones may not be."
        )
    return text + (f" To mark ± {told.target:g} takes about {max(told.needed, 5)} draws." if told.needed else "")


def remarks(results: Results) -> list[str]:
    """What must be read beside the numbers: mixed inputs, half precision, in-context learning that gives nothing."""
    noted = (note for run in results for note in run.environment.get("notes", ()))
    half = dict.fromkeys(note for note in noted if note.startswith("measured in "))
    return [*filter(None, [results.mixed_inputs]), *half, *zero_shot_notes(results)]


def zero_shot_notes(results: Results) -> list[str]:
    """Sentences where in-context learning is not seen to beat zero-shot: likeness to it then means little.

    Neither accuracy depends on the variant or its rate, so that every draw is counted once.
    """
    pairs = [
        (name, twin.name)
        for name, score in results.scores.items()
        if score.share and (twin := score.without_context(results.scores.values()))
    ]
    if not pairs:
        return []
    keys = [key for key in results.keys if not key.startswith(("finetune.", "reference.name"))]
    notes: dict[str, None] = {}
    icl, zsl = ((name, "all") for name in pairs[0])
    by_draw: dict[tuple[Any, ...], dict[Any, tuple[Record, Record]]] = {}
    for run in results.runs:
        if run.planted:
            continue  # what plays ICL's part there is not ICL
        if icl in run.records and zsl in run.records and not math.isnan(run.mean(icl[0]) - run.mean(zsl[0])):
            setting = tuple(run.settings.get(key) for key in keys)
            by_draw.setdefault(setting, {}).setdefault(run.draw, (run.records[icl], run.records[zsl]))
    for setting, draws in by_draw.items():
        said = _zero_shot_note(list(draws.values()))
        if said:
            named = (_named(results, *pair) for pair in zip(keys, setting, strict=True))
            notes[f"{', '.join(named)}: {said}"] = None
    return list(notes)


def _named(results: Results, key: str, value: Any) -> str:
    text = results.text(key, value)
    return text if key in ("model.name", "model.weights", "task.name") else f"{results.heading(key)} {text}"


def _zero_shot_note(draws: Sequence[tuple[Record, Record]]) -> str | None:
    """Over draws where there are enough for an interval, else by the queries of each."""
    icl, zsl = (dict(enumerate(record.mean for record in column)) for column in zip(*draws, strict=True))
    means = [math.fsum(by_draw.values()) / len(draws) for by_draw in (icl, zsl)]
    numbers = f"({means[0]:.1%} against {means[1]:.1%})"
    if means[0] <= means[1]:
        return f"ICL does not beat zero-shot {numbers}, so that likeness to it means little here."
    low = compare(icl, zsl).low
    told = all(one.low > other.high for one, other in draws) if math.isnan(low) else low > 0
    return None if told else f"ICL's lead over zero-shot {numbers} is within chance; read likeness to it with care."


def other_keys(results: Results) -> list[str]:
    """The keys of a setting without variant and rate."""
    return [key for key in results.keys if key not in (VARIANT, RATE)]


def _by_rate(results: Results) -> dict[tuple[tuple[Any, ...], str], dict[float, dict[str, dict[Any, float]]]]:
    """By other settings and variant: {rate: {score: {draw: mean}}} of sane runs, orders of one draw averaged."""
    sums: dict[Any, Any] = {}
    order = {name: at for at, name in enumerate(results.variants)}
    for run in sorted(results.runs, key=lambda run: order[run.settings[VARIANT]]):
        others = tuple(run.settings.get(key) for key in other_keys(results))
        by_score = sums.setdefault((others, run.settings[VARIANT]), {}).setdefault(run.settings[RATE], {})
        for score in results.scores if run.state == "sane" else ():
            if (score, "all") in run.records:
                by_score.setdefault(score, {}).setdefault(run.draw, []).append(run.mean(score))
    return {
        where: {
            rate: {
                score: {draw: float(np.mean(values)) for draw, values in by_draw.items()}
                for score, by_draw in scores.items()
            }
            for rate, scores in by_rate.items()
        }
        for where, by_rate in sums.items()
    }


def _choosing(results: Results, by_rate: Mapping[float, Mapping[str, Any]]) -> str | None:
    """The score that chooses the rate: the first headline one that was measured and has a better side."""
    measured = {score for values in by_rate.values() for score in values}
    scores = (results.scores[name] for name in results.headline if name in measured)
    return next((score.name for score in scores if score.learned and score.better != Better.neither), None)


def _held_out(by_rate: Mapping[float, Mapping[str, Mapping[Any, float]]], score: str, better: Better) -> Any:
    draws = dict.fromkeys(draw for values in by_rate.values() for by_draw in values.values() for draw in by_draw)
    table = {
        draw: {rate: values.get(score, {}).get(draw, math.nan) for rate, values in by_rate.items()} for draw in draws
    }
    return held_out(table, str(better))


def _at(by_rate: Mapping[float, Any], score: str, chosen: Mapping[Any, float]) -> dict[Any, float]:
    return {draw: by_rate[rate].get(score, {}).get(draw, math.nan) for draw, rate in chosen.items()}


def _asked(results: Results, among: Sequence[Contender]) -> Iterator[tuple[Contender, Contender, str]]:
    known = {(tuple(c.others.values()), c.variant): c for c in among}
    present = [variant for variant in results.variants.values() if any(c.variant == variant.name for c in among)]
    for (others, name), first in known.items():
        for second, asks in _against(results.variants[name], present).items():
            if (others, second) in known:
                yield first, known[others, second], asks
    for first in among:
        if first.others[_WEIGHTS] == "pretrained" and results.variants[first.variant].role == Role.variant:
            for second in among:
                differing = {key for key in first.others if first.others[key] != second.others[key]}
                if second.variant == first.variant and differing == {_WEIGHTS}:
                    yield _by_seed(first), _by_seed(second), "what training the model gave"


def _against(variant: Variant, present: Sequence[Variant]) -> Mapping[str, str]:
    """The variants that one is compared with; without a word of its own, the floors and the first plain variant."""
    if variant.against is not None:
        return variant.against
    if variant.role not in (Role.variant, Role.rival):
        return {}
    plain = [other for other in present if other.role == Role.variant][:1]
    floors = [other for other in present if other.role == Role.floor]
    asked = {other.name: f"{variant.label} beside {other.label}" for other in plain}
    asked |= {other.name: f"{variant.label} above the floor" for other in floors}
    return {name: asks for name, asks in asked.items() if name != variant.name}


def _by_seed(contender: Contender) -> Contender:
    """With draws of one seed and several untrained weights averaged: trained weights have no such draws."""
    values: dict[str, dict[Any, float]] = {}
    for score, by_draw in contender.values.items():
        gathered: dict[Any, list[float]] = {}
        for (seed, _), value in by_draw.items():
            gathered.setdefault(seed, []).append(value)
        values[score] = {seed: float(np.mean(found)) for seed, found in gathered.items()}
    rates = {seed: rate for (seed, _), rate in contender.rates.items()}
    return replace(contender, rates=rates, values=values)
