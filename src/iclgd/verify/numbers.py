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

from iclgd.common.records import Evidence, PromptSet, Trace
from iclgd.common.seeding import torch_stream
from iclgd.config import Config, ScoreConfig
from iclgd.config.enumerations import CacheMode, Layer0, Procedure
from iclgd.config.variants import reference_config
from iclgd.evidence.facts import random_attention, random_update
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.outcome import kept_tensors
from iclgd.evidence.preparation import Prepared
from iclgd.metrics import measure, needs_all_examples, required_inputs, to_frame
from iclgd.models.language_model import LanguageModel
from iclgd.runs.progress import Progress
from iclgd.verify.content import apart, column, distance, of_all, taken
from iclgd.verify.naive import Naive, unknown_to_it

KEY = ["score", "example", "layer"]
_BY_QUERY = (Procedure.train, Procedure.none, Procedure.replay)  # what these learn does not depend on the queries
_OF_ALL = ("flipped means and heads in scores.json",)
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
    count: int  # of the run's queries
    whole: bool  # whether all queries were asked
    left_out: list[str]  # scores, and other results, that need all queries
    recordings: tuple[dict[str, Tensor], ...]  # by SETTING.FIELD, as the own way records, and from rounded weights
    # by FILE/PLACE, each number of the run's other files; from all queries, or what does not depend on them
    content: dict[str, float]
    moves: dict[str, float]  # the same; how far other arithmetic can move each


def sampled(config: Config, count: int, queries: int | None) -> list[int]:
    """Which queries are asked again, in their order: `queries` random ones, or all where that is None.

    The sample is unseeded, so that an editor cannot predict which queries are checked.
    """
    procedures = {config.finetune.procedure, reference_config(config).finetune.procedure}
    if queries is None or queries >= count or not procedures.issubset(_BY_QUERY):
        return list(range(count))
    return sorted(np.random.default_rng().permutation(count)[:queries].tolist())


def compute(config: Config, prepared: Prepared, model: LanguageModel, prompts: PromptSet, queries: int | None) -> Again:
    """Compute a run's scores again on some of its queries."""
    all_scores = config.metric.scores
    sample = sampled(config, len(prompts.queries), queries)
    whole = len(sample) == len(prompts.queries)
    few = replace(prompts, queries=tuple(prompts.queries[index] for index in sample))
    config = replace(config, runtime=replace(config.runtime, cache=CacheMode.off))
    scores = {name: spec for name, spec in all_scores.items() if whole or not needs_all_examples(spec)}
    config = replace(config, metric=replace(config.metric, scores=scores))
    wanted = required_inputs(scores)
    laboratory = Laboratory(model, few, config, wanted, Progress(), prepared)
    (evidence, content), rounded = taken(laboratory, whole), []
    if all(parameter.device.type != "meta" for parameter in model.network.parameters()):  # none waits elsewhere
        for copy in range(_COPIES):
            with _rounded_otherwise(model, copy):
                rounded.append(taken(laboratory, whole))
    evidence, *others = [
        replace(each, facts=_of_the_whole(each, config, len(prompts.queries), sample))
        for each in (evidence, *(made for made, _ in rounded))
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
        count=len(prompts.queries),
        whole=whole,
        left_out=[] if whole else [*sorted(set(all_scores) - set(scores)), *_OF_ALL, *of_all(config)],
        recordings=tuple(kept_tensors(each) for each in (evidence, *others)),
        content=content,
        moves=_moves(content, [made for _, made in rounded]),
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
            noise = torch.randn(parameter.shape, generator=stream)
            parameter.data.copy_(parameter.data.cpu().double() * (1 + size * noise))  # some devices have no float64
        yield
    finally:
        for name, parameter in model.network.named_parameters():
            parameter.data.copy_(before[name])


def _otherwise(own: pd.DataFrame, others: Sequence[pd.DataFrame], batched: pd.DataFrame) -> pd.DataFrame:
    """How far each value moves when the run is made again, finetuning included, from weights rounded otherwise.

    Finetuning amplifies rounding mostly along one direction. Few copies tell how far along it only within a factor, and
    a value may stay where it is by accident: the furthest of a layer's values counts for all of them, several times.
    What is undefined in a copy says nothing of other queries.
    """
    values = own["value"].to_numpy()
    moves = [distance(values, other["value"].to_numpy()) for other in others]
    moved = own.assign(value=np.max([np.zeros(len(own)), *moves], axis=0))
    finite = moved.assign(value=moved["value"].replace(np.inf, 0.0))
    furthest: Any = finite.groupby(["score", "layer"])["value"].transform("max")
    return own.assign(value=np.max([_WITHIN * furthest, moved["value"], batched["value"]], axis=0))


def _moves(content: dict[str, float], others: Sequence[dict[str, float]]) -> dict[str, float]:
    """How far each number in the run's other files moves: the furthest of a column counts for all, several times."""
    furthest: dict[str, float] = {}
    for other in others:
        for path in content.keys() & other.keys():
            far = apart(path, content[path], other[path])
            furthest[column(path)] = max(furthest.get(column(path), 0.0), far)
    return {path: _WITHIN * furthest.get(column(path), 0.0) for path in content}


def _batched(scores: dict[str, ScoreConfig], evidence: Evidence, sample: Sequence[int], eps: float) -> pd.DataFrame:
    """How far each value moves when all that it is made of moves as far as rounding in other batches moves it."""
    base = _frame(scores, evidence, sample)
    moved = np.zeros(len(base))
    for copy in range(_COPIES):
        stream = torch_stream("verify rounding", copy)

        def noisy(tensor: Any, path: str, stream: torch.Generator = stream) -> Any:
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or path.startswith("random"):
                return tensor
            size = max(eps, 16 * torch.finfo(torch.float32).eps)
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
