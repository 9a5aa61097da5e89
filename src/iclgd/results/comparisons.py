"""Comparisons of settings, paired by draw, and what a sweep can tell apart.

The yaml of a variant says what it is compared with (`against` in conf/finetune). Two settings are compared only where
they are equal in everything else, and draw by draw, so that what a draw adds to both cancels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from iclgd.config.enumerations import Role
from iclgd.results.catalogue import Variant
from iclgd.results.frame import Results
from iclgd.results.rates import Contender
from iclgd.statistics import Comparison, draws_to_detect, holm_corrected, smallest_difference

_WEIGHTS = "model.weights"
_TARGET = 0.05  # a difference worth finding


@dataclass(frozen=True)
class Difference:
    """One setting against another."""

    first: Contender  # whose scores come first
    second: Contender  # the one they are compared with
    asks: str  # what the difference tells
    results: Mapping[str, Comparison]  # by score, first minus second over the draws of both

    def names(self, labels: Mapping[str, str]) -> tuple[str, str]:
        """What the two are called: by label, else name, of the variants, and by weights where these are compared."""
        same = self.first.variant == self.second.variant
        first, second = (
            labels.get(one.variant, one.variant) + f", {one.others[_WEIGHTS]}" * same
            for one in (self.first, self.second)
        )
        return first, second


def differences(results: Results, among: Sequence[Contender]) -> list[Difference]:
    """Every comparison that the variants ask for, over the headline scores; p corrected for all that were tested."""
    scores = [name for name in results.headline if results.scores[name].learned]
    pairs = list(_pairs(results, among))
    compared = holm_corrected(
        {
            (index, score): first.minus(second, score)
            for index, (first, second, _) in enumerate(pairs)
            for score in scores
            if score in first.values and score in second.values
        }
    )
    by_pair = [
        {score: comparison for (at, score), comparison in compared.items() if at == index}
        for index in range(len(pairs))
    ]
    return [
        Difference(*pair, own)
        for pair, own in zip(pairs, by_pair, strict=True)
        if any(comparison.draws for comparison in own.values())
    ]


def power_text(differences: Sequence[Difference]) -> str:
    """One paragraph: what this sweep can tell apart, what it cannot, and how many draws would."""
    results = [result for difference in differences for result in difference.results.values()]
    spreads = [result.spread for result in results if result.spread > 0]
    if not spreads:
        alone = "One draw of demonstrations, or draws that do not differ at all, tell no variants apart"
        return f"{alone}: give several seeds (seed=0,1,2,3,4)." if differences else ""
    draws, spread = min(result.draws for result in results if result.draws), float(np.median(spreads))
    alpha = 0.05 / len(results)  # Holm's first step
    count = f"{len(results)} comparison{'s' if len(results) > 1 else ''}"
    text = f"In the table of {count} over {draws} draws, differences spread by {spread:.3f} from draw to draw (median)."
    if any(len(one.tried) > 1 for difference in differences for one in (difference.first, difference.second)):
        text += " That includes the error which choosing rates on these draws adds."
    if draws < 5:
        text += " With fewer than 5 draws no comparison is marked."
    else:
        smallest = smallest_difference(spread, draws, alpha)
        text += f" A true difference of {smallest:.3f} would be marked four times in five; smaller ones may not be."
    needed = max(draws_to_detect(_TARGET, spread, alpha), 5)
    return f"{text} To mark ± {_TARGET:g} takes about {needed} draws."


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
    rates = {seed: rate for (seed, _), rate in contender.rates.items()}
    values = {}
    for score, by_draw in contender.values.items():
        means: Any = pd.Series(by_draw, dtype=float).groupby(level=0).mean()
        values[score] = means.dropna().to_dict()
    return replace(contender, rates=rates, values=values)
