"""What a mechanism leaves: its trace, its recording, attention queries at the demonstrations, changes of weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
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
from iclgd.mechanisms.bench import Bench
from iclgd.mechanisms.patches import static_changes
from iclgd.mechanisms.registry import resolve_mechanism
from iclgd.models.feed_forward import weight_of
from iclgd.models.interventions import unchanged_afterwards
from iclgd.models.recorder import token_queries
from iclgd.tasks.encoding import encode

log = logging.getLogger(__name__)


# A tensor [d_out, d_in] for each feed-forward matrix, by layer, then by matrix.
Changes = tuple[tuple[Float[Tensor, "_ _"], ...], ...]
_Matrices = dict[tuple[int, str], Tensor]  # by layer and name


@dataclass(frozen=True)
class Learned:
    """What finetuning left: its trace, the ft recording, and, if wanted, attention queries and changes of weights."""

    trace: Trace  # what happened
    recording: Recording  # of the finetuned model
    # attention queries at the demonstrations
    training_queries: Float[Tensor, "context layer heads_x_head_dim"] | None = None
    changes: Changes | None = None  # of the feed-forward weights


def learn(lab: Laboratory, setting: str = "ft", prompts: PromptSet | None = None) -> Learned:
    """Let the mechanism of `lab.config.finetune` act, record, and undo what it did.

    The recording is called `setting`: scores that name it say what is recorded.
    """
    prompts, name = prompts or lab.prompts, lab.config.finetune.name
    bench = Bench(
        model=lab.model,
        prompts=prompts,
        config=lab.config,
        icl=lambda: lab.untouched("icl", prompts),
        start_steps=partial(lab.progress.stage, f"finetune {name}"),
        # A planted truth has noise of its own: noise in common with the candidate's would pass for likeness.
        noise="update noise" if setting == "ft" else f"update noise of {setting}",
    )
    mechanism, before = resolve_mechanism(lab.config.finetune.mechanism), {}
    if "trained_changes" in lab.wanted:
        before = {key: weight.clone() for key, weight in _feed_forward(lab).items()}
    with unchanged_afterwards(lab.model, name), mechanism(bench) as trace:
        if not isinstance(trace, Trace):
            raise ConfigError(f"finetune={name} yields {trace!r} and not a trace: yield bench.no_steps()")
        diverged_at = trace.diverged_at
        if diverged_at is None:
            recording = lab.record(setting, prompts.bos, lab.plan(setting))
            if recording.attention_output.isfinite().all():
                after = _feed_forward(lab)
                changes = {key: after[key] - weight for key, weight in before.items()}
                return Learned(trace, recording, training_queries(lab), _by_layer(lab, changes) if before else None)
            diverged_at = len(trace.losses)  # the last step's harm shows only now
    log.warning("%s diverged at step %d: its scores are undefined", name, diverged_at)
    queries = training_queries(lab)
    return Learned(
        replace(trace, diverged_at=diverged_at),
        undefined(lab.record(setting, prompts.bos, lab.plan(setting))),
        None if queries is None else torch.full_like(queries, torch.nan),
    )


def learned_once(lab: Laboratory) -> Learned:
    """As `learn`, or what the command's last call left, where nothing that it depends on has changed."""
    if lab.config.runtime.cache is CacheMode.off:
        return learn(lab)
    facts_wanted = sorted({"training_query_vectors", "trained_changes"} & lab.wanted)
    key = learning_key(lab, "ft", lab.prompts, wanted=facts_wanted)
    last = lab.prepared.session.learned
    if key not in last:
        last.clear()
        last[key] = learn(lab)
    return last[key]


def learning_key(lab: Laboratory, setting: str, prompts: PromptSet, **of: Any) -> str:
    """The key of what a variant leaves; `of` says what else it depends on."""
    shown = (prompts.training_items(), prompts.calibration, prompts.demonstrations)
    items = [[[item.token_ids, item.label_length, item.label, item.options] for item in group] for group in shown]
    return lab.recording_key(setting, prompts.bos, learned=True, in_context=prompts.context(), shown=items, **of)


def compared(lab: Laboratory) -> Recording:
    """The recording of the variant that `metric.compare_with` names."""
    config, drawn = variant(lab.config, lab.config.metric.compare_with), lab.prepared.compared
    prompts = replace(lab.prompts, training=None)  # the run's own control is not this variant's
    if drawn is not None and drawn is not lab.prepared.drawn:
        own = encode(drawn, config, lab.model.tokenizer, lab.model.window)
        prompts = replace(prompts, training=own.training, calibration=own.calibration)
    return learn(replace(lab, config=config), "other", prompts).recording


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


def context_changes(lab: Laboratory) -> Changes:
    """What the context amounts to in weights: the static patch's changes (conf/finetune/static_patch.yaml).

    Layers that a run's own static patch leaves out (`finetune.layers`) have no change.
    """
    own = lab.config.finetune.mechanism == STATIC
    changes = static_changes(lab.model, lab.prompts, lab.config if own else variant(lab.config, STATIC))
    missing = {key: torch.zeros_like(weight) for key, weight in _feed_forward(lab).items() if key not in changes}
    return _by_layer(lab, changes | missing)


def random_changes(lab: Laboratory) -> Changes:
    """Gaussian matrices of the same shapes: the floor."""
    stream = torch_stream("random changes of weights", lab.config.seed)
    shapes = {key: weight.shape for key, weight in _feed_forward(lab).items()}
    return _by_layer(lab, {key: torch.randn(shape, generator=stream) for key, shape in shapes.items()})


def undefined_changes(lab: Laboratory) -> Changes:
    """Matrices of the same shapes without a direction."""
    return _by_layer(lab, {key: torch.zeros(weight.shape) for key, weight in _feed_forward(lab).items()})


def _feed_forward(lab: Laboratory) -> _Matrices:
    """The feed-forward matrices as they are now."""
    return {
        (layer, name): weight_of(lab.model.anatomy.part(layer, name)).detach()
        for layer in range(lab.model.layers)
        for name in _names(lab)
    }


def _names(lab: Laboratory) -> tuple[str, ...]:
    parts = lab.model.anatomy.feed_forward
    return (*parts.reads, *([parts.adds] if parts.adds else []))


def _by_layer(lab: Laboratory, matrices: _Matrices) -> Changes:
    layers, names = range(lab.model.layers), _names(lab)
    return tuple(tuple(matrices[layer, name].float().cpu() for name in names) for layer in layers)
