"""Checks a finished run from its folder alone: its files, its inputs, its prompts and its scores."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from iclgd.common.digests import sha256
from iclgd.common.records import Evidence
from iclgd.config import Config, ScoreConfig, typed
from iclgd.config.enumerations import CacheMode, Dtype, Layer0
from iclgd.config.variants import ICL, reference_config
from iclgd.evidence.gather import gather, without_rounding
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.preparation import prepare
from iclgd.metrics import measure, needs_all_examples, required_inputs, to_frame
from iclgd.models.loading import load
from iclgd.runs import files
from iclgd.runs.files import State, Status, recorded_config
from iclgd.runs.folder import RunFolder
from iclgd.runs.inputs import CIRCUMSTANCES, INPUTS, Inputs, kind_of
from iclgd.runs.progress import Progress
from iclgd.runs.provenance import processor
from iclgd.tasks.encoding import encode
from iclgd.tasks.notes import as_json
from iclgd.verify.naive import Naive

TOLERANCE = 1e-3  # of each value, by the program's own way, in float32 on the processor that made the run
MEAN_TOLERANCE = 1e-2  # of a score's mean distance, by the naive way or elsewhere; single values may be further off
WIDER = 10  # times, in half precision and where finetuning is unstable
_NAIVE_VALUES = {  # of the keys of `finetune` that the naive way knows only in part
    "mechanism": ("gradient_descent", "none"),
    "objective": ("gd", "lcgd", "short_circuit"),
    "optimizer": ("sgd",),
    "trainable": ("attn_kv", "attention", "mlp", "all"),
    "norm_of": (None,),
    "direction": ("own",),
    "rank": (None,),
}


@dataclass
class ScoreCheck:
    """The largest and the mean distance of a score's stored values from those computed again."""

    score: str
    own: tuple[float, float] | None  # by the program's own way
    naive: tuple[float, float] | None  # by the naive way; None where it does not know the score or the variant
    holds: bool


@dataclass
class Verdict:
    """The result of checking one run."""

    folder: str
    problems: list[str] = field(default_factory=list)  # why the run does not hold
    notes: list[str] = field(default_factory=list)  # harmless differences, and what could not be checked
    queries: int = 0  # how many queries were computed again
    scores: list[ScoreCheck] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether the run can be reproduced."""
        return not self.problems


def verify(path: Path, queries: int | None = 8) -> Verdict:
    """Check a run; its scores are computed again for `queries` random queries, or for all if that is None."""
    verdict, folder = Verdict(str(path)), RunFolder(path)
    status, threads = folder.status(), torch.get_num_threads()
    if status is None or status.state is not State.done:
        verdict.problems.append(f"it is {status.state}, not done" if status else "it is not a run")
        return verdict
    try:
        _check(folder, status, queries, verdict)
    except Exception as error:  # of the user's model, data or function; other runs are still checked
        verdict.problems.append(f"it cannot be computed again: {str(error) or type(error).__name__}")
    finally:
        torch.set_num_threads(threads)
    return verdict


def _check(folder: RunFolder, status: Status, queries: int | None, verdict: Verdict) -> None:
    for name, recorded in status.files.items():
        path = folder.path / name
        if not path.is_file() or sha256(path) != recorded["sha256"]:
            verdict.problems.append(f"{name} is not what the run wrote")
    before, environment = folder.read_json(INPUTS), folder.read_json("environment.json")
    config = _on_this_machine(typed(recorded_config(folder.path)), before.get("dtype"), verdict)
    prepared = prepare(config)
    here, stored_inputs = prepared.inputs, Inputs(before)
    kinds = {kind_of(name) for name in {**before, **here.parts}} - {*CIRCUMSTANCES, "settings"}
    changes = here.only(*kinds).changes(stored_inputs.only(*kinds).parts)
    verdict.problems += [f"changed since: {change}" for change in changes]
    differences = here.only(*CIRCUMSTANCES).changes(stored_inputs.only(*CIRCUMSTANCES).parts)
    if environment.get("processor") != processor():
        differences.append(f"the processor ({environment.get('processor')}, now {processor()})")
    verdict.notes += [f"differs here: {difference}" for difference in differences]
    torch.set_num_threads(int(environment.get("threads") or torch.get_num_threads()))
    model = load(config.model, config.runtime)
    prompts = encode(prepared.drawn, config, model.tokenizer, model.window)
    lab = Laboratory(model, prompts, config, set(), Progress(), prepared)
    expected = json.loads(files.to_json(as_json(prompts, lab.planted_prompts)))
    written = folder.read_json("prompts.json")
    for name in {**expected, **written}:
        if expected.get(name) != written.get(name):
            verdict.problems.append(f"prompts.json has other {name} than the settings and data give")
    stored = pd.read_parquet(folder.path / "scores.parquet")
    unsteady = bool(status.facts.get("unstable")) or model.network.dtype in (torch.float16, torch.bfloat16)
    exact = not differences and not unsteady and model.device.type == "cpu"  # a GPU need not sum in the same order
    own, naive = _scores_again(lab, queries, verdict)
    for name in dict.fromkeys(own["score"]):
        check = compare(name, stored, own, naive, exact, WIDER if unsteady else 1)
        verdict.scores.append(check)
        if not check.holds:
            verdict.problems.append(f"score {name} is off by {max(*(check.own or ()), *(check.naive or ())):.2g}")


def _on_this_machine(config: Config, dtype: str | None, verdict: Verdict) -> Config:
    """The run's config in the precision it was made in, on a device and with data that are here."""
    own = Dtype(dtype or config.runtime.dtype)
    runtime, paths = replace(config.runtime, dtype=own, cache=CacheMode.off), config.paths
    if runtime.device.startswith("cuda") and not torch.cuda.is_available():
        verdict.notes.append(f"runtime.device={runtime.device} is not here: computed on the CPU")
        runtime = replace(runtime, device="cpu")
    if paths.data_dir and not Path(paths.data_dir).expanduser().is_dir():
        paths = replace(paths, data_dir=os.environ.get("ICLGD_DATA_DIR"))
    return replace(config, runtime=runtime, paths=paths)


def _scores_again(lab: Laboratory, queries: int | None, verdict: Verdict) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The scores of some queries by the program's own way, and by the naive way if it knows the variant.

    Values of differences within rounding, which the published code scores, are left out.
    """
    config, every = lab.config, lab.prompts.queries
    sample, scores = _sample(config, len(every), queries), config.metric.scores
    if len(sample) < len(every):
        scores = {name: spec for name, spec in scores.items() if not _needs_all(spec)}
        left_out = sorted(config.metric.scores.keys() - scores.keys())
        verdict.notes += [f"these need all queries (--all): {', '.join(left_out)}"] if left_out else []
    verdict.queries = len(sample)
    some = replace(lab.prompts, queries=tuple(every[index] for index in sample))
    lab = replace(lab, prompts=some, wanted=required_inputs(scores))

    def frame(scores: Mapping[str, ScoreConfig], evidence: Evidence) -> pd.DataFrame:
        rows = to_frame(measure(scores, evidence))
        return rows.assign(example=[sample[example] if example >= 0 else -1 for example in rows["example"]])

    evidence = gather(lab)
    own, naive = frame(scores, evidence), None
    undefined = frame(scores, _without_rounding(lab, evidence))["value"].isna()
    rounding = own[undefined & own["value"].notna()]
    for name, count in rounding.groupby("score", sort=False).size().items():
        verdict.notes.append(f"{count} values of {name} are within rounding, and cannot be verified")
    unknown = unknown_settings(config)
    if not unknown:
        plain = _without_rounding(lab, _naive_evidence(Naive(lab.model.network, config, some), evidence))
        unknown = sorted(name for name, spec in scores.items() if not _has_inputs(plain, spec))
        naive = frame({name: scores[name] for name in scores if name not in unknown}, plain)
    verdict.notes += [f"the naive way does not know these: {', '.join(unknown)}"] if unknown else []
    return own.drop(rounding.index), naive


def _sample(config: Config, count: int, queries: int | None) -> list[int]:
    """Indices of the queries to compute again, at random; all where a mechanism may learn from the queries."""
    mechanisms = {config.finetune.mechanism, reference_config(config).finetune.mechanism}
    if queries is None or queries >= count or not mechanisms <= {"gradient_descent", "none"}:
        return list(range(count))
    return sorted(np.random.default_rng().permutation(count)[:queries].tolist())


def _needs_all(spec: ScoreConfig) -> bool:
    """Whether a query's score depends on the other queries, or on noise that is drawn for all at once."""
    return needs_all_examples(spec) or any(path.startswith("random_") for path in spec.inputs.values())


def unknown_settings(config: Config) -> list[str]:
    """The settings of a run that the naive way does not know."""
    chosen = {name: getattr(config.finetune, name) for name in _NAIVE_VALUES}
    unknown = [f"finetune.{name}={value}" for name, value in chosen.items() if value not in _NAIVE_VALUES[name]]
    if config.protocol.step != "demonstration":
        unknown.append(f"protocol.step={config.protocol.step}")
    if config.runtime.placement != "single":
        unknown.append(f"runtime.placement={config.runtime.placement}")
    return unknown if config.reference.name == ICL else [*unknown, f"reference={config.reference.name}"]


def _naive_evidence(naive: Naive, own: Evidence) -> Evidence:
    """The evidence by the naive way, with the labels and random baselines of the program's own."""
    zsl, icl = naive.record(naive.prompts.bos), naive.record(naive.prompts.context())
    with naive.finetuned() as trace:
        ft = naive.record(naive.prompts.bos)
    if trace.diverged_at is not None:
        ft = replace(ft, **{name: torch.full_like(tensor, torch.nan) for name, tensor in ft.tensors().items()})
    facts = {name: own.facts[name] for name in ("labels", "first_label_token", "random_update") if name in own.facts}
    return Evidence({"zsl": zsl, "icl": icl, "ft": ft}, trace, facts)


def _without_rounding(lab: Laboratory, evidence: Evidence) -> Evidence:
    """The evidence with zsl's values where others differ from them by rounding alone, whatever the protocol says."""
    lab = replace(lab, config=replace(lab.config, protocol=replace(lab.config.protocol, layer0=Layer0.undefined)))
    return replace(evidence, recordings=without_rounding(lab, evidence.recordings))


def _has_inputs(evidence: Evidence, spec: ScoreConfig) -> bool:
    try:
        return all(evidence.lookup(path) is not None for path in spec.inputs.values())
    except KeyError:
        return False


def compare(name: str, stored: pd.DataFrame, own: Any, naive: Any, exact: bool, factor: float) -> ScoreCheck:
    """Compare a score's stored values with those computed again; `exact` if each value has to agree."""

    def distances(again: Any) -> tuple[float, float] | None:
        pairs = again.merge(stored, "left", ["score", "example", "layer"], suffixes=("", "_stored"))
        far = _distance(pairs["value_stored"].to_numpy(), pairs["value"].to_numpy())
        return (float(far.max()), float(far.mean())) if far.size else None

    own = own[own["score"] == name]
    by_own, by_naive = distances(own), None
    if naive is not None and (naive["score"] == name).any():
        by_naive = distances(naive[(naive["score"] == name) & naive["value"].notna()])
        if by_naive is None and own["value"].notna().any():  # it has lost every value
            by_naive = (math.inf, math.inf)
    holds = by_own is None or (by_own[0] <= TOLERANCE if exact else by_own[1] <= MEAN_TOLERANCE * factor)
    return ScoreCheck(name, by_own, by_naive, holds and (by_naive is None or by_naive[1] <= MEAN_TOLERANCE * factor))


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances relative to the larger of the two values and 1; infinite where only one is defined."""
    with np.errstate(invalid="ignore"):
        far = np.abs(a - b) / np.fmax(1.0, np.fmax(np.abs(a), np.abs(b)))
    return np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.where(np.isnan(far), np.inf, far))
