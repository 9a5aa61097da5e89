"""iclgd from Python: runs and sweeps as from the command line, with typed results and pandas frames in return."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.command import REFUSED, Command
from iclgd.command import run as run_command
from iclgd.config import ConfigError
from iclgd.hydra_setup import quoted
from iclgd.results import frame
from iclgd.results.reading import FinishedRun, read_run, read_runs

if TYPE_CHECKING:
    from iclgd.report.chart import Figure


class Results(frame.Results):
    """Finished runs: their frame, its summary over draws, and their figures."""

    @functools.cached_property
    def figures(self) -> Mapping[str, Figure]:
        """Every figure by its name: `results.figures["layers/sim_aou"].save(Path("sim_aou.pdf"))`."""
        from iclgd.report.figures import figures

        return {figure.name: figure for figure in figures(self)}


class RunFailed(RuntimeError):
    """A run that failed; the message says why and in which folder its traceback is."""


def run(*overrides: str, **settings: Any) -> FinishedRun:
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
    return read_run(outcome.folder)


def sweep(*overrides: str, **settings: Any) -> Results:
    """Make every run of a sweep: `iclgd.sweep(finetune=["gd", "lcgd"], seed=[0, 1])` or `iclgd.sweep("sweeps=shots")`.

    Args:
        *overrides: as on the command line.
        **settings: the same by name; a list is swept over.

    Returns:
        The finished runs; `left_out` has those that failed or were refused, with the reason.

    Raises:
        ConfigError: settings that cannot be run.
    """
    swept = [
        f"{_key(key)}={','.join(map(_value, value)) if isinstance(value, list | tuple) else _value(value)}"
        for key, value in settings.items()
    ]
    outcomes = _run(["--multirun", *overrides, *swept]).results()
    runs, left_out = read_runs(outcome.folder for outcome in outcomes if outcome.folder.is_dir())
    refused = tuple((o.folder, o.message) for o in outcomes if not o.folder.is_dir())
    return Results(runs, left_out + refused)


def load(*folders: str | Path) -> Results:
    """The finished runs in or below folders.

    Raises:
        ReportError: there is no such folder.
    """
    return Results(*read_runs(map(Path, folders)))


def _run(arguments: list[str]) -> Command:
    command = run_command(arguments, tell=False)
    if command.code in (130, 143):
        raise KeyboardInterrupt
    if command.code and not command.results():
        raise (ConfigError if command.code == REFUSED else RunFailed)(command.message)
    return command


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
