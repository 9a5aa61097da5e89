"""What the draws of a sweep support: paired comparisons, their power, and what limits them.

Which comparisons are asked stands with each variant (`against` in conf/finetune). Two settings are compared only where
they are equal in everything but what is compared, and draw by draw: what a draw adds to both cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from iclgd.config.enumerations import Role
from iclgd.results.averages import Layers
from iclgd.results.catalogue import Variant
from iclgd.results.frame import Results
from iclgd.results.mixed_inputs import mixed_inputs
from iclgd.results.rates import Contender
from iclgd.results.reading import Record
from iclgd.statistics import Comparison, compare, design_power, holm_corrected

_WEIGHTS = "model.weights"
_RULES = {
    Layers.common: "those in which every setting of a model has a value",
    Layers.trained: "those that finetuning trained and that have a value",
    Layers.all: "those that have a value, not the same in every setting",
}


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


def differences(results: Results, among: Sequence[Contender]) -> list[Difference]:
    """Every comparison that the variants ask for, over the headline scores; p corrected for all that were tested."""
    scores = [name for name in results.headline if results.scores[name].learned]
    pairs = list(_pairs(results, among))
    comparisons = {
        (index, score): compare(
            first.values[score], second.values[score], chosen=len(first.tried) > 1 or len(second.tried) > 1
        )
        for index, (first, second, _) in enumerate(pairs)
        for score in scores
        if score in first.values and score in second.values
    }
    corrected = holm_corrected(comparisons)
    differences = []
    for index, (first, second, asks) in enumerate(pairs):
        own = {score: corrected[index, score] for score in scores if (index, score) in corrected}
        if any(result.draws for result in own.values()):
            differences.append(Difference(first, second, asks, own))
    return differences


def power_text(differences: Sequence[Difference]) -> str:
    """One paragraph: what this sweep can tell apart, what it cannot, and how many draws would."""
    if not differences:
        return ""
    results = [result for difference in differences for result in difference.results.values()]
    spreads = [result.spread for result in results]
    if not any(spread > 0 for spread in spreads):
        if max(result.draws for result in results) > 1:
            return "The draws do not differ at all, so that nothing follows for draws not made."
        return "One draw of demonstrations tells no variants apart: give several seeds (seed=0,1,2,3,4)."
    power = design_power(spreads, min(result.draws for result in results if result.draws), tests=len(results))
    count = f"{power.tests} comparison{'s' if power.tests > 1 else ''}"
    text = f"With {power.draws} draws and {count}, differences between draws spread by {power.spread:.3f} (median)."
    if any(len(one.tried) > 1 for difference in differences for one in (difference.first, difference.second)):
        text += " That includes the error which choosing rates on these draws adds."
    if power.draws < 5:
        text += " With fewer than 5 draws no comparison is marked."
    else:
        text += (
            f" A true difference of {power.smallest:.3f} would be marked four times in five; smaller ones may not be."
        )
    return text + (f" To mark ± {power.target:g} takes about {max(power.needed, 5)} draws." if power.needed else "")


def remarks(results: Results) -> list[str]:
    """What must be read beside the numbers: mixed inputs, layers left out, half precision, ICL that gives nothing."""
    notes = (note for run in results for note in run.environment.get("notes", ()))
    half = dict.fromkeys(note for note in notes if note.startswith("measured in "))
    return [*filter(None, [mixed_inputs(results)]), *layer_notes(results), *half, *zero_shot_notes(results)]


def layer_notes(results: Results) -> list[str]:
    """Sentences on headline scores whose means are not over all layers of the model, or not over the same ones."""
    notes = []
    for name in results.headline:
        records = [results.records[run.folder].get((name, "all")) for run in results if run.state == "sane"]
        counts = sorted({(len(one.over), len(one.layers)) for one in records if one is not None and one.over})
        if any(over < layers for over, layers in counts):
            shown = ", ".join(f"{over} of {layers}" for over, layers in counts)
            notes.append(f"Means of {results.scores[name].label} are over {shown} layers: {_RULES[results.layers]}.")
    return notes


def zero_shot_notes(results: Results) -> list[str]:
    """Sentences where in-context learning is not seen to beat zero-shot: likeness to it then means little.

    Neither accuracy depends on the variant or its rate, so that every draw is counted once.
    """
    pairs = [
        (name, twin.name)
        for name, score in results.scores.items()
        if score.share and score.reads("icl") and (twin := score.of("zsl", results.scores.values()))
    ]
    if not pairs:
        return []
    keys = [key for key in results.keys if not key.startswith(("finetune.", "reference.name"))]
    icl, zsl = ((name, "all") for name in pairs[0])
    groups: dict[tuple[Any, ...], dict[Any, tuple[Record, Record]]] = {}
    for run in results.runs:
        if run.planted or not {icl, zsl} <= run.records.keys():
            continue  # what plays ICL's part in a planted run is not ICL
        accuracies = run.records[icl], run.records[zsl]
        if not any(math.isnan(record.mean) for record in accuracies):
            setting = tuple(run.settings.get(key) for key in keys)
            groups.setdefault(setting, {}).setdefault(run.draw, accuracies)
    notes: dict[str, None] = {}
    for setting, draws in groups.items():
        note = _zero_shot_note(list(draws.values()))
        if note:
            names = (_name_of(results, *pair) for pair in zip(keys, setting, strict=True))
            notes[f"{', '.join(names)}: {note}"] = None
    return list(notes)


def _name_of(results: Results, key: str, value: Any) -> str:
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
    clear = all(one.low > other.high for one, other in draws) if math.isnan(low) else low > 0
    return None if clear else f"ICL's lead over zero-shot {numbers} is within chance; read likeness to it with care."


def _pairs(results: Results, among: Sequence[Contender]) -> Iterator[tuple[Contender, Contender, str]]:
    """The pairs that are compared, each with what the difference tells."""
    by_name = {(tuple(one.others.values()), one.variant): one for one in among}
    present = [variant for variant in results.variants.values() if any(one.variant == variant.name for one in among)]
    for (others, name), first in by_name.items():
        for second, asks in _against(results.variants[name], present).items():
            if (others, second) in by_name:
                yield first, by_name[others, second], asks
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
        values[score] = {seed: float(np.mean(means)) for seed, means in gathered.items()}
    rates = {seed: rate for (seed, _), rate in contender.rates.items()}
    return replace(contender, rates=rates, values=values)
