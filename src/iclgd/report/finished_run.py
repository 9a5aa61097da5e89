"""What did one finished run find? Its files as they are, and the questions that tables and figures ask of them."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    def draw(self) -> tuple[int, int, int]:
        """What another run of the same settings differs in: seed, permutation, seed of untrained weights."""
        return self.seed, self.permutation, int(self.config["model"].get("weights_seed") or 0)

    @property
    def settings(self) -> dict[str, Any]:
        """What published numbers are looked up by."""
        return {
            "model.name": self.model,
            "model.weights": self.weights,
            "task.name": self.task,
            "task.shots": self.shots,
            "finetune.name": self.variant,
        }

    @property
    def diverged(self) -> bool:
        """Whether finetuning ended in a loss that was not finite."""
        return bool(self.status.get("diverged", False))

    def identity(self) -> dict[str, Any]:
        """What tells this run from others, by the names that frames and the page use."""
        keys = ("task", "model", "weights", "variant", "lr", "shots", "seed", "permutation", "diverged")
        return {"run": self.name, **{key: getattr(self, key) for key in keys}}

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

    def limits(self, score: str) -> tuple[float, float]:
        """The least and the largest possible value of a score, as its yaml says; infinite where it says nothing."""
        chosen = ((self.config.get("metric") or {}).get("scores") or {}).get(score) or {}
        low, high = chosen.get("limits") or (-math.inf, math.inf)
        return float(low), float(high)

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
        return read_json(self.folder / "prompts.json")

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


def score_label(score: str, labels: Mapping[str, str]) -> str:
    """What a score is called: by its yaml's label, by the papers' name, or by its own; children after their group."""
    group, _, child = score.partition("/")
    label = labels.get(score) or labels.get(group) or LABELS.get(group, group)
    return f"{label} {child}" if child and not labels.get(score) else label


def read_json(path: Path) -> dict[str, Any]:
    """A mapping from a JSON file.

    Raises:
        BrokenRun: there is none.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenRun(f"{path.name} cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise BrokenRun(f"{path.name} holds no mapping")
    return content


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _number(value: Any) -> float:
    return NAN if value is None or not math.isfinite(float(value)) else float(value)


def _pair(value: Any) -> tuple[float, float]:
    low, high = value or (None, None)
    return _number(low), _number(high)
