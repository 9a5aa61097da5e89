"""What a finetuning variant leaves: its trace, its recording, and attention queries at the demonstrations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.common.records import PromptSet, Recording, Trace
from iclgd.config import ConfigError
from iclgd.config.enumerations import CacheMode, Procedure, RecordAt, TrainingData
from iclgd.config.variants import variant
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.weights import Changes, changes_since, weights_now
from iclgd.mechanisms import ExactPatch, activation_matched, finetuned, statically_patched
from iclgd.models.recorder import token_queries
from iclgd.tasks import encode

log = logging.getLogger(__name__)

AfterStep = Callable[[int], None]


@dataclass(frozen=True)
class Settings:
    """The recordings of the model as it was loaded, without and with context."""

    zsl: Recording
    icl: Recording


@dataclass(frozen=True)
class Learned:
    """What finetuning left: its trace, the ft recording, and, if wanted, attention queries and changes of weights."""

    trace: Trace  # what happened
    recording: Recording  # of the finetuned model
    # attention queries at the demonstrations
    training_queries: Float[Tensor, "context layer heads_x_head_dim"] | None = None
    changes: Changes | None = None  # of the feed-forward weights


def learn(
    lab: Laboratory,
    settings: Settings,
    setting: str = "ft",
    prompts: PromptSet | None = None,
    after: AfterStep = lambda _: None,
) -> Learned:
    """Finetune as `lab.config.finetune` says, record, put the weights back.

    The recording is called `setting`: scores that name it say what is recorded. `after` is called with the
    number of steps done, after each.
    """
    prompts, finetune = prompts or lab.prompts, lab.config.finetune
    if finetune.procedure is Procedure.exact_patch:  # changes of weights that belong to a token come with its pass
        patch = ExactPatch(lab.model, prompts.context(), lab.config)
        recording = lab.record(setting, prompts.bos, lab.plan(setting), around=patch)
        return Learned(patch.trace(), recording, training_queries(lab))
    before = weights_now(lab)
    # A planted truth has noise of its own: noise in common with the candidate's would pass for likeness.
    noise = "update noise" if setting == "ft" else f"update noise of {setting}"
    with _learning(lab, prompts, settings.icl, after, noise) as trace:
        diverged_at, recording = trace.diverged_at, settings.icl
        if diverged_at is None and finetune.procedure is not Procedure.replay:
            recording = lab.record(setting, prompts.bos, lab.plan(setting))
            if not recording.attention_output.isfinite().all():  # the last step's harm shows only now
                diverged_at = len(trace.losses)
        if diverged_at is None:
            return Learned(trace, recording, training_queries(lab), changes_since(lab, before))
    log.warning("%s diverged at step %d: its scores are undefined", finetune.name, diverged_at)
    undefined = lab.undefined(settings.zsl, setting)
    return Learned(replace(trace, diverged_at=diverged_at), undefined, _undefined_queries(lab))


_LAST: dict[str, Learned] = {}  # of this process: a sweep asks for the same finetuning against one truth after another


def learned_once(lab: Laboratory, settings: Settings) -> Learned:
    """As `learn`, but what the last call left is given again where nothing that it depends on has changed."""
    if lab.config.runtime.cache is CacheMode.off:
        return learn(lab, settings)
    facts_wanted = sorted({"trace.update_ranks", "training_query_vectors", "trained_changes"} & lab.wanted)
    key = learning_key(lab, "ft", lab.prompts, wanted=facts_wanted)
    if key not in _LAST:
        _LAST.clear()
        _LAST[key] = learn(lab, settings)
    return _LAST[key]


def learning_key(lab: Laboratory, setting: str, prompts: PromptSet, **of: Any) -> str:
    """The key of what a variant leaves; `of` says what else it depends on."""
    shown = (prompts.training_items(), prompts.calibration)
    items = [[[item.token_ids, item.label_length] for item in group] for group in shown]
    return lab.recording_key(setting, prompts.bos, learned=True, in_context=prompts.context(), shown=items, **of)


def compared(lab: Laboratory, settings: Settings) -> Recording:
    """The recording of the variant that `metric.compare_with` names."""
    config, training = variant(lab.config, lab.config.metric.compare_with), None
    if config.finetune.data is not TrainingData.demonstrations:
        assert lab.prepared.compared is not None
        training = encode(lab.prepared.compared, config, lab.model.tokenizer, lab.model.window).training
    return learn(replace(lab, config=config), settings, "other", replace(lab.prompts, training=training)).recording


@contextmanager
def _learning(lab: Laboratory, prompts: PromptSet, icl: Recording, after: AfterStep, noise: str) -> Iterator[Trace]:
    """Within the block the model is finetuned."""
    config, ranks = lab.config, "trace.update_ranks" in lab.wanted
    procedure, finetune = config.finetune.procedure, config.finetune
    if procedure in (Procedure.none, Procedure.replay):
        yield no_steps(lab.model.layers)
    elif procedure is Procedure.activation_match:
        if config.protocol.record_at is not RecordAt.last_prompt_token:
            raise ConfigError("finetune=activation_match needs protocol.record_at=last_prompt_token")
        with activation_matched(lab.model, prompts, icl.attention_output, config, after, ranks) as trace:
            yield trace
    elif procedure is Procedure.static_patch:
        with statically_patched(lab.model, prompts, config, ranks) as trace:
            yield trace
    else:
        advance = lab.progress.stage(f"finetune {finetune.name}", len(prompts.training_items()) * finetune.epochs)

        def step(done: int) -> None:
            advance(1)
            after(done)

        with finetuned(lab.model, prompts, config, step, ranks, noise) as trace:
            yield trace


def training_queries(lab: Laboratory) -> Float[Tensor, "context layer heads_x_head_dim"] | None:
    """The model's attention queries at every demonstration token, as it reads each demonstration alone."""
    aligned, prompts = _undefined_queries(lab), lab.prompts
    if aligned is not None:
        sequences = [prompts.demonstrations[index].token_ids for index in prompts.in_context]
        queries = token_queries(lab.model, sequences, prompts.bos)
        for (start, end), vectors in zip(prompts.context_spans(), queries, strict=True):
            aligned[start:end] = vectors
    return aligned


def _undefined_queries(lab: Laboratory) -> Tensor | None:
    if "training_query_vectors" not in lab.wanted:
        return None
    shape = lab.model.anatomy.shape
    return torch.full((len(lab.prompts.context()), shape.layers, shape.heads * shape.head_dim), float("nan"))


def no_steps(layers: int) -> Trace:
    """The trace of a variant that takes no step."""
    return Trace(torch.empty(0), torch.empty(0, layers), torch.zeros(layers), torch.zeros(layers))
