"""Tensors beside the recordings that scores may name, each made only if one does, such as grafts.

A graft puts attention's outputs of one setting into the model without context, layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.common.records import PromptSet, Recording
from iclgd.common.seeding import torch_stream
from iclgd.config import Config, ConfigError
from iclgd.config.enumerations import RandomUpdate, RecordAt, Site
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.learned import Learned, context_changes, learn, random_changes, undefined_changes
from iclgd.evidence.reference import Reference, orders, relabelled
from iclgd.metrics.distributions import total_variation
from iclgd.models.attention_pass import AttentionPass
from iclgd.models.interventions import intervening, own_tokens, rewriting
from iclgd.models.recorder import record


def facts(lab: Laboratory, reference: Reference, learned: Learned) -> dict[str, Any]:
    """Every fact that the scores name."""
    prompts, config, seed = lab.prompts, lab.config, lab.config.seed
    shape = learned.recording.attention_output.shape
    makers: dict[str, Callable[[], Any]] = {
        "labels": lambda: torch.tensor([query.label for query in prompts.queries]),
        "first_label_token": lambda: torch.tensor([prompts.options(q)[q.label][0] for q in prompts.queries]),
        "random_update": lambda: random_update(shape, config),
        "context_example": lambda: _context_example(prompts),
        "training_query_vectors": lambda: learned.training_queries,
        "random_attention": lambda: random_attention((*shape[:2], len(prompts.context())), config),
        "trained_changes": lambda: learned.changes or undefined_changes(lab),
        "static_changes": lambda: context_changes(lab),
        "random_changes": lambda: random_changes(lab),
        "icl_orders": lambda: _icl_altered(reference, orders(reference.prompts, reference.lab.config)),
        "icl_orders_of_run": lambda: _icl_altered(reference, _orders_of_run(reference, config)),
        "ft_orders": lambda: _ft_altered(lab, learned, orders(prompts, config)),
        "icl_labels": lambda: _icl_altered(reference, relabelled(reference.prompts, seed)),
        "ft_labels": lambda: _ft_altered(lab, learned, relabelled(prompts, seed)),
        "graft_icl": lambda: graft_distances(lab, reference.icl, reference.icl, up_to=False),
        "graft_icl_up_to": lambda: graft_distances(lab, reference.icl, reference.icl, up_to=True),
        "graft_ft": lambda: graft_distances(lab, learned.recording, reference.icl, up_to=False),
        "graft_ft_up_to": lambda: graft_distances(lab, learned.recording, reference.icl, up_to=True),
    }
    return {name: make() for name, make in makers.items() if name in lab.wanted or name == "labels"}


def random_update(shape: torch.Size, config: Config) -> Tensor:
    """What the random baseline takes for finetuning's update."""
    stream = torch_stream("random update", config.seed)
    if config.protocol.random_update is RandomUpdate.uniform:
        return torch.rand(shape, generator=stream)
    return torch.randn(shape, generator=stream)


def random_attention(shape: tuple[int, ...], config: Config) -> Tensor:
    """What the random baseline takes for attention to the context."""
    return torch.rand(shape, generator=torch_stream("random attention", config.seed))


def _context_example(prompts: PromptSet) -> Tensor:
    owners = torch.full((len(prompts.context()),), -1)
    for number, (start, end) in enumerate(prompts.context_spans()):
        owners[start:end] = number
    return owners


def _orders_of_run(reference: Reference, config: Config) -> list[PromptSet]:
    """The reference's orders if they are the run's; a planted truth in another order is reordered otherwise."""
    all_orders = orders(reference.prompts, reference.lab.config)
    return all_orders if reference.lab.config.task.permutation == config.task.permutation else all_orders[:1]


def _icl_altered(reference: Reference, altered: Sequence[PromptSet]) -> Float[Tensor, "alteration example label"]:
    return torch.stack([reference.recording("icl", prompts).label_scores for prompts in altered])


def _ft_altered(
    lab: Laboratory, learned: Learned, altered: Sequence[PromptSet]
) -> Float[Tensor, "alteration example label"]:
    """Label scores after learning from each of these demonstrations, the first of which are the run's own."""
    others = [learn(lab, prompts=prompts).recording for prompts in altered[1:]]
    return torch.stack([recording.label_scores for recording in (learned.recording, *others)])


def graft_distances(lab: Laboratory, donor: Recording, icl: Recording, up_to: bool) -> Float[Tensor, "example layer"]:
    """Total variation of the next token between ICL and the model without context with the donor's outputs put in.

    At layer l attention's output at the query's last token is the donor's in layer l alone or, with `up_to`, in all
    layers up to l.
    """
    if lab.config.protocol.record_at is not RecordAt.last_prompt_token:
        raise ConfigError("metric=[graft] needs protocol.record_at=last_prompt_token, where the outputs are put in")
    plan = replace(lab.plan("graft"), optional=frozenset({"next_token_log_probs"}))
    advance = lab.progress.stage("graft", lab.model.layers)
    distances = []
    for layer in range(lab.model.layers):
        layers = range(layer + 1) if up_to else [layer]
        with _grafted(lab, donor.attention_output, list(layers)):
            recording = record(lab.model, lab.questions(), lab.prompts.bos, plan)
        pair = (cast(Tensor, each.next_token_log_probs) for each in (recording, icl))
        distances.append(total_variation(*pair))
        advance(1)
    return torch.stack(distances, dim=1)


def _grafted(
    lab: Laboratory, outputs: Float[Tensor, "example layer d_model"], layers: list[int]
) -> AbstractContextManager[None]:
    def intervention(token_ids: Tensor, state: AttentionPass) -> AbstractContextManager[None]:
        ends = state.query_ends()
        chosen, questions = own_tokens(state, token_ids.shape[1], ends - 1, ends), list(state.questions)
        return rewriting(
            lab.model, Site.attention_output, layers, chosen, lambda layer, _rows: outputs[questions, layer]
        )

    return intervening(lab.model, intervention)
