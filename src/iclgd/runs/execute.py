"""The life of one run: skip it if it is done and its inputs are what they were, else claim it and compute it."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from iclgd.config import Config, ConfigError, MissingInput, as_dict
from iclgd.config.enumerations import Rerun
from iclgd.runs.files import plain
from iclgd.runs.folder import RunFolder
from iclgd.runs.inputs import INPUTS, Inputs, run_id
from iclgd.runs.process import terminable
from iclgd.runs.progress import Progress, duration
from iclgd.runs.schema import DamagedRun, State, read
from iclgd.runs.secrets import without_secrets

log = logging.getLogger(__name__)


class Prepared(Protocol):
    """What is known of a run before it is computed, and handed on to its experiment."""

    @property
    def inputs(self) -> Inputs:
        """All that its numbers depend on."""
        ...


Experiment = Callable[[Config, RunFolder, Progress, Any], Mapping[str, Any]]
Prepare = Callable[[Config], Prepared]


class Ending(StrEnum):
    """How a run ended, for the command that asked for it."""

    done = "done"
    skipped = "skipped"
    failed = "failed"
    refused = "refused"
    interrupted = "interrupted"


@dataclass(frozen=True)
class Outcome:
    """What became of one run."""

    # done now, skipped because it was done before, failed, refused for its settings, or interrupted
    ending: Ending
    folder: Path  # where it is
    message: str = ""  # what went wrong, in one line
    objective: float = math.nan  # the score named by runtime.objective, NaN if none or undefined


@dataclass(frozen=True)
class _Job:
    """A run to bring to its end."""

    config: Config
    folder: RunFolder
    experiment: Experiment
    prepare: Prepare | None

    @functools.cached_property
    def prepared(self) -> Prepared | None:
        """What the experiment is handed; None where nobody prepares."""
        return None if self.prepare is None else self.prepare(self.config)


def execute(config: Config, path: Path, experiment: Experiment, prepare: Prepare | None = None) -> Outcome:
    """Bring one run to its end, unless it is there already.

    Args:
        config: the run.
        path: its folder.
        experiment: computes the scores and writes the files; called only if there is something to compute.
        prepare: gives the inputs of the run, and what else its experiment is handed. A finished run that was made from
            other inputs is computed anew, and its results are kept in the folder `earlier`; None: only settings count.

    Raises:
        KeyboardInterrupt: a signal stopped the run; its folder says so.
    """
    job = _Job(config, RunFolder(path), experiment, prepare)
    try:
        outcome = _known(job)
        if outcome is not None:
            return outcome
        seen = job.folder.status()
        with job.folder.claim():
            if job.folder.status() != seen:  # another process was at it while this one waited
                job = replace(job)  # the inputs may have changed meanwhile
                outcome = _known(job, waited=True)
            return outcome or _attempt(job)
    except ConfigError as error:  # of inputs that are there, but are not what the finished run was made from
        return Outcome(Ending.refused, path, f"run {path.name} is done, but its inputs have changed: {error}")


def _known(job: _Job, waited: bool = False) -> Outcome | None:
    """What there is to say of a run that need not be computed; None if it must be."""
    folder, config = job.folder, job.config
    rerun, state = config.runtime.rerun, folder.state()
    if state is State.done and (waited or rerun is not Rerun.all) and folder.is_done() and not _changed(job):
        try:
            return Outcome(Ending.skipped, folder.path, objective=_objective(read(folder.path / "scores.json"), config))
        except DamagedRun as error:
            log.warning("run %s is computed again: %s", folder.path.name, error)
            return None
    if state is State.failed and (waited or rerun is Rerun.never):
        status = folder.status()
        why = "" if waited else "; runtime.rerun=never left it at that"
        return Outcome(Ending.failed, folder.path, message=f"{status.error if status else ''}{why}")
    if state is not None and state is not State.running:
        said = {State.done: "is computed again", State.failed: "failed before and is tried again"}
        log.info("run %s %s", folder.path.name, said.get(state, "was cut off and is started again"))
    return None


def _changed(job: _Job) -> list[str]:
    """The inputs in which a finished run differs from now's, in words.

    Raises:
        ConfigError: data or a model that is there, but cannot be used any more.
    """
    name = job.folder.path.name
    try:
        prepared = job.prepared
    except (MissingInput, OSError) as error:
        log.warning("run %s is done; its inputs cannot be compared with those of today: %s", name, error)
        return []
    if prepared is None:
        return []
    try:
        return prepared.inputs.changes(read(job.folder.path / INPUTS, dict[str, str]))
    except DamagedRun:
        return ["its inputs, which were not written down"]


def _attempt(job: _Job) -> Outcome:
    config, folder = job.config, job.folder
    name, began = folder.path.name, time.monotonic()
    differing = _changed(job) if folder.state() is State.done else []
    kept = folder.retire() if differing else None
    with folder.log_file(), terminable(), Progress(folder, name) as progress:
        try:
            if kept is not None:
                message = "run %s was made from other inputs; changed: %s. Its results are kept in %s"
                log.warning(message, name, ", ".join(differing), kept)
            settings = as_dict(config)
            folder.start(run_id(settings))
            prepared = job.prepared
            folder.write_yaml("config.yaml", settings)
            if prepared is not None:
                folder.write_json(INPUTS, prepared.inputs.parts)
            log.info("run %s starts: %s", name, _headline(config))
            scores = plain(job.experiment(config, folder, progress, prepared))
            folder.finish()
        except KeyboardInterrupt:
            log.warning("run %s was interrupted", name)
            _mark(folder.interrupt)
            raise
        except BaseException as error:
            log.error("run %s failed: %s", name, error, exc_info=error)
            _mark(functools.partial(folder.fail, error))
            if not isinstance(error, Exception):
                raise
            refused = isinstance(error, ConfigError)
            message = without_secrets(str(error) if refused else f"{type(error).__name__}: {error}")
            return Outcome(Ending.refused if refused else Ending.failed, folder.path, message=message)
        log.info("run %s is done, after %s", name, duration(time.monotonic() - began))
        return Outcome(Ending.done, folder.path, objective=_objective(scores, config))


def _mark(write: Callable[[], None]) -> None:
    """Write a last word if the disk allows; without it the run counts as cut off, which is as good."""
    try:
        write()
    except (OSError, RuntimeError) as error:
        log.error("the run's end could not be written to its folder, where it counts as cut off: %s", error)


def _headline(config: Config) -> str:
    return (
        f"{config.finetune.name} lr={config.finetune.lr:g} on {config.task.name}, {config.task.shots} shots, "
        f"{config.model.name} ({config.model.weights}), seed {config.seed}"
    )


def _objective(scores: Mapping[str, Any], config: Config) -> float:
    if config.runtime.objective is None:
        return math.nan
    value = (scores.get(config.runtime.objective) or {}).get("mean")
    return math.nan if value is None else float(value)
