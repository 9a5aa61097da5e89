"""The evidence of one run: zsl, icl, the mechanism and ft, and what else the scores name."""

from __future__ import annotations

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
    zsl, reference = lab.untouched("zsl"), Reference.of(lab)

    def in_place_of_icl(recording: Recording) -> Recording:
        if lab.config.reference.name == ICL:
            recording = blind_first_layer(lab, recording, zsl)
        return without_rounding(lab, recording, zsl)

    recordings = {"zsl": zsl, "icl": in_place_of_icl(reference.icl)}
    if "reordered" in settings:
        others = orders(reference.prompts, reference.lab.config)[1:]  # one demonstration has one order
        recordings["reordered"] = undefined(recordings["icl"])
        if others:
            recordings["reordered"] = in_place_of_icl(reference.recording("reordered", others[0]))
    if "other" in settings:
        recordings["other"] = without_rounding(lab, compared(lab), zsl)
    learned = learned_once(lab)
    recordings["ft"] = without_rounding(lab, learned.recording, zsl)
    return Evidence(recordings, learned.trace, facts(lab, reference, learned))


def without_rounding(lab: Laboratory, recording: Recording, zsl: Recording) -> Recording:
    """The recording with zsl's values where the two differ by rounding alone.

    A difference of rounding errors has a direction, but says nothing. Made zero, it counts as undefined. This concerns
    layers that no token of the context reaches (a local layer whose window is shorter than the query; the first
    layer's scores under rotary positions), and changes that are too small for the precision of the run.
    """
    if lab.config.protocol.layer0 is Layer0.published:
        return recording
    single, own = torch.finfo(torch.float32).eps, torch.finfo(lab.model.dtype).eps  # recordings are in float32
    least = ROUNDING_IN_HALF * own if own > single else ROUNDING * single
    cleaned = {
        name: _where_it_differs(getattr(recording, name), getattr(zsl, name), least)
        for name in ("attention_output", "attention_scores", "block_output")
        if getattr(recording, name) is not None and getattr(zsl, name) is not None
    }
    return replace(recording, **cleaned)


def _where_it_differs(
    after: Float[Tensor, "*axes n"], before: Float[Tensor, "*axes n"], least: float
) -> Float[Tensor, "*axes n"]:
    """Vectors `after`; those `before` where the two are closer than `least` times the length of that vector."""
    absent = before.isnan()  # keys that a query does not have
    distance = (after - before).masked_fill(absent, 0).norm(dim=-1, keepdim=True)
    near = distance <= least * before.masked_fill(absent, 0).norm(dim=-1, keepdim=True)
    return before.where(near, after)


def blind_first_layer(lab: Laboratory, icl: Recording, zsl: Recording) -> Recording:
    """ICL's recording with zsl's scores in a first layer that cannot see the context, whatever their rounding."""
    if lab.model.first_layer_sees_context or lab.config.protocol.layer0 is Layer0.published:
        return icl
    scores = icl.attention_scores.clone()
    scores[:, 0] = zsl.attention_scores[:, 0]
    return replace(icl, attention_scores=scores)
