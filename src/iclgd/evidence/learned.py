"""What a mechanism leaves: its trace, its recording, attention queries at the demonstrations, changes of weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.common.records import PromptSet, Recording, Trace
from iclgd.common.seeding import torch_stream
from iclgd.config import ConfigError
from iclgd.config.enumerations import CacheMode
from iclgd.config.variants import STATIC, variant
from iclgd.evidence.laboratory import Laboratory, undefined
from iclgd.mechanisms.bench import AfterStep, Bench
from iclgd.mechanisms.patches import static_changes
from iclgd.mechanisms.registry import resolve_mechanism
from iclgd.models.feed_forward import weight_of
from iclgd.models.interventions import unchanged_afterwards
from iclgd.models.recorder import token_queries
from iclgd.tasks.encoding import encode

log = logging.getLogger(__name__)


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
    prompts, name = prompts or lab.prompts, lab.config.finetune.name
    mechanism, before = resolve_mechanism(lab.config.finetune.mechanism), weights_now(lab)
    learned = None
    with unchanged_afterwards(lab.model, name), mechanism(_bench(lab, settings, setting, prompts, after)) as trace:
        if not isinstance(trace, Trace):
            raise ConfigError(f"finetune={name} yields {trace!r} and not a trace: yield bench.no_steps()")
        diverged_at = trace.diverged_at
        if diverged_at is None:
            recording = lab.record(setting, prompts.bos, lab.plan(setting))
            if not recording.attention_output.isfinite().all():  # the last step's harm shows only now
                diverged_at = len(trace.losses)
            else:
                learned = Learned(trace, recording, training_queries(lab), changes_since(lab, before))
    if learned is not None:
        return learned
    log.warning("%s diverged at step %d: its scores are undefined", name, diverged_at)
    queries = training_queries(lab)
    return Learned(
        replace(trace, diverged_at=diverged_at),
        undefined(lab.record(setting, prompts.bos, lab.plan(setting))),
        None if queries is None else torch.full_like(queries, torch.nan),
    )


def _bench(lab: Laboratory, settings: Settings, setting: str, prompts: PromptSet, after: AfterStep) -> Bench:
    """What the mechanism works with."""

    def start_steps(total: int) -> AfterStep:
        advance = lab.progress.stage(f"finetune {lab.config.finetune.name}", total)

        def step(done: int) -> None:
            advance(1)
            after(done)

        return step

    return Bench(
        model=lab.model,
        prompts=prompts,
        config=lab.config,
        icl=lambda: settings.icl if prompts is lab.prompts else lab.untouched("icl", prompts),
        start_steps=start_steps,
        measure_ranks="trace.update_ranks" in lab.wanted,
        # A planted truth has noise of its own: noise in common with the candidate's would pass for likeness.
        noise="update noise" if setting == "ft" else f"update noise of {setting}",
    )


def learned_once(lab: Laboratory, settings: Settings) -> Learned:
    """As `learn`, or what the command's last call left, where nothing that it depends on has changed."""
    if lab.config.runtime.cache is CacheMode.off:
        return learn(lab, settings)
    facts_wanted = sorted({"trace.update_ranks", "training_query_vectors", "trained_changes"} & lab.wanted)
    key = learning_key(lab, "ft", lab.prompts, wanted=facts_wanted)
    last = lab.prepared.session.learned
    if key not in last:
        last.clear()
        last[key] = learn(lab, settings)
    return last[key]


def learning_key(lab: Laboratory, setting: str, prompts: PromptSet, **of: Any) -> str:
    """The key of what a variant leaves; `of` says what else it depends on."""
    shown = (prompts.training_items(), prompts.calibration, prompts.demonstrations)
    items = [[[item.token_ids, item.label_length, item.label, item.options] for item in group] for group in shown]
    return lab.recording_key(setting, prompts.bos, learned=True, in_context=prompts.context(), shown=items, **of)


def compared(lab: Laboratory, settings: Settings) -> Recording:
    """The recording of the variant that `metric.compare_with` names."""
    config, drawn = variant(lab.config, lab.config.metric.compare_with), lab.prepared.compared
    prompts = replace(lab.prompts, training=None)  # the run's own control is not this variant's
    if drawn is not None and drawn is not lab.prepared.drawn:
        own = encode(drawn, config, lab.model.tokenizer, lab.model.window)
        prompts = replace(prompts, training=own.training, calibration=own.calibration)
    return learn(replace(lab, config=config), settings, "other", prompts).recording


def training_queries(lab: Laboratory) -> Float[Tensor, "context layer heads_x_head_dim"] | None:
    """The model's attention queries at every demonstration token, as it reads each demonstration alone."""
    if "training_query_vectors" not in lab.wanted:
        return None
    prompts, shape = lab.prompts, lab.model.anatomy.shape
    aligned = torch.full((len(prompts.context()), shape.layers, shape.heads * shape.head_dim), torch.nan)
    sequences = [prompts.demonstrations[index].token_ids for index in prompts.in_context]
    queries = token_queries(lab.model, sequences, prompts.bos)
    for (start, end), vectors in zip(prompts.context_spans(), queries, strict=True):
        aligned[start:end] = vectors
    return aligned


Changes = tuple[tuple[Float[Tensor, "_ _"], ...], ...]  # [d_out, d_in] by layer, then by matrix


def weights_now(lab: Laboratory) -> Changes | None:
    """Copies of the feed-forward matrices, if finetuning's changes of them are wanted."""
    return _matrices(lab, torch.clone) if "trained_changes" in lab.wanted else None


def changes_since(lab: Laboratory, before: Changes | None) -> Changes | None:
    """How far the matrices have moved since."""
    if before is None:
        return None
    old = iter([matrix for layer in before for matrix in layer])
    return _matrices(lab, lambda weight: (weight - next(old)).float().cpu())


def context_changes(lab: Laboratory) -> Changes:
    """What the context amounts to in weights: the static patch's changes (conf/finetune/static_patch.yaml).

    Layers that a run's own static patch leaves out (`finetune.layers`) have no change.
    """
    own = lab.config.finetune.mechanism == STATIC
    config = lab.config if own else variant(lab.config, STATIC)
    by_name = static_changes(lab.model, lab.prompts, config)
    known = iter([(layer, name) for layer in range(lab.model.layers) for name in _names(lab)])
    return _matrices(lab, lambda weight: by_name.get(next(known), torch.zeros_like(weight)).float().cpu())


def random_changes(lab: Laboratory) -> Changes:
    """Gaussian matrices of the same shapes: the floor."""
    stream = torch_stream("random changes of weights", lab.config.seed)
    return _matrices(lab, lambda weight: torch.randn(weight.shape, generator=stream))


def undefined_changes(lab: Laboratory) -> Changes:
    """Matrices of the same shapes without a direction."""
    return _matrices(lab, lambda weight: torch.zeros(weight.shape))


def _names(lab: Laboratory) -> tuple[str, ...]:
    parts = lab.model.anatomy.feed_forward
    return (*parts.reads, *([parts.adds] if parts.adds else []))


def _matrices(lab: Laboratory, take: Callable[[Tensor], Tensor]) -> Changes:
    part, names = lab.model.anatomy.part, _names(lab)
    layers = range(lab.model.layers)
    return tuple(tuple(take(weight_of(part(layer, name)).detach()) for name in names) for layer in layers)
