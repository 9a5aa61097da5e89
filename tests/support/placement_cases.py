"""What a model gives wherever it lies: recordings without and with context, and after each kind of finetuning."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import dispatch_model
from torch import Tensor

from iclgd.common.records import OPTIONAL_RECORDS, Item
from iclgd.mechanisms.bench import Bench
from iclgd.mechanisms.distillation import activation_match
from iclgd.models.anatomy import LanguageModel
from iclgd.models.discovery import discover
from iclgd.models.loading import assemble
from iclgd.models.placement import resident
from iclgd.models.recorder import Question, RecordPlan, record, token_queries
from learning_cases import finetuned, learning, prompts
from pretend_devices import Placed
from tiny_models import tiny_network

FAMILIES = ("llama", "mistral", "phi3", "gpt_neox", "bloom", "gemma2", "xglm", "phi")  # GQA, windows, fused, ALiBi
VARIANTS = ("gd", "lcgd", "block")
QUESTIONS = [Question((14, 26, 38), ((5,), (6, 7))), Question((9, 8, 7, 6, 5), ((5,), (6, 7)))]
PLAN = RecordPlan(optional=frozenset(OPTIONAL_RECORDS))


def variant(name: str):
    return learning("finetune.trainable=all", objective="gd") if name == "block" else learning(objective=name)


def everything(model: LanguageModel, variants: tuple[str, ...]) -> dict[str, Tensor]:
    """Recordings and traces of every kind, by name."""
    cases, before = prompts(), weights(model)
    asked = replace(cases, queries=tuple(Item("", question.token_ids, 0) for question in QUESTIONS))
    recordings = {
        "zsl": record(model, QUESTIONS, cases.bos, PLAN),
        "icl": record(model, QUESTIONS, cases.context(), PLAN),
    }
    facts = {"token_queries": token_queries(model, [(3, 4, 5)], cases.bos)[0]}
    for name in variants:
        with finetuned(model, cases, variant(name)) as trace:
            recordings[name] = record(model, QUESTIONS, cases.bos, PLAN)
        facts |= {f"{name}.losses": trace.losses, f"{name}.gradient_norms": trace.gradient_norms}
    # Plain SGD: Adam would turn the rounding of a key bias's gradient, which is zero, into steps.
    ceiling = learning("finetune.optimizer=sgd", "finetune.epochs=4", objective="activation_match", lr=0.1)
    with activation_match(Bench(model, asked, ceiling, icl=lambda: recordings["icl"])):
        recordings["activation_match"] = record(model, QUESTIONS, cases.bos, PLAN)
    for name, recording in recordings.items():
        facts |= {f"{name}.{field}": tensor for field, tensor in recording.tensors().items()}
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
