"""Finished runs as their folders hold them; a folder that cannot be read is listed with the reason."""

from __future__ import annotations

import difflib
import functools
import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from iclgd.common.printable import printable
from iclgd.config.variants import ICL
from iclgd.results import catalogue
from iclgd.runs.files import DamagedRun, State, Status, of_other_types, read
from iclgd.runs.folder import RunFolder, run_folders
from iclgd.runs.varying_keys import as_text, settings_of

if TYPE_CHECKING:
    from torch import Tensor

    from iclgd.common.records import Recording


class ReportError(ValueError):
    """Results that are not there; the message says what was looked for and what to do."""


@dataclass(frozen=True, repr=False)
class FinishedRun:
    """One run folder whose status is `done`.

    Attributes:
        folder: its path, whose last part is the run's id.
        config: the content of config.yaml.
        environment: the content of environment.json.
        scores: the content of scores.json: by score {"mean", "layers", "n", "undefined", "ci", ...}.
        status: the content of status.json.
        settings: what decided what was measured, by Hydra name.
    """

    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    scores: Mapping[str, Any]
    status: Status
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        names = ("model.name", "task.name", "finetune.name", "finetune.lr", "task.shots", "seed")
        described = " ".join(f"{name}={as_text(self.settings[name])}" for name in names)
        return f"FinishedRun({self.name}: {described}; {len(self.scores)} scores, {self.state})"

    def _repr_html_(self) -> str:
        rows: Any = self.frame
        rows = rows[rows["layer"].isna() & (rows["examples"] == "all")][["score", "mean", "low", "high"]]
        return f"<p>{html.escape(repr(self))}</p>{rows.to_html(index=False, float_format='{:.4g}'.format)}"

    @property
    def name(self) -> str:
        """The run's id."""
        return self.folder.name

    @property
    def state(self) -> str:
        """`diverged` (the loss was not finite), `unstable` (no result to build on) or `sane`."""
        return next((kind for kind in ("diverged", "unstable") if self.status.facts.get(kind)), "sane")

    @property
    def planted(self) -> bool:
        """Whether a finetuning variant plays ICL's part."""
        return self.settings.get("reference.name", ICL) != ICL

    @property
    def draw(self) -> tuple[Any, ...]:
        """The seed, and that of weights which were drawn; another order of demonstrations is the same draw."""
        return self.settings["seed"], self.settings.get("model.weights_seed")

    @property
    def frame(self) -> pd.DataFrame:
        """A row for each score, examples ("all" or "flipped") and layer (NA for the mean over layers)."""
        return plain(rows_of([self]).drop(columns="run"))

    @property
    def recordings(self) -> dict[str, Recording]:
        """What was recorded, by setting (zsl, icl, ft, ...), with the errors of `tensors`."""
        from iclgd.common.records import Recording  # here, because it imports torch

        settings: dict[str, dict[str, Any]] = {}
        for name, tensor in self.tensors().items():
            setting, _, field = name.partition(".")
            if field in Recording.__dataclass_fields__:
                settings.setdefault(setting, {})[field] = tensor
        return {setting: Recording(**fields) for setting, fields in settings.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The content of recordings.safetensors, as SETTING.FIELD.

        Raises:
            ReportError: there is none, or it cannot be read.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.folder / "recordings.safetensors"
        if not path.is_file():
            remedy = "run it again with runtime.save_recordings=true and runtime.rerun=all"
            raise ReportError(f"{self.folder} kept no recordings: {remedy}")
        try:
            return load_file(path)
        except (OSError, SafetensorError, TypeError, KeyError) as error:
            raise ReportError(f"{path} cannot be read ({error}): run it again with runtime.rerun=all") from error

    def mean(self, score: str) -> float:
        """A score's mean over examples and its defined layers; a ReportError for an unknown one."""
        return float(np.array(self._score(score)["mean"], dtype=float))  # of null NaN

    def layers(self, score: str) -> list[float]:
        """A score's mean over examples in every layer, if it has any; a ReportError for an unknown one."""
        return np.array(self._score(score).get("layers") or (), dtype=float).tolist()

    def _score(self, score: str) -> Mapping[str, Any]:
        if score not in self.scores:
            close = difflib.get_close_matches(score, self.scores) or sorted(self.scores)
            raise ReportError(f"run {self.name} has no score {score!r}: choose from {', '.join(close)}")
        return self.scores[score]

    @functools.cached_property
    def values(self) -> dict[str, np.ndarray]:
        """Unaveraged values by score, [example, layer], one layer where it has none; empty without scores.parquet."""
        table: Any = self.table("scores")
        if table is None:
            return {}
        values = {}
        for name, part in table.groupby("score", sort=False):
            values[str(name)] = part.pivot(index="example", columns="layer", values="value").to_numpy(float)
        return values

    def prompts(self) -> Mapping[str, Any]:
        """The content of prompts.json; a DamagedRun if it is missing or cannot be read."""
        return self._read("prompts.json")

    def table(self, name: str) -> pd.DataFrame | None:
        """The content of NAME.parquet, or None where the run has none; a DamagedRun if it cannot be read."""
        name = f"{name}.parquet"
        return self._read(name) if (self.folder / name).exists() else None

    def _read(self, name: str) -> Any:
        try:
            return read(self.folder / name)
        except DamagedRun as error:
            raise DamagedRun(f"{printable(str(self.folder), 400)}: {error}") from error


def read_runs(folders: Iterable[Path]) -> tuple[tuple[FinishedRun, ...], tuple[tuple[Path, str], ...]]:
    """The finished runs in or below the given folders, by path, and the other run folders, each with the reason.

    A run that two sweeps made counts once, since counted twice it would pass for a second draw.

    Raises:
        ReportError: a folder does not exist.
    """
    paths: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"{folder} is not a folder: name a run folder or a sweep's, such as outputs/first_look")
        for path in run_folders(folder):
            paths.setdefault(path.resolve(), path)
    runs: dict[str, FinishedRun] = {}
    left_out = []
    for path in sorted(paths.values()):
        try:
            run = read_run(path)
        except DamagedRun as error:
            left_out.append((path, str(error)))
            continue
        first = runs.setdefault(run.status.run_id or str(path), run)
        if first is not run:
            left_out.append((path, f"is the same run as {first.folder}"))
    return tuple(runs.values()), tuple(left_out)


def read_run(folder: Path) -> FinishedRun:
    """One finished run.

    Raises:
        DamagedRun: it is not finished, or a file of it is missing, cannot be read, or has other content than this
            version's runs.
    """
    status: Status = read(folder / "status.json")
    if status.state is not State.done:
        error = (status.error or "").strip().splitlines()
        raise DamagedRun(f"is {status.state}" + (f": {error[0]}" if error else ""))
    damaged = RunFolder(folder).damaged_file(status)
    if damaged is not None:
        raise DamagedRun(f"{printable(damaged)} is not what the finished run wrote")
    config, environment, scores = (read(folder / name) for name in ("config.yaml", "environment.json", "scores.json"))
    name = "config.yaml"
    try:
        settings = settings_of(config, environment.get("dtype"))
        settings["finetune.lr"] = float(settings["finetune.lr"])
        run = FinishedRun(folder, config, environment, scores, status, settings)
        catalogue.variants([run])
        catalogue.scores([run])
        name = "scores.json"
        _rows_of(0, run)
    except ValidationError as error:
        raise of_other_types(name, error) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedRun(f"{name}: {printable(repr(error), 200)}") from error
    return run


def rows_of(runs: Iterable[FinishedRun]) -> pd.DataFrame:
    """A row for each run (its position), score, examples and layer; layer -1 is the mean over layers."""
    rows = [row for run, finished in enumerate(runs) for row in _rows_of(run, finished)]
    columns = ["run", "score", "examples", "layer", "mean", "low", "high", "n", "undefined", "layers"]
    kinds = dict.fromkeys(columns, int) | dict.fromkeys(["score", "examples"], str)
    kinds |= dict.fromkeys(["mean", "low", "high"], float)
    return pd.DataFrame(rows, columns=columns).astype(kinds)


def _rows_of(run: int, finished: FinishedRun) -> list[tuple[Any, ...]]:
    rows = []
    flipped = {score: content["flipped"] for score, content in finished.scores.items() if content.get("flipped")}
    for examples, scores in (("all", finished.scores), ("flipped", flipped)):
        for score, content in scores.items():
            low, high = content.get("ci") or (None, None)
            layers = content.get("layers") or ()
            defined = sum(mean is not None for mean in layers)
            counts = content.get("n") or 0, content.get("undefined") or 0
            rows.append((run, score, examples, -1, content["mean"], low, high, *counts, defined))
            rows += [(run, score, examples, layer, mean, None, None, *counts, 1) for layer, mean in enumerate(layers)]
    return rows


def plain(rows: Any) -> pd.DataFrame:
    """The rows with text for categories, and NA for layer -1, the mean over layers."""
    layer = rows["layer"].astype("Int64")
    return rows.astype({"score": str, "examples": str}).assign(layer=layer.mask(layer < 0))
