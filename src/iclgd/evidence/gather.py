"""The evidence of one run: zsl, icl, finetuning and ft, and what else the scores name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from iclgd.common.records import Evidence, PromptSet, Recording, Trace
from iclgd.config.enumerations import Layer0
from iclgd.config.variants import ICL
from iclgd.evidence.facts import facts
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.learned import Learned, Settings, compared, learn, learned_once, training_queries
from iclgd.evidence.reference import referred


def gather(lab: Laboratory, after_step: Callable[[int, Evidence], None] | None = None) -> Evidence:
    """Everything the scores need.

    `after_step` is called every `metric.every` steps of finetuning with the evidence so far.
    """
    owners = {path.partition(".")[0] for path in lab.wanted}
    zsl = lab.untouched("zsl")
    settings = Settings(zsl, _without_rounding(lab, lab.untouched("icl"), zsl))
    reference = referred(lab, settings)

    def icl(setting: str, prompts: PromptSet | None = None) -> Recording:
        recording = reference.recording(setting, prompts)
        return _without_rounding(lab, recording, zsl) if lab.config.reference.name == ICL else recording

    recordings = {"zsl": zsl, "icl": icl("icl")}
    if "reordered" in owners:
        others = reference.orders()[1:]  # one demonstration has one order
        recordings["reordered"] = icl("reordered", others[0]) if others else lab.undefined(settings.icl, "reordered")
    if "other" in owners:
        recordings["other"] = compared(lab, settings)
    every = lab.config.metric.every

    def after(done: int) -> None:
        if after_step and every and done % every == 0:
            so_far = lab.record("ft so far", lab.prompts.bos, lab.plan("ft"))
            learned = Learned(Trace.without_steps(lab.model.layers), so_far, training_queries(lab))
            early = facts(lab, reference, settings, learned, early=True)
            after_step(done, Evidence({**recordings, "ft": so_far}, learned.trace, early))

    learned = learn(lab, settings, after=after) if after_step and every else learned_once(lab, settings)
    return Evidence({**recordings, "ft": learned.recording}, learned.trace, facts(lab, reference, settings, learned))


def _without_rounding(lab: Laboratory, icl: Recording, zsl: Recording) -> Recording:
    """The recording with zsl's scores in a first layer that cannot see the context.

    There the two differ by rounding alone. Made equal, their difference is zero, which has no direction, and counts as
    undefined.
    """
    if lab.model.first_layer_sees_context or lab.config.protocol.layer0 is Layer0.published:
        return icl
    scores = icl.attention_scores.clone()
    scores[:, 0] = zsl.attention_scores[:, 0]
    return replace(icl, attention_scores=scores)
