"""Finished runs as their folders hold them; a broken or unfinished folder is listed, never fatal."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from iclgd.runs import varied

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

NAN = float("nan")
_NEEDED = ("model.name", "task.name", "task.shots", "finetune.name", "finetune.lr", "seed")
# Six to ten times as fast as the one written in Python, where libyaml was there when PyYAML was built.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class ReportError(ValueError):
    """Folders that no report can be made of; the message says what was looked for and what to do."""


class BrokenRun(ValueError):
    """A run folder that cannot be read; the message names the file."""


@dataclass(frozen=True)
class Record:
    """One score of one run, NaN where undefined.

    Attributes:
        mean: over examples in each layer, then over layers.
        low: lower end of the 95 % interval over queries.
        high: upper end.
        n: how many examples there were.
        undefined: how many of their values are left out.
        layers: (mean, low, high) of each layer; empty where the score has none.
    """

    mean: float
    low: float
    high: float
    n: int
    undefined: int
    layers: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, repr=False)
class FinishedRun:
    """One run folder whose status is `done`.

    Attributes:
        folder: where it lies; its name is the run's id.
        config: the content of config.yaml.
        environment: the content of environment.json.
        scores: the content of scores.json: by score {"mean", "layers", "n", "undefined", "ci", ...}.
        status: the content of status.json.
        settings: what decided what was measured, by Hydra name.
        records: the scores by name and examples ("all" or "flipped").
    """

    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    scores: Mapping[str, Any]
    status: Mapping[str, Any]
    settings: Mapping[str, Any]
    records: Mapping[tuple[str, str], Record]

    def __repr__(self) -> str:
        names = ("model.name", "task.name", "finetune.name", "finetune.lr", "task.shots", "seed")
        said = " ".join(f"{name}={varied.as_text(self.settings[name])}" for name in names)
        return f"FinishedRun({self.name}: {said}; {len(self.scores)} scores, {self.state})"

    @property
    def name(self) -> str:
        """The run's id."""
        return self.folder.name

    @property
    def state(self) -> str:
        """`diverged` (the loss was not finite), `unstable` (no result to build on) or `sane`."""
        return next((kind for kind in ("diverged", "unstable") if self.status.get(kind)), "sane")

    @property
    def draw(self) -> tuple[Any, ...]:
        """What is random: the seed, and that of weights which were drawn. Another order is no other draw."""
        return self.settings["seed"], self.settings.get("model.weights_seed")

    @property
    def frame(self) -> pd.DataFrame:
        """A row for each score and layer: see `iclgd.report.results.Results.frame`."""
        from iclgd.report.results import Results

        return Results((self,)).frame

    def mean(self, score: str, examples: str = "all") -> float:
        """A score's mean over examples and layers; NaN where it was not measured."""
        record = self.records.get((score, examples))
        return NAN if record is None else record.mean

    def layers(self, score: str) -> list[float]:
        """A score's mean over examples in every layer; empty where it has no layers."""
        record = self.records.get((score, "all"))
        return [] if record is None else [mean for mean, _, _ in record.layers]

    @functools.cached_property
    def values(self) -> dict[str, np.ndarray]:
        """Unaveraged values by score, [example, layer], one layer where it has none; empty without scores.parquet."""
        table = self.table("scores")
        if table is None:
            return {}
        return {
            str(name): part.pivot(index="example", columns="layer", values="value").to_numpy(dtype=float)
            for name, part in table.groupby("score", sort=False)
        }

    def prompts(self) -> dict[str, Any]:
        """The content of prompts.json."""
        return _json(self.folder / "prompts.json")

    def table(self, name: str) -> pd.DataFrame | None:
        """The content of NAME.parquet, or None where the run has none."""
        import pandas as pd

        path = self.folder / f"{name}.parquet"
        return pd.read_parquet(path) if path.is_file() else None


def read_runs(folders: Iterable[Path]) -> tuple[tuple[FinishedRun, ...], tuple[tuple[Path, str], ...]]:
    """The finished runs in or below the given folders, by path, and the other run folders, each with the reason.

    Raises:
        ReportError: a folder does not exist.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"{folder} is no folder: name a run folder or a sweep's, such as outputs/first_look")
        for status in folder.rglob("status.json"):
            hidden = any(part.startswith(".") for part in status.relative_to(folder).parts)
            if not hidden:
                found.setdefault(status.parent.resolve(), status.parent)
    finished: dict[object, FinishedRun] = {}
    left_out = []
    for folder in sorted(found.values()):
        try:
            run = read_run(folder)
        except BrokenRun as error:
            left_out.append((folder, str(error)))
            continue
        first = finished.setdefault(run.status.get("run_id") or folder, run)
        if first is not run:  # made in another sweep too: counted twice it would pass for a second draw
            left_out.append((folder, f"is the same run as {first.folder}"))
    return tuple(finished.values()), tuple(left_out)


def read_run(folder: Path) -> FinishedRun:
    """One finished run.

    Raises:
        BrokenRun: it is not finished, or a file of it is missing or cannot be read.
    """
    status = _json(folder / "status.json")
    state = status.get("state")
    if state != "done":
        reason = str(status.get("error") or "").strip().splitlines()
        raise BrokenRun(f"is {state}" + (f": {reason[0]}" if reason else ""))
    try:
        config = yaml.load((folder / "config.yaml").read_bytes(), _Loader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise BrokenRun(f"config.yaml cannot be read: {_first_line(error)}") from error
    environment, scores = _json(folder / "environment.json"), _json(folder / "scores.json")
    try:
        settings = varied.settings(config, environment.get("dtype"))
        lacking = [key for key in _NEEDED if settings.get(key) is None]
        if lacking:
            raise KeyError(lacking[0])
        settings |= {"finetune.lr": float(settings["finetune.lr"]), "task.shots": int(settings["task.shots"])}
    except KeyError as error:
        raise BrokenRun(f"config.yaml has no {error.args[0]}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise BrokenRun(f"config.yaml holds something unexpected: {_first_line(error)}") from error
    return FinishedRun(folder, config, environment, scores, status, settings, _records(scores))


def _records(scores: Mapping[str, Any]) -> dict[tuple[str, str], Record]:
    records = {}
    for name, raw in scores.items():
        try:
            records[name, "all"] = _record(raw)
            if raw.get("flipped") is not None:
                records[name, "flipped"] = _record(raw["flipped"])
        except KeyError as error:
            raise BrokenRun(f"scores.json has no {error} of {name}: run it again with runtime.rerun=all") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise BrokenRun(f"scores.json holds something unexpected for {name}: {_first_line(error)}") from error
    return records


def _record(raw: Mapping[str, Any]) -> Record:
    means = raw.get("layers") or ()
    ends = raw.get("layers_ci") or ((None, None),) * len(means)
    layers = tuple((_number(mean), *_pair(pair)) for mean, pair in zip(means, ends, strict=True))
    low, high = _pair(raw.get("ci"))
    return Record(_number(raw["mean"]), low, high, int(raw.get("n") or 0), int(raw.get("undefined") or 0), layers)


def _json(path: Path) -> dict[str, Any]:
    """A mapping from a JSON file.

    Raises:
        BrokenRun: there is none.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenRun(f"{path.name} cannot be read: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise BrokenRun(f"{path.name} holds no mapping")
    return content


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _number(value: Any) -> float:
    return NAN if value is None or not math.isfinite(value) else float(value)


def _pair(value: Any) -> tuple[float, float]:
    low, high = value or (None, None)
    return _number(low), _number(high)
