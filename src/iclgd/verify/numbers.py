"""A run's scores computed again on some of its queries, by the program's own way and by the naive one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from iclgd.choices import CacheMode, Layer0, Procedure
from iclgd.config import Config, ScoreConfig
from iclgd.evidence import Laboratory, gather
from iclgd.evidence.facts import random_attention, random_update
from iclgd.metrics import measure, needs_all_examples, required_inputs, to_frame
from iclgd.models import LanguageModel
from iclgd.records import Evidence, PromptSet, Trace
from iclgd.runs.progress import Progress
from iclgd.seeding import numpy_stream, torch_stream
from iclgd.variants import reference_config
from iclgd.verify.naive import Naive, unknown_to_it

KEY = ["score", "example", "layer"]
_BY_QUERY = (Procedure.train, Procedure.none, Procedure.replay)  # what these learn does not depend on the queries
_COPIES = 3  # noisy copies, from which is seen how far rounding moves a score
_WITHIN = 6  # times the furthest of few copies


@dataclass(frozen=True)
class Again:
    """Scores computed again."""

    sample: list[int]  # the queries, as indices into the run's
    own: pd.DataFrame  # columns score, example (of the run), layer, value: by the program's own way
    naive: pd.DataFrame | None  # the same by the naive way; None where it does not know the variant
    # The same; how far rounding can move each value: in other batches, and in other arithmetic, which finetuning may
    # amplify (SmolLM2 with gd at a rate of 0.01: a hundred thousand times).
    batched: pd.DataFrame
    otherwise: pd.DataFrame
    unknown: list[str]  # settings, and scores, that only the own way was used for
    left_out: list[str]  # scores that need all queries
    recordings: dict[str, Tensor]  # by SETTING.FIELD, what the own way recorded of the sample


def sampled(config: Config, count: int, queries: int | None) -> list[int]:
    """Which queries are asked again, in their order: `queries` random ones, or all where that is None."""
    procedures = {config.finetune.procedure, reference_config(config).finetune.procedure}
    if queries is None or queries >= count or not procedures.issubset(_BY_QUERY):
        return list(range(count))
    return sorted(numpy_stream("verify", config.seed).permutation(count)[:queries].tolist())


def compute(config: Config, model: LanguageModel, prompts: PromptSet, queries: int | None) -> Again:
    """Compute a run's scores again on some of its queries."""
    sample = sampled(config, len(prompts.queries), queries)
    whole = len(sample) == len(prompts.queries)
    few = replace(prompts, queries=tuple(prompts.queries[index] for index in sample))
    config = replace(config, runtime=replace(config.runtime, cache=CacheMode.off))
    scores = {name: spec for name, spec in config.metric.scores.items() if whole or not needs_all_examples(spec)}
    wanted = required_inputs(scores)
    laboratory = Laboratory(model, few, config, wanted, Progress())
    evidence, others = gather(laboratory), []
    if all(parameter.device.type != "meta" for parameter in model.network.parameters()):  # none waits elsewhere
        for copy in range(_COPIES):
            with _rounded_otherwise(model, copy):
                others.append(gather(laboratory))
    evidence, *others = [
        replace(each, facts=_of_the_whole(each, config, len(prompts.queries), sample)) for each in (evidence, *others)
    ]
    own = _frame(scores, evidence, sample)
    batched = _batched(scores, evidence, sample, torch.finfo(model.network.dtype).eps)
    unknown, naive = unknown_to_it(config), None
    if not unknown:
        way = Naive(model, config, few)
        plain = _naive_evidence(way, evidence, few, model.first_layer_sees_context)
        known = {name: spec for name, spec in scores.items() if _is_had(spec, plain, way)}
        unknown = sorted(set(scores) - set(known))
        naive = _frame(known, plain, sample)
    return Again(
        sample=sample,
        own=own,
        naive=naive,
        batched=batched,
        otherwise=_otherwise(own, [_frame(scores, other, sample) for other in others], batched),
        unknown=unknown,
        left_out=sorted(set(config.metric.scores) - set(scores)),
        recordings=evidence.tensors(),
    )


def _of_the_whole(evidence: Evidence, config: Config, count: int, sample: Sequence[int]) -> dict[str, Any]:
    """The facts, with what is drawn for all queries at once drawn for all, and the sample's part taken."""
    facts = dict(evidence.facts)
    if "random_update" in facts:
        shape = torch.Size((count, *facts["random_update"].shape[1:]))
        facts["random_update"] = random_update(shape, config)[sample]
    if "random_attention" in facts:
        shape = (count, *facts["random_attention"].shape[1:])
        facts["random_attention"] = random_attention(shape, config)[sample]
    return facts


def _naive_evidence(way: Naive, own: Evidence, prompts: PromptSet, sees: bool) -> Evidence:
    """The evidence by the naive way; `sees`: whether the first layer's scores depend on the context at all."""
    zsl, icl = way.record(prompts.bos), way.record(prompts.context())
    if not (sees or way.config.protocol.layer0 is Layer0.published):  # there is rounding alone
        icl.attention_scores[:, 0] = zsl.attention_scores[:, 0]
    with way.finetuned() as trace:
        if way.config.finetune.procedure is Procedure.replay:
            ft = icl
        elif trace.diverged_at is not None:
            ft = replace(zsl, **{name: torch.full_like(t, torch.nan) for name, t in zsl.tensors().items()})
        else:
            ft = way.record(prompts.bos)
    facts = {name: own.facts[name] for name in ("labels", "first_label_token", "random_update") if name in own.facts}
    return Evidence({"zsl": zsl, "icl": icl, "ft": ft}, trace, facts)


def _is_had(spec: ScoreConfig, evidence: Evidence, way: Naive) -> bool:
    for path in spec.inputs.values():
        try:
            evidence.lookup(path)
        except KeyError:
            return False
        if path.partition(".")[2] in way.cannot:
            return False
    return True


def _frame(scores: dict[str, ScoreConfig], evidence: Evidence, sample: Sequence[int]) -> pd.DataFrame:
    frame = to_frame(measure(scores, evidence))
    example = frame["example"].to_numpy()
    return frame.assign(example=np.where(example < 0, -1, np.array(sample)[example.clip(min=0)]))


@contextmanager
def _rounded_otherwise(model: LanguageModel, copy: int) -> Iterator[None]:
    """Within the block every weight is moved about as far as arithmetic in its precision moves what it gives.

    That is a few steps of float32, in which long sums are rounded at every term, and one of half precision, whose sums
    are kept in float32. In float64, transformers still computes norms, angles and softmax in float32.
    """
    stream, eps = torch_stream("verify weights", copy), torch.finfo(model.network.dtype).eps
    size = max(eps, 4 * torch.finfo(torch.float32).eps)
    before = {name: parameter.detach().clone() for name, parameter in model.network.named_parameters()}
    try:
        for parameter in model.network.parameters():
            noise = torch.randn(parameter.shape, generator=stream).to(parameter.device)
            parameter.data.copy_(parameter.data.double() * (1 + size * noise))
        yield
    finally:
        for name, parameter in model.network.named_parameters():
            parameter.data.copy_(before[name])


def _otherwise(own: pd.DataFrame, others: Sequence[pd.DataFrame], batched: pd.DataFrame) -> pd.DataFrame:
    """How far each value moves when the run is made again, finetuning included, from weights rounded otherwise.

    Finetuning amplifies rounding mostly along one direction. Few copies tell how far along it only within a factor, and
    a value may stay where it is by accident: the furthest of a layer's values counts for all of them, several times.
    """
    values = own["value"].to_numpy()
    apart = [distance(values, other["value"].to_numpy()) for other in others]
    moved = own.assign(value=np.max([np.zeros(len(own)), *apart], axis=0))
    furthest: Any = moved.groupby(["score", "layer"])["value"].transform("max")
    return own.assign(value=np.fmax(_WITHIN * furthest, batched["value"]))


def _batched(scores: dict[str, ScoreConfig], evidence: Evidence, sample: Sequence[int], eps: float) -> pd.DataFrame:
    """How far each value moves when all that it is made of moves as far as rounding in other batches moves it."""
    base = _frame(scores, evidence, sample)
    moved = np.zeros(len(base))
    for copy in range(_COPIES):
        stream = torch_stream("verify rounding", copy)

        def noisy(tensor: Any, path: str, stream: torch.Generator = stream) -> Any:
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or path.startswith("random"):
                return tensor
            size = min(16 * eps, 0.1)
            scale = tensor.double().square().nanmean(-1, keepdim=True).sqrt() if tensor.ndim else tensor.double()
            return (tensor + size * scale * torch.randn(tensor.shape, generator=stream)).to(tensor.dtype)

        shaken = Evidence(
            {
                setting: replace(r, **{name: noisy(t, f"{setting}.{name}") for name, t in r.tensors().items()})
                for setting, r in evidence.recordings.items()
            },
            Trace(**{name: noisy(value, f"trace.{name}") for name, value in vars(evidence.trace).items()}),
            {name: noisy(fact, name) for name, fact in evidence.facts.items()},
        )
        values = _frame(scores, shaken, sample)["value"].to_numpy()
        moved = np.fmax(moved, 2 * distance(base["value"].to_numpy(), values))
    return base.assign(value=moved)


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far values lie apart, relative to the larger if that exceeds 1; 0 if both are undefined, infinite if one."""
    undefined = np.isnan(a).astype(int) + np.isnan(b)
    with np.errstate(invalid="ignore"):
        apart = np.abs(a - b) / np.fmax(1.0, np.fmax(np.abs(a), np.abs(b)))
    return np.where(undefined == 2, 0.0, np.where(undefined == 1, np.inf, apart))
