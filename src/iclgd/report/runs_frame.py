"""What did the finished runs find? Reads run folders; a broken or unfinished one is listed, never fatal."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SETTINGS = ("zsl", "icl", "ft")
NAN = float("nan")


class ReportError(ValueError):
    """Folders that no report can be made of; the message says what was looked for and what to do."""


class BrokenRun(ValueError):
    """A run folder that cannot be read; the message names the file."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval, NaN where undefined.

    Attributes:
        mean: of the defined values.
        low: lower end of the interval.
        high: upper end of the interval.
        n: how many examples there were.
        undefined: how many of their values had no direction (a zero update) and are left out of the mean.
    """

    mean: float
    low: float
    high: float
    n: int = 0
    undefined: int = 0


@dataclass(frozen=True)
class FinishedRun:
    """One run folder whose status is `done`.

    Attributes:
        folder: where it lies; its name is the run's id.
        config: the content of config.yaml.
        environment: the content of environment.json.
        scores: the content of scores.json.
        status: the content of status.json.
    """

    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    scores: Mapping[str, Any]
    status: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The run's id."""
        return self.folder.name

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.config["task"]["name"])

    @property
    def model(self) -> str:
        """The model's name without the owner or the folder before it."""
        return str(self.config["model"]["name"]).rstrip("/").rsplit("/", 1)[-1]

    @property
    def weights(self) -> str:
        """`pretrained`, `keep_embeddings` or `random`."""
        return str(self.config["model"].get("weights", "pretrained"))

    @property
    def variant(self) -> str:
        """The finetuning variant."""
        return str(self.config["finetune"]["name"])

    @property
    def lr(self) -> float:
        """The learning rate."""
        return float(self.config["finetune"]["lr"])

    @property
    def shots(self) -> int:
        """How many demonstrations were asked for."""
        return int(self.config["task"]["shots"])

    @property
    def seed(self) -> int:
        """Which demonstrations were drawn."""
        return int(self.config.get("seed", 0))

    @property
    def permutation(self) -> int:
        """Which order they stand in."""
        return int(self.config["task"].get("permutation", 0))

    @property
    def diverged(self) -> bool:
        """Whether finetuning ended in a loss that was not finite."""
        return bool(self.status.get("diverged", False))

    @functools.cached_property
    def entries(self) -> dict[str, Mapping[str, Any]]:
        """Every score by the name it has in scores.parquet, grouped ones as `accuracy/icl`: mean, layers, n, ci, ..."""
        entries: dict[str, Mapping[str, Any]] = {}
        for name, entry in self.scores.items():
            if "mean" in entry:
                entries[name] = entry
                continue
            ci, undefined = entry.get("ci") or {}, entry.get("undefined") or {}
            for child, value in entry.items():
                if isinstance(value, Mapping) and "mean" in value:
                    entries[f"{name}/{child}"] = value
                elif child not in ("ci", "n", "undefined"):
                    entries[f"{name}/{child}"] = {
                        "mean": value,
                        "ci": ci.get(child),
                        "n": entry.get("n"),
                        "undefined": undefined.get(child),
                    }
        return entries

    def score_names(self) -> list[str]:
        """The scores that were measured, as scores.json orders them, without the accuracies."""
        return [name for name in self.entries if not name.startswith("accuracy/")]

    def label(self, score: str) -> str:
        """What tables and figures call a score."""
        chosen = (self.config.get("metric") or {}).get("scores") or {}
        return score_label(score, {name: str((entry or {}).get("label") or "") for name, entry in chosen.items()})

    def estimate(self, score: str, over: str = "all") -> Estimate:
        """A score's mean over examples and layers, or an accuracy (`accuracy/icl`).

        Args:
            score: a key of `entries`.
            over: `all` examples, or only those that are `flipped` from wrong to right by both.
        """
        entry = self.entries.get(score) or {}
        entry = entry if over == "all" else entry.get("flipped") or {}
        low, high = _pair(entry.get("ci"))
        return Estimate(
            _number(entry.get("mean")), low, high, int(entry.get("n") or 0), int(entry.get("undefined") or 0)
        )

    def layers(self, score: str) -> list[float]:
        """A score's mean over examples in every layer; empty where it has no layers."""
        return [_number(value) for value in (self.entries.get(score) or {}).get("layers") or []]

    def accuracies(self) -> dict[str, Estimate]:
        """Accuracy of zsl, icl and ft, where measured."""
        return {s: self.estimate(f"accuracy/{s}") for s in SETTINGS if f"accuracy/{s}" in self.entries}

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
        return _read_json(self.folder / "prompts.json")

    def table(self, name: str) -> pd.DataFrame | None:
        """The content of NAME.parquet, or None where the run has none."""
        import pandas as pd

        path = self.folder / f"{name}.parquet"
        return pd.read_parquet(path) if path.is_file() else None


LABELS = {
    "sim_aou": "SimAOU",
    "sim_aou_norm": "SimAOU (norm.)",
    "sim_aou_random": "Random SimAOU",
    "sim_am": "SimAM",
    "sim_am_zsl": "ZSL SimAM",
    "sim_am_delta": "SimAM_Δ",
    "alpha": "\N{GREEK SMALL LETTER ALPHA}",
    "rec2ftp": "Rec2FTP",
    "gradient_norm": "Gradient norm",
}


@dataclass(frozen=True)
class Runs:
    """What a look into folders found.

    Attributes:
        finished: every readable run whose status is `done`, by path.
        left_out: the other run folders, each with the reason.
    """

    finished: tuple[FinishedRun, ...]
    left_out: tuple[tuple[Path, str], ...]


def read_runs(folders: Iterable[Path]) -> Runs:
    """The finished runs in or below the given folders.

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
    finished, left_out = [], []
    for folder in sorted(found.values()):
        try:
            finished.append(read_run(folder))
        except BrokenRun as error:
            left_out.append((folder, str(error)))
    return Runs(tuple(finished), tuple(left_out))


def read_run(folder: Path) -> FinishedRun:
    """One finished run.

    Raises:
        BrokenRun: it is not finished, or a file of it is missing or cannot be read.
    """
    status = _read_json(folder / "status.json")
    state = status.get("state")
    if state != "done":
        reason = str(status.get("error") or "").strip().splitlines()
        raise BrokenRun(f"is {state}" + (f": {reason[0]}" if reason else ""))
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise BrokenRun(f"config.yaml cannot be read: {_first_line(error)}") from error
    for section, key in (
        ("task", "name"),
        ("task", "shots"),
        ("model", "name"),
        ("finetune", "name"),
        ("finetune", "lr"),
    ):
        if not isinstance(config, dict) or key not in (config.get(section) or {}):
            raise BrokenRun(f"config.yaml has no {section}.{key}")
    run = FinishedRun(
        folder, config, _read_json(folder / "environment.json"), _read_json(folder / "scores.json"), status
    )
    try:
        _ = run.lr, run.shots, run.seed, run.permutation, tidy([run])
    except (TypeError, ValueError, AttributeError) as error:
        raise BrokenRun(f"config.yaml or scores.json holds something unexpected: {_first_line(error)}") from error
    return run


def tidy(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """One row for each run, score and layer; `layer` is None for the mean over all layers."""
    rows = []
    for run in runs:
        who = {
            "run": run.name,
            "task": run.task,
            "model": run.model,
            "weights": run.weights,
            "variant": run.variant,
            "lr": run.lr,
            "shots": run.shots,
            "seed": run.seed,
            "permutation": run.permutation,
            "diverged": run.diverged,
        }
        for name in run.entries:
            whole = run.estimate(name)
            rows.append(who | {"score": name, "layer": None} | vars(whole))
            for layer, mean in enumerate(run.layers(name)):
                rows.append(who | {"score": name, "layer": layer} | vars(Estimate(mean, NAN, NAN)))
    return rows


def frame(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """The same as a frame: run, task, model, weights, variant, lr, shots, seed, permutation, score, layer, mean, ..."""
    import pandas as pd

    return pd.DataFrame(tidy(runs))


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config as dotted keys; lists stay whole."""
    keys: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            keys |= flat(value, f"{prefix}{key}.")
        else:
            keys[f"{prefix}{key}"] = value
    return keys


def score_label(score: str, labels: Mapping[str, str]) -> str:
    """What a score is called: by its yaml's label, by the papers' name, or by its own; children after their group."""
    group, _, child = score.partition("/")
    label = labels.get(score) or labels.get(group) or LABELS.get(group, group)
    return f"{label} {child}" if child and not labels.get(score) else label


def _read_json(path: Path) -> dict[str, Any]:
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
    return NAN if value is None or not math.isfinite(float(value)) else float(value)


def _pair(value: Any) -> tuple[float, float]:
    low, high = value or (None, None)
    return _number(low), _number(high)
