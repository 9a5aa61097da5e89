"""What a finetuning variant leaves: its trace, its recording, and attention queries at the demonstrations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from omegaconf import OmegaConf
from torch import Tensor

from iclgd.choices import Procedure, RecordAt, TrainingData
from iclgd.config import Config, ConfigError, as_dict, typed
from iclgd.evidence.laboratory import Laboratory
from iclgd.learning import activation_matched, finetuned
from iclgd.models import token_queries
from iclgd.paths import config_folder
from iclgd.records import PromptSet, Recording, Trace
from iclgd.tasks import draw, encode

log = logging.getLogger(__name__)

AfterStep = Callable[[int], None]


@dataclass(frozen=True)
class Settings:
    """The recordings of the model as it was loaded, without and with context."""

    zsl: Recording
    icl: Recording


@dataclass(frozen=True)
class Learned:
    """What finetuning left: its trace, the ft recording, and attention queries at the demonstrations if wanted."""

    trace: Trace
    recording: Recording
    training_queries: Float[Tensor, "context layer heads_x_head_dim"] | None = None


def learn(
    lab: Laboratory,
    settings: Settings,
    setting: str = "ft",
    prompts: PromptSet | None = None,
    after: AfterStep = lambda _: None,
) -> Learned:
    """Finetune as `lab.config.finetune` says, record, put the weights back.

    Args:
        lab: the model and its prompts.
        settings: recordings of the model as it was loaded.
        setting: what the recording will be called; scores that name it say what is recorded.
        prompts: the demonstrations, if others than the laboratory's.
        after: called with the number of steps done, after each.
    """
    prompts, finetune = prompts or lab.prompts, lab.config.finetune
    with _learning(lab, prompts, settings.icl, after) as trace:
        diverged_at, recording = trace.diverged_at, settings.icl
        if diverged_at is None and finetune.procedure is not Procedure.replay:
            recording = lab.record(setting, prompts.bos, lab.plan(setting))
            if not recording.attention_output.isfinite().all():  # the last step's harm shows only now
                diverged_at = len(trace.losses)
        if diverged_at is None:
            return Learned(trace, recording, training_queries(lab))
    log.warning("%s diverged at step %d: its scores are undefined", finetune.name, diverged_at)
    undefined = lab.undefined(settings.zsl, setting)
    return Learned(replace(trace, diverged_at=diverged_at), undefined, _undefined_queries(lab))


def compared(lab: Laboratory, settings: Settings) -> Recording:
    """The recording of the variant that `metric.compare_with` names.

    Raises:
        ConfigError: it names none.
    """
    config, training = variant(lab.config, lab.config.metric.compare_with), None
    if config.finetune.data is not TrainingData.demonstrations:
        training = encode(draw(config), config, lab.model.tokenizer, lab.model.window).training
    return learn(replace(lab, config=config), settings, "other", replace(lab.prompts, training=training)).recording


def variant(config: Config, name: str | None) -> Config:
    """The same run with another finetuning variant, as its yaml says.

    Raises:
        ConfigError: there is no such yaml.
    """
    path = config_folder() / "finetune" / f"{name}.yaml"
    if name is None or not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise ConfigError(
            f"metric.compare_with={name} is needed by a score that compares variants: name one of {known}"
        )
    return typed(OmegaConf.create({**as_dict(config), "finetune": OmegaConf.load(path)}))


@contextmanager
def _learning(lab: Laboratory, prompts: PromptSet, icl: Recording, after: AfterStep) -> Iterator[Trace]:
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
    else:
        advance = lab.progress.stage(f"finetune {finetune.name}", len(prompts.training_items()) * finetune.epochs)

        def step(done: int) -> None:
            advance(1)
            after(done)

        with finetuned(lab.model, prompts, config, step, ranks) as trace:
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
