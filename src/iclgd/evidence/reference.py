"""Who plays ICL's part in every score: ICL itself, or a finetuning variant as a planted truth."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch

from iclgd.choices import Procedure
from iclgd.config import Config
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.learned import Settings, learn, learning_key
from iclgd.evidence.orders import orders
from iclgd.evidence.variants import variant
from iclgd.records import PromptSet, Recording, Trace
from iclgd.runs.cache import recordings_cache
from iclgd.tasks import draw, encode

log = logging.getLogger(__name__)

ICL = "icl"


@dataclass(frozen=True)
class Reference:
    """The reference of one run.

    Attributes:
        lab: the run's model and queries, with the reference's own config.
        prompts: its own demonstrations.
        settings: the run's recordings of the model as it was loaded.
    """

    lab: Laboratory
    prompts: PromptSet
    settings: Settings

    def orders(self) -> list[PromptSet]:
        """Its demonstrations in its own order and in others."""
        return orders(self.prompts, self.lab.config)

    def recording(self, setting: str, prompts: PromptSet | None = None) -> Recording:
        """What stands for ICL, made once for all runs that share it."""
        prompts, name = prompts or self.prompts, self.lab.config.reference.name
        if name == ICL:
            return self.lab.untouched(setting, prompts)
        cache, key = recordings_cache(self.lab.config.runtime), learning_key(self.lab, setting, prompts)
        recording, reused = cache.get_or_compute({**key, "as": ICL}, lambda: self._learned(setting, prompts))
        log.info("%s is %s: %s", setting, name, "reused a recording made before" if reused else "recorded")
        return recording

    def _learned(self, setting: str, prompts: PromptSet) -> Recording:
        lab, settings, wanted = self.lab, self.settings, f"{setting}.context_scores"
        if lab.config.finetune.procedure in (Procedure.activation_match, Procedure.replay):
            settings = replace(settings, icl=lab.untouched(ICL, prompts))
        if wanted not in lab.wanted:
            learned = learn(lab, settings, setting, prompts)
            return _with_losses(learned.recording, learned.trace)
        # A finetuned model has no context to attend to; what it gives a training token is <q(query), q(token)>.
        queries = {f"{setting}.query_vectors", "training_query_vectors"}
        learned = learn(replace(lab, wanted=lab.wanted - {wanted} | queries), settings, setting, prompts)
        recording, keys = learned.recording, learned.training_queries
        assert recording.query_vectors is not None and keys is not None
        # In float64, as the scores take the candidate's: rounding would break ties between equal tokens otherwise.
        context_scores = torch.einsum("elf,clf->elc", recording.query_vectors.double(), keys.double())
        return _with_losses(replace(recording, context_scores=context_scores), learned.trace)


def _with_losses(recording: Recording, trace: Trace) -> Recording:
    return replace(recording, losses=trace.losses, untouched_loss=torch.tensor(trace.untouched_loss))


def referred(lab: Laboratory, settings: Settings) -> Reference:
    """The reference that the run's config names.

    Raises:
        ConfigError: no such variant, or not enough rows for another sample.
    """
    config = reference_config(lab.config)
    if config is lab.config:
        return Reference(lab, lab.prompts, settings)
    prompts = encode(draw(config, config.reference.draw), config, lab.model.tokenizer, lab.model.window)
    return Reference(replace(lab, config=config), replace(prompts, queries=lab.prompts.queries), settings)


def reference_config(config: Config) -> Config:
    """The run as the reference has it: its variant, rate and order; the run itself where all of that is ICL's own."""
    reference, task = config.reference, config.task
    if reference.name != ICL:
        chosen = variant(config, reference.name, "reference.name")
        finetune = replace(
            chosen.finetune,
            lr=(reference.lr or chosen.finetune.lr) * reference.lr_factor,
            noise=reference.noise or chosen.finetune.noise,
            other_task=config.finetune.other_task or chosen.finetune.other_task,
        )
    elif reference.permutation is None and not reference.draw:
        return config
    else:
        finetune = config.finetune
    order = task.permutation if reference.permutation is None else reference.permutation
    return replace(config, finetune=finetune, task=replace(task, permutation=order))
