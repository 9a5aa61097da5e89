"""Who plays ICL's part in every score: ICL itself, or a finetuning variant as a planted truth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from iclgd.common.records import Item, PromptSet, Recording
from iclgd.common.seeding import another, numpy_stream, permuted
from iclgd.config import Config
from iclgd.config.enumerations import Start
from iclgd.config.variants import ICL, reference_config
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.learned import learn, learning_key

WRONG_SHARES = (0.25, 0.5, 0.75, 1.0)  # of the demonstrations, for scores that read icl_labels or ft_labels


@dataclass(frozen=True)
class Reference:
    """The reference of one run."""

    lab: Laboratory  # the run's model and queries, with the reference's own config
    prompts: PromptSet  # its own demonstrations

    @classmethod
    def of(cls, lab: Laboratory) -> Reference:
        """The reference that the run's config names."""
        prompts = lab.planted_prompts
        if prompts is None:
            return cls(lab, lab.prompts)
        return cls(replace(lab, config=reference_config(lab.config)), prompts)

    @cached_property
    def icl(self) -> Recording:
        """What stands for ICL with the reference's own demonstrations."""
        return self.recording("icl", self.prompts)

    def recording(self, setting: str, prompts: PromptSet) -> Recording:
        """What stands for ICL with these demonstrations, made once for all runs that share it."""
        name, finetune = self.lab.config.reference.name, self.lab.config.finetune
        if name == ICL:
            return self.lab.untouched(setting, prompts)
        # Attention to the context is to the run's own demonstrations, in its order; noise is each setting's own.
        own = self.lab.prompts.context() if f"{setting}.context_scores" in self.lab.wanted else None
        noise = setting if finetune.start is Start.noise else ICL
        key = learning_key(self.lab, setting, prompts, context_scores_with=own, noise_of=noise)
        return self.lab.shared(f"{setting} is {name}", key, lambda: self._learned(setting, prompts))

    def _learned(self, setting: str, prompts: PromptSet) -> Recording:
        lab, wanted = self.lab, f"{setting}.context_scores"
        if wanted in lab.wanted:
            # A finetuned model has no context to attend to; what it gives a training token is <q(query), q(token)>.
            queries = {f"{setting}.query_vectors", "training_query_vectors"}
            lab = replace(lab, wanted=lab.wanted - {wanted} | queries)
        learned = learn(lab, setting, prompts)
        recording, trace, keys = learned.recording, learned.trace, learned.training_queries
        if wanted in self.lab.wanted and recording.query_vectors is not None and keys is not None:
            # In float64, as the scores take the candidate's: rounding would break ties between equal tokens otherwise.
            scores = torch.einsum("elf,clf->elc", recording.query_vectors.double(), keys.double())
            recording = replace(recording, context_scores=scores)
        return replace(recording, losses=trace.losses, untouched_loss=torch.tensor(trace.untouched_loss))


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
