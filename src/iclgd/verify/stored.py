"""Compares a run's stored files with results computed again, and puts each difference into words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from omegaconf import OmegaConf

from iclgd.common.paths import config_files
from iclgd.common.records import Score
from iclgd.config import Config, ScoreConfig, as_dict
from iclgd.metrics import summarise
from iclgd.runs.folder import RunFolder
from iclgd.runs.inputs import LOOKS
from iclgd.runs.schema import Status
from iclgd.verify.content import SHOWN, TOLERANCE, apart, flat, of_all, read_numbers
from iclgd.verify.numbers import Again


def shown_otherwise(config: Config) -> Iterator[str]:
    """Where the run's variant and scores differ from conf/ here, which anybody may set.

    Labels, roles and limits move no number, but a table with other ones says something else.
    """
    own, looks = as_dict(config), {name: getattr(ScoreConfig(), name) for name in LOOKS["score"]}
    scores = {name: spec for file in config_files("metric").values() for name, spec in _settings(file).items()}
    pairs = [(f"metric.scores.{name}", spec, scores.get(name)) for name, spec in own["metric"]["scores"].items()]
    pairs = [(place, spec, looks | here) for place, spec, here in pairs if here is not None]
    variant = config_files("finetune").get(config.finetune.name)
    pairs += [("finetune", own["finetune"], _settings(variant))] if variant else []
    for place, mine, theirs in pairs:
        for key in sorted(theirs.keys() & mine.keys() - {"lr"}):
            if mine[key] != theirs[key]:
                yield f"set in this run: {place}.{key}={mine[key]} (conf here has {theirs[key]})"


def _settings(file: Path) -> Mapping[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(file)))


def rows_of(stored: pd.DataFrame, again: Again) -> Iterator[str]:
    """Whether scores.parquet has each value once: of all queries, in the layers that there are."""
    for score, rows in stored.groupby("score"):
        rows: Any
        layers = again.own.loc[again.own["score"] == score, "layer"]
        examples = range(again.count) if rows["example"].max() >= 0 else [-1]
        expected = {(example, layer) for example in examples for layer in (layers if len(layers) else rows["layer"])}
        if len(rows) != len(expected) or set(zip(rows["example"], rows["layer"], strict=True)) != expected:
            yield f"scores.parquet has other rows of {score} than the run's queries and layers"


def summary_of(folder: RunFolder, stored: pd.DataFrame, specs: Mapping[str, ScoreConfig]) -> Iterator[str]:
    """Whether scores.json says what scores.parquet does: means, layers, intervals and counts."""
    try:
        summary = folder.read_json("scores.json")
        for score in sorted({*summary, *specs}):
            told, rows = summary.get(score), stored.loc[stored["score"] == score]
            if told is None or score not in specs or rows.empty:
                yield f"score {score} is not in all of config.yaml, scores.json and scores.parquet"
                continue
            made = _summary(rows, specs[score])
            if not _same_numbers(flat({name: told.get(name, "none") for name in made}), flat(made)):
                yield f"scores.json has another {score} than scores.parquet gives"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        yield f"scores.json cannot be read: {error}"


def _summary(rows: Any, spec: ScoreConfig) -> dict[str, Any]:
    """What scores.json says of a score, as far as it follows from its values."""
    values = torch.tensor(rows.pivot_table("value", "example", "layer", dropna=False).to_numpy(dtype=float))
    axes = [name for name in ("example", "layer") if rows[name].max() >= 0]
    values = values.reshape([n for n, name in zip(values.shape, ("example", "layer"), strict=True) if name in axes])
    score, nobody = Score(values, tuple(axes)), torch.zeros(len(values) if axes[:1] == ["example"] else 0) > 0
    made = summarise({"": score}, nobody, {"": spec})[""]
    known = {"mean", "layers", "n", "ci", *(["undefined"] if {*spec.axes} <= {"example", "layer"} else [])}
    return {name: made[name] for name in made if name in known}


def _same_numbers(told: Mapping[str, float], made: Mapping[str, float]) -> bool:
    return told.keys() == made.keys() and all(apart(at, told[at], value) <= 1e-6 for at, value in made.items())


def numbers_of(folder: RunFolder, status: Status, config: Config, again: Again, same: bool) -> Iterator[str]:
    """Whether the other files' numbers are those computed again, as far as rounding goes."""
    names, allowed = {path.partition("/")[0] for path in again.content}, {} if same else again.moves
    absent = [name for name in SHOWN if name not in (names if again.whole else of_all(config))]
    yield from (f"{name} is not of such a run" for name in absent if (folder.path / name).exists())
    for name in sorted(names):
        made = {path: value for path, value in again.content.items() if path.startswith(f"{name}/")}
        try:
            told = read_numbers(folder, status, name)
        except (OSError, ValueError, TypeError) as error:
            yield f"{name} cannot be read: {error}"
            continue
        if name == "status.json":
            told = {path: value for path, value in told.items() if path in made}
        other = [path for path in {**made, **told} if (path in made) != (path in told)]
        other += [p for p in made if p in told and apart(p, told[p], made[p]) > TOLERANCE + allowed.get(p, 0.0)]
        if other:
            where = ", ".join(path.removeprefix(f"{name}/") for path in other[:3])
            yield f"{name} is not what is computed again: {where}"


def recordings_of(folder: RunFolder, again: Again) -> Iterator[str]:
    """Whether the recordings of the queries asked again are those made again, layer by layer."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder.path / "recordings.safetensors"
    if not path.is_file():
        return
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        yield f"recordings.safetensors cannot be read: {error}"
        return
    made, *otherwise = again.recordings
    for name in sorted({*stored, *made}):
        if name not in stored or name not in made:
            yield f"recordings.safetensors has {'no' if name in made else 'a further'} {name}"
            continue
        there = stored[name]
        if name != "training_query_vectors":
            if len(there) != again.count:
                yield f"recordings.safetensors has {len(there)} queries of {name}, not {again.count}"
                continue
            there = there[again.sample]
        far = _by_layer(there, made[name])
        moves = [_by_layer(other[name], made[name]) for other in otherwise]
        allowed = TOLERANCE + 4 * sum(move for move in moves if move.isfinite().all())
        if not (far <= allowed).all():
            yield f"recordings.safetensors has another {name}, by {far.max():.2g} of its size"


def _by_layer(there: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """How far each query's layers lie apart, relative to their size; infinite where other parts are undefined."""
    width = min(there.shape[-1], made.shape[-1])  # padded to the longest query, which may not be asked here
    a, b = (tensor[..., :width].double() for tensor in (there, made))
    padded = there[..., width:].isnan().all() and made[..., width:].isnan().all()
    if there.shape[:-1] != made.shape[:-1] or not padded or not torch.equal(a.isnan(), b.isnan()):
        return torch.tensor(math.inf)
    kept = min(2, a.ndim - 1)  # example and layer
    a, b = (tensor.nan_to_num().flatten(kept) for tensor in (a, b))
    return (a - b).norm(dim=-1) / b.norm(dim=-1).clamp(min=1e-30)
