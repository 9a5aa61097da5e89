"""Grafts: attention's outputs of one setting put into the model without context, layer by layer."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.common.records import Recording
from iclgd.config import ConfigError
from iclgd.config.enumerations import RecordAt, Site
from iclgd.evidence.laboratory import Laboratory
from iclgd.metrics.distributions import total_variation
from iclgd.models.attention_pass import AttentionPass
from iclgd.models.interventions import intervening, own_tokens, rewriting
from iclgd.models.recorder import record


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
            found = record(lab.model, lab.questions(), lab.prompts.bos, plan)
        pair = (cast(Tensor, each.next_token_log_probs) for each in (found, icl))
        distances.append(total_variation(*pair))
        advance(1)
    return torch.stack(distances, dim=1)


def _grafted(
    lab: Laboratory, outputs: Float[Tensor, "example layer d_model"], layers: list[int]
) -> AbstractContextManager[None]:
    def intervention(token_ids: Tensor, now: AttentionPass) -> AbstractContextManager[None]:
        ends = now.query_ends()
        chosen, questions = own_tokens(now, token_ids.shape[1], ends - 1, ends), list(now.questions)
        return rewriting(
            lab.model, Site.attention_output, layers, chosen, lambda layer, _rows: outputs[questions, layer]
        )

    return intervening(lab.model, intervention)
