"""A bench on tiny models, and recordings of what a mechanism does there."""

from dataclasses import replace

import torch
from torch import nn

from iclgd.common.records import Item
from iclgd.mechanisms.bench import Bench
from iclgd.mechanisms.registry import resolve_mechanism
from iclgd.models.interventions import unchanged_afterwards
from iclgd.models.recorder import Question, RecordPlan, record
from learning_cases import learning, prompts
from tiny_models import tiny_model

OPTIONS = ((5,), (6, 7), (6, 8, 9))  # options of several tokens: changes act at the label tokens too
FAMILIES = ["llama", "gpt2", "gemma2", "gpt_neox", "xglm", "bloom", "gptj"]
PLAN = RecordPlan(optional=frozenset({"block_output", "next_token_log_probs"}), bos=1, batch_tokens=40)


def shown(texts=((11, 23, 35, 47, 59), (36, 48, 60, 72, 84, 9, 21), (13, 25, 37, 49)), calibration=(), queries=None):
    """Demonstrations that end with a label of one token, and queries of unequal lengths."""
    case = prompts(texts)
    items = queries or ((14, 26, 38), (15, 27, 39, 51, 63), (16,))
    return replace(
        case,
        label_token_ids=OPTIONS,
        queries=tuple(Item("", tokens, 0) for tokens in items),
        calibration=tuple(Item("", tokens, 0) for tokens in calibration),
    )


def bench(model, variant, *overrides, case=None):
    case = case or shown()
    run = learning(*overrides, objective=variant, lr=1e-3)
    return Bench(model, case, run, icl=lambda: recording(model, case, case.context()))


def recording(model, case, context=None):
    questions = [Question(query.token_ids, case.options(query)) for query in case.queries]
    return record(model, questions, case.bos if context is None else context, PLAN)


def acted(given):
    """The recording without context while the mechanism acts, and its trace."""
    with (
        unchanged_afterwards(given.model, "it"),
        resolve_mechanism(given.options.mechanism)(given) as trace,
    ):
        return recording(given.model, given.prompts), trace


def assert_alike(found, wanted, tolerance=1e-5, fields=("attention_output", "block_output", "label_scores")):
    for name in (*fields, "next_token_log_probs"):
        have, want = getattr(found, name), getattr(wanted, name)
        torch.testing.assert_close(have, want, rtol=0, atol=tolerance * want.nan_to_num().abs().max().item())


def without_positions(layers):
    """GPT-2 in float64 without position embeddings."""
    model = tiny_model("gpt2", dtype=torch.float64, n_layer=layers)
    nn.init.zeros_(model.network.transformer.wpe.weight)
    return model


ONE_TOKEN = [(token,) for token in range(10, 90)]
