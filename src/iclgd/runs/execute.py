"""The life of one run: skip it if it is done and its inputs are what they were, else claim it and compute it."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.config import Config, ConfigError, as_dict
from iclgd.config.enumerations import Rerun
from iclgd.runs.files import plain
from iclgd.runs.folder import RunFolder
from iclgd.runs.identity import run_id
from iclgd.runs.process import terminable
from iclgd.runs.progress import Progress, duration
from iclgd.runs.schema import DamagedRun, State, read
from iclgd.runs.secrets import without_secrets

if TYPE_CHECKING:
    from iclgd.runs.fingerprint import Fingerprint

log = logging.getLogger(__name__)

FINGERPRINT = "fingerprint.json"
Experiment = Callable[[Config, RunFolder, Progress], Mapping[str, Any]]


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
    """A run to bring to its end: its settings, its folder, and what it would be made of now."""

    config: Config
    folder: RunFolder
    experiment: Experiment
    made_of: Callable[[Config], Fingerprint] | None

    def inputs(self) -> Fingerprint | None:
        """What it would be made of, as it is now; None where nobody asks."""
        return None if self.made_of is None else self.made_of(self.config)


def execute(
    config: Config, path: Path, experiment: Experiment, made_of: Callable[[Config], Fingerprint] | None = None
) -> Outcome:
    """Bring one run to its end, unless it is there already.

    Args:
        config: the run.
        path: its folder.
        experiment: computes the scores and writes the files; called only if there is something to compute.
        made_of: what a run is made of, as it is now. A finished run that was made of something else is computed anew,
            and its results are kept in the folder `earlier`; None: only settings count.

    Raises:
        KeyboardInterrupt: a signal stopped the run; its folder says so.
    """
    job = _Job(config, RunFolder(path), experiment, made_of)
    known = _known(job)
    if known is not None:
        return known
    seen = job.folder.status()
    with job.folder.claim():
        if job.folder.status() != seen:  # another process was at it while this one waited
            known = _known(job, waited=True)
        return known or _attempt(job)


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
    """The inputs in which a finished run differs from now's, in words."""
    from iclgd.runs.fingerprint import changes

    if job.made_of is None:
        return []
    name = job.folder.path.name
    try:
        now = job.made_of(job.config)
    except (ConfigError, OSError) as error:
        log.warning("run %s is done; whether its inputs are what they were cannot be told: %s", name, error)
        return []
    try:
        before = job.folder.read_json(FINGERPRINT)
    except (OSError, ValueError):
        return ["its inputs, which were not written down"]
    return changes(before, now)


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
            inputs = job.inputs()
            folder.write_yaml("config.yaml", settings)
            if inputs is not None:
                folder.write_json(FINGERPRINT, inputs.parts)
            log.info("run %s starts: %s", name, _headline(config))
            scores = plain(job.experiment(config, folder, progress))
            _refuse_change(job, inputs)
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


def _refuse_change(job: _Job, before: Fingerprint | None) -> None:
    """Raise if an input changed while the run was computed: nobody could say what its numbers belong to."""
    from iclgd.runs.fingerprint import changes

    now = job.inputs()
    differing = changes(before.parts, now) if before is not None and now is not None else []
    if differing:
        raise RuntimeError(f"{', '.join(differing)} changed while the run was computed; start it again")


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
