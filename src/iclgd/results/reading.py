"""Finished runs as their folders hold them; a broken or unfinished folder is listed, never fatal."""

from __future__ import annotations

import functools
import html
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.common.printable import printable
from iclgd.config.variants import ICL
from iclgd.runs import varied
from iclgd.runs.folder import run_folders
from iclgd.runs.parsing import DamagedRun, reason
from iclgd.runs.reader import FolderReader

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor

    from iclgd.common.records import Recording

log = logging.getLogger(__name__)

_NAN = float("nan")


class ReportError(ValueError):
    """Folders that no report can be made of; the message says what was looked for and what to do."""


@dataclass(frozen=True)
class Record:
    """One score of one run, NaN where undefined."""

    mean: float  # over examples in each layer, then over layers
    low: float  # lower end of the 95 % interval over queries
    high: float  # upper end
    n: int  # how many examples there were
    undefined: int  # how many of their values are left out
    layers: tuple[float, ...]  # the mean of each layer; empty where the score has none


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

    def _repr_html_(self) -> str:
        cells = (
            f"<tr><td>{html.escape(name)}</td><td>{one.mean:.4g}</td><td>{one.low:.4g}</td><td>{one.high:.4g}</td></tr>"
            for (name, of), one in self.records.items()
            if of == "all"
        )
        head = "<tr><th>score</th><th>mean</th><th colspan=2>95 % interval over queries</th></tr>"
        return f"<p>{html.escape(repr(self))}</p><table>{head}{''.join(cells)}</table>"

    @property
    def name(self) -> str:
        """The run's id."""
        return self.folder.name

    @property
    def state(self) -> str:
        """`diverged` (the loss was not finite), `unstable` (no result to build on) or `sane`."""
        return next((kind for kind in ("diverged", "unstable") if self.status.get(kind)), "sane")

    @property
    def planted(self) -> bool:
        """Whether a finetuning variant plays ICL's part."""
        return self.settings.get("reference.name", ICL) != ICL

    @property
    def draw(self) -> tuple[Any, ...]:
        """What is random: the seed, and that of weights which were drawn. Another order is no other draw."""
        return self.settings["seed"], self.settings.get("model.weights_seed")

    @property
    def frame(self) -> pd.DataFrame:
        """A row for each score and layer: see `iclgd.results.frame.Results.frame`."""
        from iclgd.results.frame import Results

        return Results((self,)).frame

    @property
    def recordings(self) -> dict[str, Recording]:
        """What was recorded, by setting (zsl, icl, ft, ...): tensors named by their axes.

        Raises:
            ReportError: the run kept no recordings, or they cannot be read.
        """
        from iclgd.common.records import Recording

        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.tensors().items():
            setting, _, entry = name.partition(".")
            if entry in Recording.__dataclass_fields__:
                found.setdefault(setting, {})[entry] = tensor
        return {setting: Recording(**entries) for setting, entries in found.items()}  # pyright: ignore

    def tensors(self) -> dict[str, Tensor]:
        """The content of recordings.safetensors, as SETTING.FIELD.

        Raises:
            ReportError: there is none, or it cannot be read.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.folder / "recordings.safetensors"
        if path.is_symlink() or not path.is_file():
            again = "run it again with runtime.save_recordings=true (and runtime.rerun=all, for it is done)"
            raise ReportError(f"{self.folder} kept no recordings: {again}")
        try:
            return load_file(path)
        except (OSError, SafetensorError, TypeError, KeyError) as error:
            raise ReportError(f"{path} cannot be read ({error}): run it again with runtime.rerun=all") from error

    def mean(self, score: str) -> float:
        """A score's mean over examples and layers; NaN where it was not measured."""
        record = self.records.get((score, "all"))
        return _NAN if record is None else record.mean

    def layers(self, score: str) -> list[float]:
        """A score's mean over examples in every layer; empty where it has no layers."""
        record = self.records.get((score, "all"))
        return [] if record is None else list(record.layers)

    @functools.cached_property
    def values(self) -> dict[str, np.ndarray]:
        """Unaveraged values by score, [example, layer], one layer where it has none; empty without scores.parquet."""
        try:
            table = self.table("scores")
            return {} if table is None else _by_score(table)
        except DamagedRun as error:
            log.warning("%s: single queries are not shown: %s", printable(str(self.folder), 400), error)
            return {}

    def prompts(self) -> Mapping[str, Any]:
        """The content of prompts.json.

        Raises:
            DamagedRun: there is none, or it cannot be read.
        """
        try:
            return FolderReader(self.folder).prompts
        except FileNotFoundError as error:
            raise DamagedRun("prompts.json is missing") from error

    def table(self, name: str) -> pd.DataFrame | None:
        """The content of NAME.parquet, or None where the run has none.

        Raises:
            DamagedRun: it cannot be read.
        """
        try:
            return FolderReader(self.folder).table(f"{name}.parquet")
        except FileNotFoundError:
            return None


def _by_score(table: Any) -> dict[str, np.ndarray]:
    values = {}
    try:
        for name, part in table.groupby("score", sort=False):
            # Counted first, for the rectangle of a damaged table can be too large for any memory.
            if part["example"].nunique() * part["layer"].nunique() != len(part):
                raise ValueError(f"{len(part):,} rows of {printable(str(name))} fill no table")
            values[str(name)] = part.pivot(index="example", columns="layer", values="value").to_numpy(dtype=float)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedRun(f"scores.parquet holds something unexpected: {reason(error)}") from error
    return values


def read_runs(folders: Iterable[Path]) -> tuple[tuple[FinishedRun, ...], tuple[tuple[Path, str], ...]]:
    """The finished runs in or below the given folders, by path, and the other run folders, each with the reason.

    Raises:
        ReportError: a folder does not exist.
    """
    places: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"{folder} is no folder: name a run folder or a sweep's, such as outputs/first_look")
        for run in run_folders(folder):
            places.setdefault(run.resolve(), run)
    runs, left_out = [], []
    for folder in sorted(places.values()):
        try:
            reader = FolderReader(folder)  # one for both: it reads each file once
            runs.append((_finished(reader), reader.content_id))
        except DamagedRun as error:
            left_out.append((folder, str(error)))
    finished, others = _distinct(runs)
    return tuple(finished), tuple(sorted(left_out + others))


def _distinct(runs: Sequence[tuple[FinishedRun, str]]) -> tuple[list[FinishedRun], list[tuple[Path, str]]]:
    """Each run once, though two sweeps made it: counted twice it would pass for a second draw.

    What a run is, its settings say. A folder that claims the id of another run never stands for it, and one whose
    status.json vouches for its files goes before one that vouches for nothing.
    """
    genuine = {content for run, content in runs if run.status.get("run_id") == content}
    finished: dict[object, FinishedRun] = {}
    left_out = []
    for run, content in sorted(runs, key=lambda pair: not pair[0].status.get("files")):
        claimed = run.status.get("run_id")
        if claimed in genuine and claimed != content:
            reason = f"status.json claims the id {claimed} of another run: its settings have {content}"
            left_out.append((run.folder, reason))
            continue
        key = content if content in genuine else (claimed or run.folder, content)
        first = finished.setdefault(key, run)
        if first is not run:
            but = "" if first.scores == run.scores else ", though its scores are others"
            left_out.append((run.folder, f"is the same run as {first.folder}{but}"))
    return sorted(finished.values(), key=lambda run: run.folder), left_out


def read_run(folder: Path) -> FinishedRun:
    """One finished run.

    Raises:
        DamagedRun: it is not finished, or a file of it is missing or cannot be read.
    """
    return _finished(FolderReader(folder))


def _finished(reader: FolderReader) -> FinishedRun:
    try:
        status = reader.status
        if status["state"] != "done":
            error = str(status.get("error") or "").strip().splitlines()
            raise DamagedRun(f"is {status['state']}" + (f": {error[0]}" if error else ""))
        reader.check_sizes()
        config, environment, scores = reader.config, reader.environment, reader.scores
    except FileNotFoundError as error:
        raise DamagedRun(f"{Path(error.filename).name} is missing") from error
    try:
        settings = varied.settings(config, environment.get("dtype"))
        settings["finetune.lr"] = float(settings["finetune.lr"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedRun(f"config.yaml holds something unexpected: {reason(error)}") from error
    return FinishedRun(reader.folder, config, environment, scores, status, settings, records_of(scores))


def records_of(scores: Mapping[str, Any]) -> dict[tuple[str, str], Record]:
    """The content of scores.json by score and examples ("all" or "flipped"); its shape was checked when it was read."""
    raw = {(name, "all"): whole for name, whole in scores.items()}
    raw |= {(name, "flipped"): whole["flipped"] for name, whole in scores.items() if whole.get("flipped")}
    return {key: _record(record) for key, record in raw.items()}


def _record(content: Mapping[str, Any]) -> Record:
    mean, low, high = map(_number, (content["mean"], *(content.get("ci") or (None, None))))
    layers = tuple(map(_number, content.get("layers") or ()))
    return Record(mean, low, high, content.get("n") or 0, content.get("undefined") or 0, layers)


def _number(value: float | None) -> float:
    return _NAN if value is None else float(value)
