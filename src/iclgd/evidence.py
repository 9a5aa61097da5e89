"""Which recordings does a run need, and how is each one had? Only what some score names is recorded."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from omegaconf import OmegaConf
from torch import Tensor

from iclgd.choices import Procedure, RandomUpdate, RecordAt, TrainingData
from iclgd.config import Config, ConfigError, as_dict, typed
from iclgd.learning import activation_matched, finetuned
from iclgd.models import LanguageModel, Question, RecordPlan, record, token_queries
from iclgd.paths import config_folder
from iclgd.records import OPTIONAL_RECORDS, Evidence, PromptSet, Recording, Trace
from iclgd.runs.cache import recordings_cache
from iclgd.runs.environment import made_with
from iclgd.runs.progress import Progress
from iclgd.seeding import permuted, torch_stream
from iclgd.tasks import draw, encode

log = logging.getLogger(__name__)

AfterStep = Callable[[int], None]


@dataclass(frozen=True)
class Learned:
    """What finetuning left: its trace, the ft recording, and attention queries at the demonstrations if wanted."""

    trace: Trace
    recording: Recording
    training_queries: Float[Tensor, "context layer heads_x_head_dim"] | None = None


class Laboratory:
    """Records one model on one set of prompts.

    Args:
        model: the model.
        prompts: demonstrations and queries.
        config: the run.
        wanted: the input paths that scores name (`metrics.required_inputs`).
        progress: where stages are shown.
    """

    def __init__(
        self, model: LanguageModel, prompts: PromptSet, config: Config, wanted: set[str], progress: Progress
    ) -> None:
        self.model, self.prompts, self.config, self.wanted, self.progress = model, prompts, config, wanted, progress
        self.questions = [Question(query.token_ids, prompts.options(query)) for query in prompts.queries]
        self.cache = recordings_cache(config.runtime)

    def plan(self, setting: str) -> RecordPlan:
        """How a setting is recorded."""
        runtime, protocol = self.config.runtime, self.config.protocol
        return RecordPlan(
            optional=frozenset(name for name in OPTIONAL_RECORDS if f"{setting}.{name}" in self.wanted),
            at_first_label_token=protocol.record_at is RecordAt.first_label_token,
            batch_tokens=runtime.batch_tokens,
            padding=runtime.padding,
            mean_label=self.config.task.length_normalised,
        )

    def untouched(self, setting: str, prompts: PromptSet | None = None) -> Recording:
        """A recording of the model as it was loaded: `zsl`, or `icl` with the prompts' or another order."""
        prompts = prompts or self.prompts
        context = prompts.bos if setting == "zsl" else prompts.context()
        plan = self.plan(setting)
        key = {
            "model": dict(self.model.identity),
            "context": context,
            "questions": [[question.token_ids, question.options] for question in self.questions],
            "optional": sorted(plan.optional),
            "record_at": str(self.config.protocol.record_at),
            "mean_label": plan.mean_label,
            # what may round otherwise: an ft recording beside it is made here and now
            "made_with": made_with(str(self.model.device)),
            "batches": [plan.batch_tokens, str(plan.padding), torch.get_num_threads()],
        }
        recording, reused = self.cache.get_or_compute(key, lambda: self._record(setting, context, plan))
        log.info("%s: %s", setting, "reused a recording made before" if reused else "recorded")
        return recording

    def _record(self, stage: str, context: tuple[int, ...], plan: RecordPlan) -> Recording:
        return record(self.model, self.questions, context, plan, self.progress.stage(stage, len(self.questions)))

    @contextmanager
    def learning(self, config: Config, prompts: PromptSet, icl: Recording, after: AfterStep) -> Iterator[Trace]:
        """Within the block the model is finetuned as `config.finetune` says."""
        procedure, finetune, ranks = config.finetune.procedure, config.finetune, "trace.update_ranks" in self.wanted
        if procedure in (Procedure.none, Procedure.replay):
            yield _no_steps(self.model.layers)
        elif procedure is Procedure.activation_match:
            if config.protocol.record_at is not RecordAt.last_prompt_token:
                raise ConfigError("finetune=activation_match needs protocol.record_at=last_prompt_token")
            with activation_matched(self.model, prompts, icl.attention_output, config, after, ranks) as trace:
                yield trace
        else:
            advance = self.progress.stage(f"finetune {finetune.name}", len(prompts.training_items()) * finetune.epochs)

            def step(done: int) -> None:
                advance(1)
                after(done)

            with finetuned(self.model, prompts, config, step, ranks) as trace:
                yield trace

    def learned(
        self,
        settings: Mapping[str, Recording],
        setting: str = "ft",
        config: Config | None = None,
        prompts: PromptSet | None = None,
        after: AfterStep = lambda _: None,
    ) -> Learned:
        """Finetune, record, put the weights back."""
        config, prompts = config or self.config, prompts or self.prompts
        with self.learning(config, prompts, settings["icl"], after) as trace:
            if trace.diverged_at is not None:
                return self._diverged(config, trace, settings["zsl"], setting)
            if config.finetune.procedure is Procedure.replay:
                recording = settings["icl"]
            else:
                recording = self._record(setting, prompts.bos, self.plan(setting))
            if not recording.attention_output.isfinite().all():  # the last step's harm shows only now
                return self._diverged(config, replace(trace, diverged_at=len(trace.losses)), settings["zsl"], setting)
            return Learned(trace, recording, self.training_queries())

    def _diverged(self, config: Config, trace: Trace, like: Recording, setting: str) -> Learned:
        log.warning("%s diverged at step %d: its scores are undefined", config.finetune.name, trace.diverged_at)
        return Learned(trace, self._undefined(like, self.plan(setting)), self._no_queries())

    def _undefined(self, like: Recording, plan: RecordPlan) -> Recording:
        """A recording of the right shapes in which nothing is defined."""
        shape = self.model.anatomy.shape
        n, layers = like.attention_output.shape[:2]
        optional: dict[str, Tensor] = {}
        if "query_vectors" in plan.optional:
            optional["query_vectors"] = torch.full((n, layers, shape.heads * shape.head_dim), float("nan"))
        if "next_token_log_probs" in plan.optional:
            vocabulary = cast(Tensor, self.model.anatomy.unembedding.weight).shape[0]
            optional["next_token_log_probs"] = torch.full((n, vocabulary), float("nan"))
        return Recording(
            attention_output=torch.full_like(like.attention_output, float("nan")),
            attention_scores=torch.full_like(like.attention_scores, float("nan")),
            label_scores=torch.full_like(like.label_scores, float("nan")),
            **optional,
        )

    def training_queries(self) -> Float[Tensor, "context layer heads_x_head_dim"] | None:
        """The model's attention queries at every demonstration token, as it reads each demonstration alone."""
        if "training_query_vectors" not in self.wanted:
            return None
        prompts = self.prompts
        sequences = [prompts.demonstrations[index].token_ids for index in prompts.in_context]
        found = token_queries(self.model, sequences, prompts.bos)
        aligned = torch.full((len(prompts.context()), *found[0].shape[1:]), float("nan"))
        for (start, end), vectors in zip(prompts.context_spans(), found, strict=True):
            aligned[start:end] = vectors
        return aligned

    def _no_queries(self) -> Tensor | None:
        if "training_query_vectors" not in self.wanted:
            return None
        shape = self.model.anatomy.shape
        return torch.full((len(self.prompts.context()), shape.layers, shape.heads * shape.head_dim), float("nan"))

    def other(self, settings: Mapping[str, Recording]) -> Recording:
        """The ft recording of the variant that `metric.compare_with` names.

        Raises:
            ConfigError: it names none.
        """
        config, training = variant(self.config, self.config.metric.compare_with), None
        if config.finetune.data is not TrainingData.demonstrations:
            training = encode(draw(config), config, self.model.tokenizer, self.model.window).training
        return self.learned(settings, "other", config, replace(self.prompts, training=training)).recording

    @functools.cached_property
    def orders(self) -> list[PromptSet]:
        """The demonstrations in the run's own order and in `metric.orders` others, no two alike.

        There are fewer where so few demonstrations do not have as many orders.
        """
        prompts, task, items = self.prompts, self.config.task, self.prompts.training_items()
        count, found = len(prompts.in_context), {tuple(range(len(prompts.in_context))): prompts}
        step, wanted = task.permutation, self.config.metric.orders + 1
        while len(found) < wanted and (count > 8 or len(found) < math.factorial(count)):
            step += 1
            rank = tuple(permuted(count, self.config.seed, step))
            mixed = permuted(len(items), self.config.seed, step)
            training = tuple(items[i] for i in mixed)
            reordered = replace(prompts, in_context=tuple(prompts.in_context[i] for i in rank), training=training)
            found.setdefault(rank, reordered)
        return list(found.values())

    def facts(self, settings: Mapping[str, Recording], learned: Learned, early: bool = False) -> dict[str, Any]:
        """Everything beside recordings that the scores name; `early`, what can be had while finetuning goes on."""
        prompts, seed = self.prompts, self.config.seed
        shape = settings["icl"].attention_output.shape
        others = self.orders[1:]
        makers: dict[str, Callable[[], Any]] = {
            "labels": lambda: torch.tensor([query.label for query in prompts.queries]),
            "first_label_token": lambda: torch.tensor([prompts.options(q)[q.label][0] for q in prompts.queries]),
            "random_update": lambda: self._random_update(shape),
            "context_example": self._context_example,
            "training_query_vectors": lambda: learned.training_queries,
            "random_attention": lambda: torch.rand(
                (*shape[:2], len(prompts.context())), generator=torch_stream("random attention", seed)
            ),
            "icl_orders": lambda: torch.stack([self.untouched("icl", order).label_scores for order in self.orders]),
            "ft_orders": lambda: torch.stack(
                [
                    learned.recording.label_scores,
                    *(self.learned(settings, prompts=order).recording.label_scores for order in others),
                ]
            ),
        }
        if early:
            del makers["ft_orders"]  # would finetune within finetuning
        return {name: make() for name, make in makers.items() if name in self.wanted or name == "labels"}

    def _random_update(self, shape: torch.Size) -> Tensor:
        stream = torch_stream("random update", self.config.seed)
        if self.config.protocol.random_update is RandomUpdate.uniform:
            return torch.rand(shape, generator=stream)
        return torch.randn(shape, generator=stream)

    def _context_example(self) -> Tensor:
        found = torch.full((len(self.prompts.context()),), -1)
        for number, (start, end) in enumerate(self.prompts.context_spans()):
            found[start:end] = number
        return found

    def evidence(self, after_step: Callable[[int, Evidence], None] | None = None) -> Evidence:
        """Everything the scores need: zsl, icl, finetuning and ft, and what else they name.

        Args:
            after_step: called every `metric.every` steps of finetuning with the evidence so far.
        """
        owners = {path.partition(".")[0] for path in self.wanted}
        settings = {"zsl": self.untouched("zsl"), "icl": self.untouched("icl")}
        if "reordered" in owners:
            settings["reordered"] = (
                self.untouched("reordered", self.orders[1])
                if len(self.orders) > 1
                else self._undefined(settings["icl"], self.plan("reordered"))  # one demonstration has one order
            )
        if "other" in owners:
            settings["other"] = self.other(settings)
        every = self.config.metric.every

        def after(done: int) -> None:
            if after_step and every and done % every == 0:
                now = self._record("ft so far", self.prompts.bos, self.plan("ft"))
                so_far = Learned(_no_steps(self.model.layers), now, self.training_queries())
                facts = self.facts(settings, so_far, early=True)
                after_step(done, Evidence({**settings, "ft": now}, so_far.trace, facts))

        learned = self.learned(settings, after=after)
        settings["ft"] = learned.recording
        return Evidence(settings, learned.trace, self.facts(settings, learned))


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


def _no_steps(layers: int) -> Trace:
    return Trace(torch.empty(0), torch.empty(0, layers), torch.zeros(layers), torch.zeros(layers))
