"""The evidence of one run: zsl, icl, the mechanism and ft, and what else the scores name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.common.records import Evidence, Recording
from iclgd.config.enumerations import Layer0
from iclgd.config.variants import ICL
from iclgd.evidence.facts import facts
from iclgd.evidence.laboratory import Laboratory, undefined
from iclgd.evidence.learned import compared, learned_once
from iclgd.evidence.reference import Reference, orders

# Two readings of the same tokens differ by up to 8 steps of the precision in float32 and 4 in bfloat16 (relative to the
# vector's length; a tiny Gemma 3 whose windows hide the context). Differences below these are taken for rounding.
ROUNDING, ROUNDING_IN_HALF = 16, 4


def gather(lab: Laboratory) -> Evidence:
    """All that the scores may look at: zsl, icl, what the mechanism does, and what else the scores name."""
    settings = {path.partition(".")[0] for path in lab.wanted}
    reference = Reference.of(lab)
    recordings = {"zsl": lab.untouched("zsl"), "icl": reference.icl}
    if "reordered" in settings:
        others = orders(reference.prompts, reference.lab.config)[1:]  # one demonstration has one order
        recordings["reordered"] = reference.recording("reordered", others[0]) if others else undefined(reference.icl)
    if "other" in settings:
        recordings["other"] = compared(lab)
    learned = learned_once(lab)
    recordings["ft"] = learned.recording
    return Evidence(without_rounding(lab, recordings), learned.trace, facts(lab, reference, learned))


def without_rounding(lab: Laboratory, recordings: Mapping[str, Recording]) -> dict[str, Recording]:
    """The recordings with zsl's values where they differ from those by rounding alone.

    A difference of rounding errors has a direction, but says nothing. Made zero, it counts as undefined. This concerns
    layers that no token of the context reaches (a local layer whose window is shorter than the query; the first
    layer's scores under rotary positions), and changes that are too small for the precision of the run.
    """
    if lab.config.protocol.layer0 is Layer0.published:
        return dict(recordings)
    single, own = torch.finfo(torch.float32).eps, torch.finfo(lab.model.dtype).eps  # recordings are in float32
    least = ROUNDING_IN_HALF * own if own > single else ROUNDING * single
    blind = ("icl", "reordered") if lab.config.reference.name == ICL and not lab.model.first_layer_sees_context else ()
    zsl, cleaned = recordings["zsl"], {}
    for setting, recording in recordings.items():
        if setting in blind:  # whatever its rounding
            scores = recording.attention_scores.clone()
            scores[:, 0] = zsl.attention_scores[:, 0]
            recording = replace(recording, attention_scores=scores)
        changes = {
            name: _where_it_differs(getattr(recording, name), getattr(zsl, name), least)
            for name in ("attention_output", "attention_scores", "block_output")
            if getattr(recording, name) is not None and getattr(zsl, name) is not None
        }
        cleaned[setting] = replace(recording, **changes)
    return cleaned


def _where_it_differs(
    after: Float[Tensor, "*axes n"], before: Float[Tensor, "*axes n"], least: float
) -> Float[Tensor, "*axes n"]:
    """Vectors `after`; those `before` where the two are closer than `least` times the length of that vector."""
    absent = before.isnan()  # keys that a query does not have
    distance = (after - before).masked_fill(absent, 0).norm(dim=-1, keepdim=True)
    near = distance <= least * before.masked_fill(absent, 0).norm(dim=-1, keepdim=True)
    return before.where(near, after)
