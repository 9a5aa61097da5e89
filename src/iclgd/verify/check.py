"""Checks a finished run from its folder alone: its files, its inputs, its prompts and its scores."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from iclgd.common.records import Evidence, Score
from iclgd.config import Config, FinetuneConfig, ScoreConfig, as_dict, typed
from iclgd.config.enumerations import CacheMode
from iclgd.config.variants import reference_config
from iclgd.evidence.gather import gather
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.preparation import prepare
from iclgd.metrics import measure, needs_all_examples, required_inputs, summarise, to_frame
from iclgd.models.loading import load
from iclgd.runs import files
from iclgd.runs.environment import processor
from iclgd.runs.folder import RunFolder
from iclgd.runs.inputs import CIRCUMSTANCES, INPUTS, LOOKS, Inputs, kind_of, run_id
from iclgd.runs.progress import Progress
from iclgd.runs.schema import State, Status, recorded_config
from iclgd.tasks import as_json, encode
from iclgd.verify.naive import Naive

TOLERANCE = 1e-3  # of each value, by the program's own way, in float32 on the processor that made the run
MEAN_TOLERANCE = 1e-2  # of a score's mean distance, by the naive way or elsewhere; single values may be further off
WIDER = 10  # times, in half precision and where finetuning is unstable
# Settings of `finetune` that the naive way knows, and those that may have any value; others need to be the default.
_NAIVE_VALUES = {
    "mechanism": ("gradient_descent", "none"),
    "objective": ("gd", "lcgd", "short_circuit"),
    "optimizer": ("sgd",),
    "trainable": ("attn_kv", "attention", "mlp", "all"),
}
_ANY_VALUE = (
    *("name", "lr", "layers", "epochs", "loss_on", "batch", "exit_layer", "data", "other_task"),
    *("sees", "patch", "calibration", "ridge", "fit", "at", "layer", "heads", "start", "options"),  # not of gradients
)


@dataclass
class ScoreCheck:
    """The largest and the mean distance of a score's stored values from those computed again."""

    score: str
    own: tuple[float, float]  # by the program's own way
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

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"holds": self.holds, **asdict(self)}


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
        if not path.is_file() or files.sha256(path) != recorded["sha256"]:
            verdict.problems.append(f"{name} is not what the run wrote")
    config = typed(recorded_config(folder.path))
    if run_id(as_dict(config)) != status.run_id:
        verdict.problems.append(f"config.yaml is of run {run_id(as_dict(config))}, status.json of {status.run_id}")
    before, environment = folder.read_json(INPUTS), folder.read_json("environment.json")
    config = _on_this_machine(config, str(before.get("dtype", config.runtime.dtype)), verdict)
    prepared = prepare(config)
    differences = _compare_inputs(prepared.inputs, before, verdict)
    if environment.get("processor") != processor():
        differences.append(f"the processor ({environment.get('processor')}, now {processor()})")
    verdict.notes += [f"differs here: {difference}" for difference in differences]
    torch.set_num_threads(int(environment.get("threads") or torch.get_num_threads()))
    model = load(config.model, config.runtime)
    prompts = encode(prepared.drawn, config, model.tokenizer, model.window)
    lab = Laboratory(model, prompts, config, set(), Progress(), prepared)
    _check_prompts(folder, as_json(prompts, lab.planted_prompts), verdict)
    stored = pd.read_parquet(folder.path / "scores.parquet")
    _check_means(stored, folder.read_json("scores.json"), config.metric.scores, verdict)
    unsteady = bool(status.facts.get("unstable")) or model.network.dtype in (torch.float16, torch.bfloat16)
    exact = not differences and not unsteady and model.device.type == "cpu"  # a GPU need not sum in the same order
    own, naive = _scores_again(lab, queries, verdict)
    for name in dict.fromkeys(own["score"]):
        check = _compare(name, stored, own, naive, exact, WIDER if unsteady else 1)
        verdict.scores.append(check)
        if not check.holds:
            verdict.problems.append(f"score {name} is off by {max(*check.own, *(check.naive or ())):.2g}")


def _scores_again(lab: Laboratory, queries: int | None, verdict: Verdict) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The scores of some queries by the program's own way, and by the naive way if it knows the variant."""
    config, every = lab.config, lab.prompts.queries
    sample, scores = _sample(config, len(every), queries), config.metric.scores
    if len(sample) < len(every):
        scores = {name: spec for name, spec in scores.items() if not _needs_all(spec)}
        left_out = sorted(config.metric.scores.keys() - scores.keys())
        verdict.notes += [f"these need all queries (--all): {', '.join(left_out)}"] if left_out else []
    verdict.queries = len(sample)
    some = replace(lab.prompts, queries=tuple(every[index] for index in sample))
    evidence = gather(replace(lab, prompts=some, wanted=required_inputs(scores)))
    unknown, naive = _unknown_settings(config), None
    if not unknown:
        plain = _naive_evidence(Naive(lab.model.network, config, some), evidence, lab.model.first_layer_sees_context)
        unknown = sorted(name for name, spec in scores.items() if not _has_inputs(plain, spec))
        naive = _frame({name: scores[name] for name in scores if name not in unknown}, plain, sample)
    verdict.notes += [f"the naive way does not know these: {', '.join(unknown)}"] if unknown else []
    return _frame(scores, evidence, sample), naive


def _on_this_machine(config: Config, dtype: str, verdict: Verdict) -> Config:
    """The run's config in the precision it was made in, on a device and with data that are here."""
    runtime, paths = replace(config.runtime, dtype=dtype, cache=CacheMode.off), config.paths
    if runtime.device.startswith("cuda") and not torch.cuda.is_available():
        verdict.notes.append(f"runtime.device={runtime.device} is not here: computed on the CPU")
        runtime = replace(runtime, device="cpu")
    if paths.data_dir and not Path(paths.data_dir).expanduser().is_dir():
        paths = replace(paths, data_dir=os.environ.get("ICLGD_DATA_DIR"))
    return replace(config, runtime=runtime, paths=paths)


def _compare_inputs(now: Inputs, before: Mapping[str, Any], verdict: Verdict) -> list[str]:
    """Changed data and models are problems; returns the versions, code and devices that differ."""
    stored = Inputs(before)
    kinds = {kind_of(name) for name in {**before, **now.parts}} - {*CIRCUMSTANCES, "settings"}
    verdict.problems += [f"changed since: {change}" for change in now.only(*kinds).changes(stored.only(*kinds).parts)]
    return now.only(*CIRCUMSTANCES).changes(stored.only(*CIRCUMSTANCES).parts)


def _check_prompts(folder: RunFolder, content: Mapping[str, Any], verdict: Verdict) -> None:
    expected, stored = json.loads(files.to_json(content)), folder.read_json("prompts.json")
    different = [name for name in {**expected, **stored} if expected.get(name) != stored.get(name)]
    verdict.problems += [f"prompts.json has other {name} than the settings and data give" for name in different]


def _check_means(
    stored: pd.DataFrame, summary: Mapping[str, Any], specs: Mapping[str, ScoreConfig], verdict: Verdict
) -> None:
    """Compare the means of scores.json with the values of scores.parquet."""
    for name, spec in specs.items():
        rows: Any = stored[stored["score"] == name]
        if rows.empty or name not in summary:
            verdict.problems.append(f"score {name} is not in both scores.json and scores.parquet")
            continue
        values = torch.tensor(rows.pivot_table("value", "example", "layer", dropna=False).to_numpy(dtype=float))
        nothing = torch.zeros(len(values), dtype=torch.bool)
        expected = summarise({name: Score(values, ("example", "layer"))}, nothing, {name: spec})[name]
        layers = summary[name]["layers"]
        pairs = ([summary[name]["mean"], *layers], [expected["mean"], *expected["layers"][: len(layers)]])
        if _distance(*(np.array(pair, dtype=float) for pair in pairs)).max() > 1e-6:
            verdict.problems.append(f"scores.json has another mean of {name} than scores.parquet gives")


def _sample(config: Config, count: int, queries: int | None) -> list[int]:
    """Indices of the queries to compute again: another random sample each time."""
    mechanisms = {config.finetune.mechanism, reference_config(config).finetune.mechanism}
    if (
        queries is None or queries >= count or not mechanisms <= {"gradient_descent", "none"}
    ):  # others may learn from the queries
        return list(range(count))
    return sorted(np.random.default_rng().permutation(count)[:queries].tolist())


def _needs_all(spec: ScoreConfig) -> bool:
    """Whether a query's score depends on the other queries, or on noise that is drawn for all at once."""
    return needs_all_examples(spec) or any(path.startswith("random_") for path in spec.inputs.values())


def _unknown_settings(config: Config) -> list[str]:
    """The settings of a run that the naive way does not know."""
    unknown, ignored = [], (*_ANY_VALUE, *LOOKS["finetune"])
    for setting in fields(FinetuneConfig):
        value = getattr(config.finetune, setting.name)
        default = None if setting.default is MISSING else setting.default
        if setting.name not in ignored and value not in (default, *_NAIVE_VALUES.get(setting.name, ())):
            unknown.append(f"finetune.{setting.name}={value}")
    if config.protocol.step != "demonstration":
        unknown.append(f"protocol.step={config.protocol.step}")
    if config.runtime.placement != "single" or "_from_" in config.runtime.dtype:
        unknown.append(f"runtime.placement={config.runtime.placement} with runtime.dtype={config.runtime.dtype}")
    return unknown if reference_config(config) is config else [*unknown, f"reference={config.reference.name}"]


def _naive_evidence(naive: Naive, own: Evidence, first_layer_sees_context: bool) -> Evidence:
    """The evidence by the naive way, with the labels and random baselines of the program's own."""
    zsl, icl = naive.record(naive.prompts.bos), naive.record(naive.prompts.context())
    if not first_layer_sees_context:  # the two differ by rounding alone, which has no direction to compare
        icl.attention_scores[:, 0] = zsl.attention_scores[:, 0]
    with naive.finetuned() as trace:
        ft = naive.record(naive.prompts.bos)
    if trace.diverged_at is not None:
        ft = replace(ft, **{name: torch.full_like(tensor, torch.nan) for name, tensor in ft.tensors().items()})
    facts = {name: own.facts[name] for name in ("labels", "first_label_token", "random_update") if name in own.facts}
    return Evidence({"zsl": zsl, "icl": icl, "ft": ft}, trace, facts)


def _has_inputs(evidence: Evidence, spec: ScoreConfig) -> bool:
    try:
        return all(evidence.lookup(path) is not None for path in spec.inputs.values())
    except KeyError:
        return False


def _frame(scores: Mapping[str, ScoreConfig], evidence: Evidence, sample: Sequence[int]) -> pd.DataFrame:
    frame = to_frame(measure(scores, evidence))
    example = frame["example"].to_numpy()
    return frame.assign(example=np.where(example < 0, -1, np.array(sample)[example.clip(min=0)]))


def _compare(
    name: str, stored: pd.DataFrame, own: pd.DataFrame, naive: pd.DataFrame | None, exact: bool, factor: float
) -> ScoreCheck:
    """Compare a score's stored values with those computed again; `exact` if each value has to agree."""

    def distances(again: pd.DataFrame, defined: bool) -> np.ndarray:
        rows = again[(again["score"] == name) & (again["value"].notna() | (not defined))]
        pairs = rows.merge(stored, "left", ["score", "example", "layer"], suffixes=("", "_stored"))
        return _distance(pairs["value_stored"].to_numpy(), pairs["value"].to_numpy())

    far = distances(own, defined=False)
    holds = far.max() <= TOLERANCE if exact else far.mean() <= MEAN_TOLERANCE * factor
    further = np.array([]) if naive is None else distances(naive, defined=True)
    holds = holds and (not further.size or further.mean() <= MEAN_TOLERANCE * factor)
    both = (float(further.max()), float(further.mean())) if further.size else None
    return ScoreCheck(name, (float(far.max()), float(far.mean())), both, bool(holds))


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances relative to the larger of the two values and 1; infinite where only one is defined."""
    with np.errstate(invalid="ignore"):
        far = np.abs(a - b) / np.fmax(1.0, np.fmax(np.abs(a), np.abs(b)))
    return np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.where(np.isnan(far), np.inf, far))
