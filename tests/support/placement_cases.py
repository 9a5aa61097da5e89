"""What a model gives wherever it lies: recordings without and with context, and after each kind of finetuning."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import dispatch_model
from torch import Tensor

from iclgd.common.records import OPTIONAL_RECORDS, Item
from iclgd.mechanisms.bench import Bench
from iclgd.mechanisms.distillation import activation_match
from iclgd.metrics.updates import sim_aou
from iclgd.models.anatomy import LanguageModel
from iclgd.models.discovery import discover
from iclgd.models.loading import assemble
from iclgd.models.placement import resident
from iclgd.models.recorder import Question, RecordPlan, record, token_queries
from learning_cases import finetuned, learning, prompts
from pretend_devices import Placed
from tiny_models import tiny_network

FAMILIES = ("llama", "mistral", "phi3", "gpt_neox", "bloom", "gemma2", "xglm", "phi")  # GQA, windows, fused, ALiBi
VARIANTS = {
    "gd": learning(objective="gd"),
    "lcgd": learning(objective="lcgd"),
    "random": learning("finetune.norm_of=gd", objective="random_direction", lr=1.0),
    "low_rank": learning("finetune.rank=2", objective="gd", lr=1.0),
    "block": learning("finetune.trainable=all", objective="gd"),
}
QUESTIONS = [Question((14, 26, 38), ((5,), (6, 7))), Question((9, 8, 7, 6, 5), ((5,), (6, 7)))]
PLAN = RecordPlan(optional=frozenset(OPTIONAL_RECORDS))


def everything(model: LanguageModel, variants: tuple[str, ...]) -> dict[str, Tensor]:
    """Recordings and scores of every kind, by name."""
    cases, before = prompts(), weights(model)
    asked = replace(cases, queries=tuple(Item("", question.token_ids, 0) for question in QUESTIONS))
    plans = {
        name: record(model, QUESTIONS, cases.bos if name == "zsl" else cases.context(), PLAN) for name in ("zsl", "icl")
    }
    facts = {}
    for name in variants:
        with finetuned(model, cases, VARIANTS[name]) as trace:
            plans[name] = record(model, QUESTIONS, cases.bos, PLAN)
        facts |= {
            f"{name}.loss": trace.losses,
            f"{name}.norms": trace.gradient_norms,
        }
    # Plain SGD: Adam would turn the rounding of a key bias's gradient, which is zero, into steps.
    ceiling = learning("finetune.optimizer=sgd", "finetune.epochs=4", objective="activation_match", lr=0.1)
    with activation_match(Bench(model, asked, ceiling, icl=lambda: plans["icl"])) as trace:
        plans["activation_match"] = record(model, QUESTIONS, cases.bos, PLAN)
    facts["activation_match.loss"] = trace.losses
    facts["token_queries"] = token_queries(model, [(3, 4, 5)], cases.bos)[0]
    for name, recording in plans.items():
        for field in type(recording).__dataclass_fields__:
            if getattr(recording, field) is not None:
                facts[f"{name}.{field}"] = getattr(recording, field)
        if name not in ("zsl", "icl"):
            outputs = [plans[key].attention_output for key in ("icl", name, "zsl")]
            facts[f"{name}.sim_aou"] = sim_aou(*outputs)
    after = weights(model)
    assert all(torch.equal(before[key], after[key]) for key in before), "the weights are not what they were"
    return facts


def weights(model: LanguageModel) -> dict[str, Tensor]:
    """All of every parameter, wherever it lies."""
    kept = {}
    for name, module in model.network.named_modules():
        with resident([module] if not list(module.children()) else []):
            for key, parameter in module.named_parameters(recurse=False):
                kept[f"{name}.{key}"] = parameter.detach().clone()
    return kept


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference between two, relative to each tensor's largest value (at least 1), and where it is."""
    assert one.keys() == other.keys()
    worst = (0.0, "")
    for name, expected in one.items():
        actual = other[name]
        assert actual.shape == expected.shape and torch.equal(actual.isnan(), expected.isnan()), name
        scale = max(1.0, expected.nan_to_num().abs().max().item())
        worst = max(worst, ((actual - expected).nan_to_num().abs().max().item() / scale, name))
    return worst


def dealt_out(network, devices):
    """A device for each module: blocks in turn, embeddings first, the rest last, tied weights together."""
    (anatomy, _), names = discover(network), {module: name for name, module in network.named_modules()}
    blocks = [names[block] for block in anatomy.blocks]
    device_map = {name: devices[i * len(devices) // len(blocks)] for i, name in enumerate(blocks)}
    tied = bool(network.config.tie_word_embeddings)
    last = {*anatomy.exit.modules, *(() if tied else (anatomy.unembedding,))}
    for name, module in network.named_modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own and not any(f"{name}.".startswith(f"{block}.") for block in blocks):
            device_map[name] = devices[-1] if module in last else devices[0]
    return device_map


def placed_model(family, folder, *devices):
    network = tiny_network(family)
    return assemble(dispatch_model(network, dealt_out(network, devices), offload_dir=str(folder)), None)


def plain(facts):
    return {name: tensor.inner if isinstance(tensor, Placed) else tensor for name, tensor in facts.items()}
