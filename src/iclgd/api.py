"""How does one run it from Python? As from the command line, with typed results and a pandas frame in return."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.command import REFUSED, Command
from iclgd.command import run as run_command
from iclgd.config import ConfigError
from iclgd.hydra_setup import quoted
from iclgd.report.runs_frame import FinishedRun, frame, read_run, read_runs

if TYPE_CHECKING:
    import pandas as pd


class RunFailed(RuntimeError):
    """A run that failed; the message says why and in which folder its traceback is."""


@dataclass(frozen=True)
class RunResult(FinishedRun):
    """One finished run: `folder`, `config`, `scores`, `layers(score)`, `estimate(score)`, `values`, ..."""

    def frame(self) -> pd.DataFrame:
        """A row for each score and layer: run, task, model, variant, lr, shots, seed, score, layer, mean, low, high."""
        return frame([self])


@dataclass(frozen=True)
class Results:
    """Finished runs, in the order of their folders, and what else was there.

    Attributes:
        runs: the finished ones.
        left_out: the folders of the others, each with the reason.
    """

    runs: tuple[RunResult, ...]
    left_out: tuple[tuple[Path, str], ...] = ()

    def frame(self) -> pd.DataFrame:
        """The frames of all runs, one below the other."""
        return frame(self.runs)

    def __iter__(self) -> Iterator[RunResult]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> RunResult:
        return self.runs[index]


def run(*overrides: str, **settings: Any) -> RunResult:
    """Make one run, or find it made: `iclgd.run("task=reviews", seed=1, finetune__lr=1e-3)`.

    Args:
        *overrides: as on the command line.
        **settings: the same by name, with two underscores for a dot.

    Raises:
        ConfigError: settings that cannot be run.
        RunFailed: the run failed.
    """
    command = _run([*overrides, *(f"{_key(key)}={_value(value)}" for key, value in settings.items())])
    outcome = command.results()[0]
    if command.code:
        raise RunFailed(f"{outcome.message}; see {outcome.folder}/run.log")
    return _typed(read_run(outcome.folder))


def sweep(*overrides: str, **settings: Any) -> Results:
    """Make every run of a sweep: `iclgd.sweep(finetune=["gd", "lcgd"], seed=[0, 1])` or `iclgd.sweep("sweeps=shots")`.

    Args:
        *overrides: as on the command line.
        **settings: the same by name; a list is swept over.

    Raises:
        ConfigError: settings that cannot be run.
    """
    swept = [
        f"{_key(key)}={','.join(map(_value, value)) if isinstance(value, list | tuple) else _value(value)}"
        for key, value in settings.items()
    ]
    outcomes = _run(["--multirun", *overrides, *swept]).results()
    found = [load(outcome.folder) for outcome in outcomes if outcome.folder.is_dir()]
    runs = {result.folder: result for results in found for result in results}
    refused = tuple((o.folder, o.message) for o in outcomes if not o.folder.is_dir())
    return Results(tuple(runs.values()), tuple(left for results in found for left in results.left_out) + refused)


def load(folder: str | Path) -> Results:
    """Read the finished runs in or below a folder.

    Raises:
        ReportError: there is no such folder.
    """
    found = read_runs([Path(folder)])
    return Results(tuple(map(_typed, found.finished)), found.left_out)


def _run(arguments: list[str]) -> Command:
    command = run_command(arguments, tell=False)
    if command.code in (130, 143):
        raise KeyboardInterrupt
    if command.code and not command.results():
        raise (ConfigError if command.code == REFUSED else RunFailed)(command.message)
    return command


def _typed(found: FinishedRun) -> RunResult:
    return RunResult(**{entry.name: getattr(found, entry.name) for entry in dataclasses.fields(FinishedRun)})


def _key(name: str) -> str:
    return name.replace("__", ".")


def _value(value: Any) -> str:
    """A value as Hydra's command line reads it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_value(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, str | Path) and not str(value).replace("_", "").isalnum():
        return quoted(str(value))
    return str(value)
