"""One model, one set of prompts, and how both are recorded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from iclgd.common.records import OPTIONAL_RECORDS, PromptSet, Recording
from iclgd.config import Config
from iclgd.config.enumerations import RecordAt
from iclgd.config.variants import reference_config
from iclgd.evidence.preparation import Prepared
from iclgd.models.anatomy import LanguageModel
from iclgd.models.recorder import Question, RecordPlan, record
from iclgd.runs.cache import recordings_cache
from iclgd.runs.progress import Progress
from iclgd.runs.varying_keys import layer_ranges
from iclgd.tasks.encoding import encode

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Laboratory:
    """Records one model on one set of prompts."""

    model: LanguageModel
    prompts: PromptSet  # demonstrations and queries
    config: Config  # the run
    wanted: set[str]  # the input paths that scores name (`metrics.required_inputs`)
    progress: Progress  # where stages are shown
    prepared: Prepared  # the run's rows and inputs
    own: dict[str, Recording] = field(default_factory=dict)  # zsl and icl with the run's prompts, by key

    @cached_property
    def planted_prompts(self) -> PromptSet | None:
        """The run's queries with the planted truth's own rows; None where ICL itself is the reference."""
        if self.prepared.reference is None:
            return None
        planted = reference_config(self.config)
        own = encode(self.prepared.reference, planted, self.model.tokenizer, self.model.window)
        return replace(own, queries=self.prompts.queries)

    def questions(self) -> list[Question]:
        """The queries as the recorder takes them."""
        return [Question(query.token_ids, self.prompts.options(query)) for query in self.prompts.queries]

    def plan(self, setting: str) -> RecordPlan:
        """How a setting is recorded."""
        runtime, protocol = self.config.runtime, self.config.protocol
        return RecordPlan(
            optional=frozenset(name for name in OPTIONAL_RECORDS if f"{setting}.{name}" in self.wanted),
            at_first_label_token=protocol.record_at is RecordAt.first_label_token,
            batch_tokens=runtime.batch_tokens,
            bos=len(self.prompts.bos),
            mean_label=self.config.task.length_normalised,
        )

    def record(self, stage: str, context: tuple[int, ...], plan: RecordPlan) -> Recording:
        """A recording of the model as it is now, of all queries after `context`."""
        questions = self.questions()
        return record(self.model, questions, context, plan, self.progress.stage(stage, len(questions)))

    def untouched(self, setting: str, prompts: PromptSet | None = None) -> Recording:
        """A recording of the model as it was loaded: `zsl`, or `icl` with the prompts' or another order."""
        prompts = prompts or self.prompts
        context = prompts.bos if setting == "zsl" else prompts.context()
        key = self.recording_key(setting, context)
        if key in self.own:
            return self.own[key]
        recording = self.shared(setting, key, lambda: self.record(setting, context, self.plan(setting)))
        if prompts == self.prompts:  # others are read once, and would fill the memory
            self.own[key] = recording
        return recording

    def shared(self, what: str, key: str, compute: Callable[[], Recording]) -> Recording:
        """A recording that other runs may have made already; the log says so."""
        recording, reused = recordings_cache(self.config.runtime).get_or_compute(key, compute)
        log.info("%s: %s", what, "taken from an earlier run" if reused else "recorded")
        return recording

    def recording_key(self, setting: str, context: tuple[int, ...], learned: bool = False, **of: Any) -> str:
        """The key of a recording: of the model as it was loaded, or of one that `of` says how it learned."""
        plan = self.plan(setting)
        return self.prepared.inputs.recording_key(
            self.config,
            str(self.model.device),
            learned,
            context=context,
            questions=[[question.token_ids, question.options] for question in self.questions()],
            optional=sorted(plan.optional),
            record_at=str(self.config.protocol.record_at),
            mean_label=plan.mean_label,
            threads=torch.get_num_threads(),
            **of,
        )

    def window_notes(self) -> Iterator[str]:
        """How many demonstrations the queries see in layers whose attention is local, a sentence for each reach."""
        local: dict[tuple[int | None, int | None], list[int]] = {}
        for number, layer in enumerate(self.model.anatomy.layers):
            local.setdefault((layer.window, layer.chunk), []).append(number)
        starts, context = [start for start, _ in self.prompts.context_spans()], len(self.prompts.context())
        last_keys = [context + len(query.token_ids) - 1 for query in self.prompts.queries]
        for (window, chunk), layers in local.items():
            if window is not None:
                reach, first_keys = f"to {window:,} tokens", [last + 1 - window for last in last_keys]
            elif chunk is not None:
                reach = f"within stretches of {chunk:,} tokens"
                first_keys = [last // chunk * chunk for last in last_keys]
            else:
                continue
            counts = sorted(sum(start >= first for start in starts) for first in first_keys)
            if counts[0] < len(starts):
                seen = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
                yield (
                    f"layers {layer_ranges(layers)} attend {reach}: from the last token of a query they "
                    f"see {seen} of {len(starts)} demonstrations in whole"
                )


def undefined(recording: Recording) -> Recording:
    """A recording of the same shapes in which nothing is defined."""
    return replace(recording, **{name: torch.full_like(each, torch.nan) for name, each in recording.tensors().items()})
