"""The evidence of one run: zsl, icl, the mechanism and ft, and what else the scores name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.common.records import Evidence, PromptSet, Recording, Trace
from iclgd.config.enumerations import Layer0
from iclgd.config.variants import ICL
from iclgd.evidence.facts import facts
from iclgd.evidence.laboratory import Laboratory, undefined
from iclgd.evidence.learned import Learned, Settings, compared, learn, learned_once, training_queries
from iclgd.evidence.reference import Reference, referred

# Two readings of the same tokens differ by up to 8 steps of the precision in float32 and 4 in bfloat16 (relative to the
# vector's length; a tiny Gemma 3 whose windows hide the context). Differences below these are taken for rounding.
ROUNDING, ROUNDING_IN_HALF = 16, 4

AfterStep = Callable[[int, Evidence], None]


@dataclass(frozen=True)
class Untouched:
    """What is recorded before the mechanism acts."""

    reference: Reference  # who plays ICL's part
    recordings: Mapping[str, Recording]  # by setting, as scores name them; all but ft


def record_untouched(lab: Laboratory) -> Untouched:
    """Record zsl and icl, and the further settings that scores name."""
    owners = {path.partition(".")[0] for path in lab.wanted}
    zsl = lab.untouched("zsl")
    settings = Settings(zsl, blind_first_layer(lab, lab.untouched("icl"), zsl))
    reference = referred(lab, settings)

    def icl(setting: str, prompts: PromptSet | None = None) -> Recording:
        recording = reference.recording(setting, prompts)
        if lab.config.reference.name == ICL:
            recording = blind_first_layer(lab, recording, zsl)
        return without_rounding(lab, recording, zsl)

    recordings = {"zsl": zsl, "icl": icl("icl")}
    if "reordered" in owners:
        others = reference.orders()[1:]  # one demonstration has one order
        recordings["reordered"] = icl("reordered", others[0]) if others else undefined(icl("reordered"))
    if "other" in owners:
        recordings["other"] = without_rounding(lab, compared(lab, settings), zsl)
    return Untouched(reference, recordings)


def record_mechanism(lab: Laboratory, untouched: Untouched, after_step: AfterStep | None = None) -> Learned:
    """Let the mechanism act, and record ft.

    `after_step` is called every `metric.every` steps of training with the evidence so far.
    """
    every = lab.config.metric.every
    if after_step is None or not every:
        return learned_once(lab, untouched.reference.settings)

    def after(done: int) -> None:
        if done % every == 0:
            so_far = lab.record("ft so far", lab.prompts.bos, lab.plan("ft"))
            learned = Learned(Trace.without_steps(lab.model.layers), so_far, training_queries(lab))
            after_step(done, collect(lab, untouched, learned, early=True))

    return learn(lab, untouched.reference.settings, after=after)


def collect(lab: Laboratory, untouched: Untouched, learned: Learned, early: bool = False) -> Evidence:
    """All that the scores may look at; `early`, what there is of it while training goes on."""
    further = facts(lab, untouched.reference, learned, early)
    ft = without_rounding(lab, learned.recording, untouched.recordings["zsl"])
    return Evidence({**untouched.recordings, "ft": ft}, learned.trace, further)


def gather(lab: Laboratory) -> Evidence:
    """The evidence of a run in one go."""
    untouched = record_untouched(lab)
    return collect(lab, untouched, record_mechanism(lab, untouched))


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
