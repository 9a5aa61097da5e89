"""The verdict on a finished run, from its folder alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from iclgd.config import Config, ConfigError, as_dict, typed
from iclgd.evidence.outcome import model_facts
from iclgd.evidence.preparation import prepare
from iclgd.evidence.reference import reference_prompts
from iclgd.models.language_model import LanguageModel
from iclgd.models.loading import load
from iclgd.runs import files
from iclgd.runs.environment import processor
from iclgd.runs.folder import RunFolder
from iclgd.runs.inputs import CIRCUMSTANCES, INPUTS, Inputs, kind_of, run_id
from iclgd.runs.schema import DamagedRun, State, Status, recorded_config
from iclgd.tasks import as_json, encode
from iclgd.verify.content import SHOWN, TABLES, TOLERANCE, distance
from iclgd.verify.numbers import KEY, Again, compute
from iclgd.verify.stored import numbers_of, recordings_of, rows_of, shown_otherwise, summary_of

_ALWAYS = ("config.yaml", INPUTS, "environment.json", "prompts.json", "scores.json", "scores.parquet", *TABLES)


@dataclass
class ScoreLine:
    """One score: the largest distance of its stored values from those computed again."""

    score: str
    own: float  # by the program's own way, on any layer of any query asked again
    naive: float | None  # by the naive way; None where that was not had
    explained: float  # how much of the larger of the two rounding explains
    rest: float  # what it does not explain
    holds: bool  # whether nothing beyond the tolerance is left


@dataclass
class Verdict:
    """What was found about one run."""

    folder: str
    problems: list[str] = field(default_factory=list)  # why it does not hold; empty where it does
    # what differs without harm, such as versions, and what could not be checked
    notes: list[str] = field(default_factory=list)
    queries: int = 0  # how many queries were asked again
    scores: list[ScoreLine] = field(default_factory=list)  # score by score

    @property
    def holds(self) -> bool:
        """Whether the run is what it says."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"holds": self.holds, **asdict(self)}


def verify(path: Path, queries: int | None = 8) -> Verdict:
    """Check a run's files, inputs, prompts, numbers and recordings.

    So many queries are asked again; None asks all.
    """
    verdict, folder = Verdict(str(path)), RunFolder(path)
    status = folder.status()
    if status is None or status.state is not State.done:
        verdict.problems.append(f"it is {status.state if status else 'no run'}, not done")
        return verdict
    _check_files(folder, status, verdict)
    threads = torch.get_num_threads()
    try:
        _check_content(folder, status, queries, verdict)
    except (ConfigError, OSError, ValueError) as error:
        verdict.problems.append(f"it cannot be computed again: {error}")
    except Exception as error:  # whatever damaged files, models and functions of the user's can raise
        verdict.problems.append(f"it cannot be checked: {type(error).__name__}: {error}")
    finally:
        torch.set_num_threads(threads)
    return verdict


def _check_content(folder: RunFolder, status: Status, queries: int | None, verdict: Verdict) -> None:
    config = typed(recorded_config(folder.path))
    before, made_on = _object(folder, INPUTS), _object(folder, "environment.json")
    if not before:
        raise ConfigError(f"{INPUTS} does not say what the run was made of")
    _check_settings(config, status, before, verdict)
    here = _placed(config, before, verdict)
    prepared = prepare(here)
    differing = [*_check_inputs(prepared.inputs, before, verdict), *_other_machine(made_on)]
    verdict.notes += [f"differs here: {what}" for what in differing]
    torch.set_num_threads(int(made_on.get("threads") or torch.get_num_threads()))
    model = load(here.model, here.runtime)
    prompts = encode(prepared.drawn, here, model.tokenizer, model.window)
    _check_prompts(folder, as_json(prompts, reference_prompts(here, model, prompts, prepared.reference)), verdict)
    _check_environment(made_on, model, before, verdict)
    again = compute(here, prepared, model, prompts, queries)
    same = not differing and model.device.type == "cpu"  # a GPU need not sum in the same order twice
    _check_numbers(folder, again, here, same, verdict)
    verdict.problems += numbers_of(folder, status, here, again, same)
    verdict.problems += recordings_of(folder, again)


def _object(folder: RunFolder, name: str) -> dict[str, Any]:
    """The content of a JSON file that holds an object; empty where it does not, which `_check_files` may have said."""
    try:
        content: Any = folder.read_json(name)
    except DamagedRun:
        content = None
    return content if isinstance(content, dict) else {}


def _check_files(folder: RunFolder, status: Status, verdict: Verdict) -> None:
    shown = [name for name in (*SHOWN, "recordings.safetensors") if (folder.path / name).exists()]
    for name in sorted({*status.files, *_ALWAYS, *shown}):
        made, path = status.files.get(name), folder.path / name
        if made is None:
            verdict.problems.append(f"{name} is not among the files that status.json vouches for")
        elif not path.is_file():
            verdict.problems.append(f"{name} is missing")
        elif files.sha256(path) != made["sha256"]:
            verdict.problems.append(f"{name} is not what the run wrote")


def _check_settings(config: Config, status: Status, before: Mapping[str, Any], verdict: Verdict) -> None:
    name = run_id(as_dict(config))
    if name != status.run_id or name != before.get("settings"):
        verdict.problems.append(
            f"config.yaml is of run {name}, status.json of {status.run_id or 'none'}, "
            f"fingerprint.json of {before.get('settings')}"
        )
    dtype = config.runtime.dtype
    if dtype not in ("auto", "model", before.get("dtype")):
        verdict.problems.append(f"config.yaml has runtime.dtype={dtype}, fingerprint.json {before.get('dtype')}")
    verdict.notes += shown_otherwise(config)


def _placed(config: Config, before: Mapping[str, Any], verdict: Verdict) -> Config:
    """The run on this machine, in the precision that it was made in."""
    runtime = replace(config.runtime, dtype=str(before.get("dtype") or config.runtime.dtype))
    kind, _, number = runtime.device.partition(":")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        verdict.notes.append(f"runtime.device={runtime.device} is not here: computed on {device}")
        runtime = replace(runtime, device=device)
    paths, data = config.paths, config.paths.data_dir
    if data and not Path(data).expanduser().is_dir():
        paths = replace(paths, data_dir=os.environ.get("ICLGD_DATA_DIR"))
    return replace(config, runtime=runtime, paths=paths)


def _check_environment(
    told: Mapping[str, Any], model: LanguageModel, before: Mapping[str, Any], verdict: Verdict
) -> None:
    """environment.json speaks of the model and of the versions that the fingerprint names."""
    made = {**model_facts(model), "dtype": str(model.identity["dtype"])}
    other = [name for name in made if files.plain(made[name]) != told.get(name)]
    for name, version in (told.get("packages") or {}).items():
        if before.get(f"version of {name}", version) not in (version, version.partition("+")[0]):
            other.append(f"version of {name}")
    if other:
        verdict.problems.append(f"environment.json has another {', '.join(other)} than the model and fingerprint.json")


def _check_inputs(inputs: Inputs, before: Mapping[str, Any], verdict: Verdict) -> list[str]:
    """Inputs that have changed are problems; returns the versions, code, precision and device that differ."""
    stored = {name: value for name, value in before.items() if kind_of(name) not in CIRCUMSTANCES}
    rest = {name: value for name, value in before.items() if name not in stored}
    kinds = {kind_of(name) for name in inputs.parts} - {*CIRCUMSTANCES, "settings"}
    stored.pop("settings", None)  # checked by itself; precision and machine are set here
    verdict.problems += [f"changed since: {change}" for change in inputs.only(*kinds).changes(stored)]
    return inputs.only(*CIRCUMSTANCES).changes(rest)


def _other_machine(made_on: Mapping[str, Any]) -> list[str]:
    """The processor and the build of PyTorch where they differ, on which the last digits of sums depend."""
    before = {"processor": made_on.get("processor"), "build of torch": (made_on.get("packages") or {}).get("torch")}
    here = {"processor": processor(), "build of torch": metadata.version("torch")}
    return [f"the {name} ({before[name]}, now {now})" for name, now in here.items() if before[name] != now]


def _check_prompts(folder: RunFolder, content: Mapping[str, Any], verdict: Verdict) -> None:
    try:
        stored = folder.read_json("prompts.json")
    except (OSError, ValueError) as error:
        verdict.problems.append(f"prompts.json cannot be read: {error}")
        return
    made = json.loads(files.to_json(content))
    for name in {**made, **stored}:
        if made.get(name) != stored.get(name):
            verdict.problems.append(f"prompts.json has other {name} than the settings and data give")


def _check_numbers(folder: RunFolder, again: Again, config: Config, same: bool, verdict: Verdict) -> None:
    try:
        stored: pd.DataFrame = pd.read_parquet(folder.path / "scores.parquet").loc[:, [*KEY, "value"]]
    except Exception as error:  # whatever a damaged file can cause
        verdict.problems.append(f"scores.parquet cannot be read: {error}")
        return
    verdict.queries = len(again.sample)
    if again.unknown:
        only = "the naive way does not know these, which are checked by the program's own way only: "
        verdict.notes.append(only + ", ".join(again.unknown))
    if again.left_out:
        verdict.notes.append("these need all queries (--all): " + ", ".join(again.left_out))
    verdict.problems += rows_of(stored, again)
    verdict.problems += summary_of(folder, stored, config.metric.scores)
    for score in dict.fromkeys(map(str, again.own["score"])):
        line = _line(score, stored, again, same)
        verdict.scores.append(line)
        if not line.holds:
            verdict.problems.append(f"score {score} is off by {line.rest:.2g} more than rounding explains")


def _line(score: str, stored: pd.DataFrame, again: Again, same: bool) -> ScoreLine:
    """What is said of a score; `same`: whether the run was made where this is, and as this would make it."""
    own = _values(again.own, score)

    def along(frame: pd.DataFrame) -> np.ndarray:  # a value that is missing counts as undefined
        values = _values(frame, score)
        return np.array([values.get(place, np.nan) for place in own])

    there, otherwise = along(stored), along(again.otherwise)
    ways = [(distance(there, along(again.own)), along(again.batched) if same else otherwise)]
    if again.naive is not None and _values(again.naive, score):
        ways.append((distance(there, along(again.naive)), otherwise))
    with np.errstate(invalid="ignore"):
        rests = [np.where(by == np.inf, 0.0, np.maximum(far - by, 0.0)) for far, by in ways]
    far, by = max(ways, key=lambda way: way[0].max())
    worst, rest = int(np.argmax(far)), float(np.max(rests))
    return ScoreLine(
        score=score,
        own=float(ways[0][0].max()),
        naive=float(ways[1][0].max()) if len(ways) > 1 else None,
        explained=float(min(by[worst], far[worst])),
        rest=rest,
        holds=rest <= TOLERANCE,
    )


def _values(frame: pd.DataFrame, score: str) -> dict[tuple[int, int], float]:
    """A score's values by query and layer."""
    chosen = (frame["score"] == score).to_numpy()
    columns = [frame[name].to_numpy()[chosen].tolist() for name in ("example", "layer", "value")]
    return {(example, layer): value for example, layer, value in zip(*columns, strict=True)}
