"""A run's finetuning again, from weights one rounding step apart: whether its scores stay where they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from iclgd.common.records import Evidence
from iclgd.config import ScoreConfig
from iclgd.config.bounds import parse_layers
from iclgd.evidence.facts import LATE_FACTS, facts
from iclgd.evidence.gather import without_rounding
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.learned import Settings, learn
from iclgd.evidence.reference import referred
from iclgd.mechanisms.finetuning import jittered
from iclgd.mechanisms.parameters import trained_parameters


def before_the_end(scores: Mapping[str, ScoreConfig]) -> dict[str, ScoreConfig]:
    """The scores that need nothing but recordings: no trace of the whole training, no training in other orders."""
    return {
        name: spec
        for name, spec in scores.items()
        if not any(path.startswith("trace.") or path in LATE_FACTS for path in spec.inputs.values())
    }


def repeats(lab: Laboratory, evidence: Evidence) -> Iterator[Evidence]:
    """The run's evidence for each of `runtime.jitter` repeats; zsl and icl are those of the run."""
    finetune, settings = lab.config.finetune, Settings(evidence.recordings["zsl"], lab.untouched("icl"))
    reference = referred(lab, settings)
    trained = trained_parameters(lab.model, finetune.trainable, parse_layers(finetune.layers))
    for repeat in range(lab.config.runtime.jitter):
        with jittered(trained, repeat, lab.config.seed):
            learned = learn(lab, settings)
        yield Evidence(
            {**evidence.recordings, "ft": without_rounding(lab, learned.recording, settings.zsl)},
            learned.trace,
            facts(lab, reference, learned, early=True),
        )


def spread(summary: Mapping[str, Any], repeated: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of jitter.json: by score its mean in the run and in each repeat, and whether one left the interval.

    A repeat in which a score that the run has is undefined (its finetuning diverged) has left it too.

    Returns:
        By score {"mean", "means", "spread", "moved"}; spread is the largest distance between any two.
    """
    moves = {}
    for name in repeated[0] if repeated else ():
        own, means = summary[name], [scores[name]["mean"] for scores in repeated]
        defined = [value for value in (own["mean"], *means) if value is not None]
        low, high = own["ci"] or (-math.inf, math.inf)
        moves[name] = {
            "mean": own["mean"],
            "means": means,
            "spread": max(defined) - min(defined) if defined else None,
            "moved": own["mean"] is not None and any(value is None or not low <= value <= high for value in means),
        }
    return moves


def moved(spreads: Mapping[str, Any]) -> str | None:
    """Why a run counts as unstable by its repeats, in words; None if all scores stay within their intervals."""
    names = [name for name, score in spreads.items() if score["moved"]]
    if not names:
        return None
    first = spreads[names[0]]
    means = ", ".join("undefined" if value is None else f"{value:.3f}" for value in first["means"])
    more = f", as do {len(names) - 1} more scores" if len(names) > 1 else ""
    return (
        f"from weights one rounding step apart, {names[0]} ({first['mean']:.3f}) becomes {means}, which leaves its "
        f"interval{more}"
    )
