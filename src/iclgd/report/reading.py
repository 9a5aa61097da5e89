"""Finished runs as their folders hold them; a broken or unfinished folder is listed, never fatal."""

from __future__ import annotations

import functools
import html
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.config import ReferenceConfig
from iclgd.runs import varied
from iclgd.runs.folder import run_folders
from iclgd.runs.parsing import DamagedRun as BrokenRun
from iclgd.runs.reader import FolderReader
from iclgd.shown import printable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor

    from iclgd.records import Recording
    from iclgd.report.chart import Figure

log = logging.getLogger(__name__)

NAN = float("nan")
_NEEDED = ("model.name", "task.name", "task.shots", "finetune.name", "finetune.lr", "seed")


class ReportError(ValueError):
    """Folders that no report can be made of; the message says what was looked for and what to do."""


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

    def _repr_html_(self) -> str:
        rows = [
            (name, record.mean, record.low, record.high) for (name, of), record in self.records.items() if of == "all"
        ]
        cells = (
            f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{number:.4g}</td>' for number in numbers)}</tr>"
            for name, *numbers in rows
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
        return self.settings.get("reference.name", ReferenceConfig().name) != ReferenceConfig().name

    @property
    def draw(self) -> tuple[Any, ...]:
        """What is random: the seed, and that of weights which were drawn. Another order is no other draw."""
        return self.settings["seed"], self.settings.get("model.weights_seed")

    @property
    def frame(self) -> pd.DataFrame:
        """A row for each score and layer: see `iclgd.report.results.Results.frame`."""
        from iclgd.report.results import Results

        return Results((self,)).frame

    @property
    def figures(self) -> dict[str, Figure]:
        """The run's figures by name: `run.figures["layers/sim_aou"].chart` is an Altair chart."""
        from iclgd.report.results import Results

        return Results((self,)).figures

    @property
    def recordings(self) -> dict[str, Recording]:
        """What was recorded, by setting (zsl, icl, ft, ...): tensors named by their axes.

        Raises:
            ReportError: the run kept no recordings, or they cannot be read.
        """
        from iclgd.records import Recording

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
            raise ReportError(
                f"{self.folder} kept no recordings: run it again with runtime.save_recordings=true "
                "(and runtime.rerun=all, for it is done)"
            )
        try:
            return load_file(path)
        except (OSError, SafetensorError, TypeError, KeyError) as error:
            raise ReportError(f"{path} cannot be read ({error}): run it again with runtime.rerun=all") from error

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
        try:
            table = self.table("scores")
            return {} if table is None else _by_score(table)
        except BrokenRun as error:
            log.warning("%s: single queries are not shown: %s", printable(str(self.folder), 400), error)
            return {}

    def prompts(self) -> Mapping[str, Any]:
        """The content of prompts.json.

        Raises:
            BrokenRun: there is none, or it cannot be read.
        """
        try:
            return FolderReader(self.folder).prompts
        except FileNotFoundError as error:
            raise BrokenRun("prompts.json is missing") from error

    def table(self, name: str) -> pd.DataFrame | None:
        """The content of NAME.parquet, or None where the run has none.

        Raises:
            BrokenRun: it cannot be read.
        """
        try:
            return FolderReader(self.folder).table(f"{name}.parquet")
        except FileNotFoundError:
            return None


def _by_score(table: Any) -> dict[str, np.ndarray]:
    lacking = {"score", "example", "layer", "value"} - set(table.columns)
    kinds = {name: table[name].dtype.kind for name in ("example", "layer", "value") if name not in lacking}
    if lacking or kinds["example"] not in "iu" or kinds["layer"] not in "iu" or kinds["value"] != "f":
        raise BrokenRun(f"scores.parquet has the columns {printable(str(dict(table.dtypes.astype(str))), 200)}")
    values = {}
    for name, part in table.groupby("score", sort=False):
        cells = len(set(part["example"])) * len(set(part["layer"]))
        if cells != len(part) or len(part.drop_duplicates(["example", "layer"])) != len(part):
            raise BrokenRun(f"scores.parquet has {len(part):,} rows of {printable(str(name))} for {cells:,} values")
        values[str(name)] = part.pivot(index="example", columns="layer", values="value").to_numpy(dtype=float)
    return values


def read_runs(folders: Iterable[Path]) -> tuple[tuple[FinishedRun, ...], tuple[tuple[Path, str], ...]]:
    """The finished runs in or below the given folders, by path, and the other run folders, each with the reason.

    Raises:
        ReportError: a folder does not exist.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"{folder} is no folder: name a run folder or a sweep's, such as outputs/first_look")
        for run in run_folders(folder):
            found.setdefault(run.resolve(), run)
    runs, left_out = [], []
    for folder in sorted(found.values()):
        try:
            reader = FolderReader(folder)  # one for both: it reads each file once
            runs.append((_finished(reader), reader.content_id))
        except BrokenRun as error:
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
        BrokenRun: it is not finished, or a file of it is missing or cannot be read.
    """
    return _finished(FolderReader(folder))


def _finished(reader: FolderReader) -> FinishedRun:
    try:
        status = reader.status
        if status["state"] != "done":
            reason = str(status.get("error") or "").strip().splitlines()
            raise BrokenRun(f"is {status['state']}" + (f": {reason[0]}" if reason else ""))
        reader.check_sizes()
        config, environment, scores = reader.config, reader.environment, reader.scores
    except FileNotFoundError as error:
        raise BrokenRun(f"{Path(error.filename).name} is missing") from error
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
    return FinishedRun(reader.folder, config, environment, scores, status, settings, _records(scores))


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


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _number(value: Any) -> float:
    return NAN if value is None or not math.isfinite(value) else float(value)


def _pair(value: Any) -> tuple[float, float]:
    low, high = value or (None, None)
    return _number(low), _number(high)
