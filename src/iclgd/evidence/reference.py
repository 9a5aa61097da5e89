"""Who plays ICL's part in every score: ICL itself, or a finetuning variant as a planted truth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from iclgd.common.records import Item, PromptSet, Recording, Trace
from iclgd.common.seeding import another, numpy_stream, permuted
from iclgd.config import Config
from iclgd.config.enumerations import Start
from iclgd.config.variants import ICL, reference_config
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.learned import Settings, learn, learning_key
from iclgd.runs.cache import recordings_cache

WRONG_SHARES = (0.25, 0.5, 0.75, 1.0)  # of the demonstrations, for scores that read icl_labels or ft_labels


@dataclass(frozen=True)
class Reference:
    """The reference of one run."""

    lab: Laboratory  # the run's model and queries, with the reference's own config
    prompts: PromptSet  # its own demonstrations
    settings: Settings  # the run's recordings of the model as it was loaded

    def orders(self) -> list[PromptSet]:
        """Its demonstrations in its own order and in others."""
        return orders(self.prompts, self.lab.config)

    def recording(self, setting: str, prompts: PromptSet | None = None) -> Recording:
        """What stands for ICL, made once for all runs that share it."""
        prompts, name = prompts or self.prompts, self.lab.config.reference.name
        if name == ICL:
            return self.lab.untouched(setting, prompts)
        # Attention to the context is to the run's own demonstrations, in its order; noise is each setting's own.
        own = self.lab.prompts.context() if f"{setting}.context_scores" in self.lab.wanted else None
        finetune = self.lab.config.finetune
        noise = setting if finetune.noise or finetune.start is Start.noise else ICL
        cache = recordings_cache(self.lab.config.runtime)
        key = learning_key(self.lab, setting, prompts, context_scores_with=own, noise_of=noise)
        recording, reused = cache.get_or_compute(key, lambda: self._learned(setting, prompts))
        self.lab.tell(f"{setting} is {name}", reused)
        return recording

    def _learned(self, setting: str, prompts: PromptSet) -> Recording:
        lab, settings, wanted = self.lab, self.settings, f"{setting}.context_scores"
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
    """The reference that the run's config names."""
    prompts = lab.planted_prompts
    if prompts is None:
        return Reference(lab, lab.prompts, settings)
    return Reference(replace(lab, config=reference_config(lab.config)), prompts, settings)


def orders(prompts: PromptSet, config: Config) -> list[PromptSet]:
    """The demonstrations in the run's own order and in `metric.orders` others, no two alike.

    There are fewer where so few demonstrations do not have as many orders.
    """
    count, items = len(prompts.in_context), prompts.training_items()
    by_rank = {tuple(range(count)): prompts}
    step, wanted = config.task.permutation, config.metric.orders + 1
    while len(by_rank) < wanted and (count > 8 or len(by_rank) < math.factorial(count)):
        step += 1
        rank = tuple(permuted(count, config.seed, step))
        training = tuple(items[i] for i in permuted(len(items), config.seed, step))
        reordered = replace(prompts, in_context=tuple(prompts.in_context[i] for i in rank), training=training)
        by_rank.setdefault(rank, reordered)
    return list(by_rank.values())


def relabelled(prompts: PromptSet, seed: int) -> list[PromptSet]:
    """The demonstrations as they are, and with wrong labels for each of `WRONG_SHARES` of them, rounded up.

    A wrong label is another of the demonstration's options. Which demonstrations have one depends on their tokens and
    the seed, not on their order, so that a planted truth has the same; those of a smaller share are among those of a
    larger one. Alone as they are where what is learned has labels of its own (the controls).
    """
    if prompts.training is not None:
        return [prompts]
    streams = [numpy_stream(f"wrong label of {item.token_ids}", seed) for item in prompts.demonstrations]
    order = sorted(range(len(streams)), key=[stream.random() for stream in streams].__getitem__)
    wrong = [
        _relabelled(item, prompts.options(item), stream)
        for item, stream in zip(prompts.demonstrations, streams, strict=True)
    ]
    altered = [prompts]
    for share in WRONG_SHARES:
        chosen = set(order[: math.ceil(share * len(order))])
        items = tuple(wrong[i] if i in chosen else item for i, item in enumerate(prompts.demonstrations))
        altered.append(replace(prompts, demonstrations=items))
    return altered


def _relabelled(item: Item, options: tuple[tuple[int, ...], ...], stream: np.random.Generator) -> Item:
    label = another(item.label, len(options), stream)
    tokens = item.token_ids[: len(item.token_ids) - item.label_length] + options[label]
    return replace(item, token_ids=tokens, label=label, label_length=len(options[label]))
