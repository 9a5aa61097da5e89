"""What is the life of one run? Skip it if it is done, claim it, compute it, and leave its folder in a known state."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from iclgd.choices import Rerun
from iclgd.config import Config, ConfigError, as_dict
from iclgd.runs.files import plain
from iclgd.runs.folder import RunFolder, State
from iclgd.runs.identity import run_id
from iclgd.runs.process import terminable
from iclgd.runs.progress import Progress, duration
from iclgd.runs.secrets import without_secrets

log = logging.getLogger(__name__)

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
    """What became of one run.

    Attributes:
        ending: done now, skipped because it was done before, failed, refused for its settings, or interrupted.
        folder: where it is.
        message: what went wrong, in one line.
        objective: the score named by runtime.objective, NaN if none or undefined.
    """

    ending: Ending
    folder: Path
    message: str = ""
    objective: float = math.nan


def execute(config: Config, path: Path, experiment: Experiment) -> Outcome:
    """Bring one run to its end, unless it is there already.

    Args:
        config: the run.
        path: its folder.
        experiment: computes the scores and writes the files; called only if there is something to compute.

    Raises:
        KeyboardInterrupt: a signal stopped the run; its folder says so.
    """
    folder = RunFolder(path)
    known = _known(folder, config)
    if known is not None:
        return known
    seen = folder.status()
    with folder.claim():
        if folder.status() != seen:  # another process was at it while this one waited
            known = _known(folder, config, waited=True)
        return known or _attempt(config, folder, experiment)


def _known(folder: RunFolder, config: Config, waited: bool = False) -> Outcome | None:
    """What there is to say of a run that need not be computed; None if it must be."""
    rerun, state = config.runtime.rerun, folder.state()
    if state is State.done and (waited or rerun is not Rerun.all) and folder.is_done():
        return Outcome(Ending.skipped, folder.path, objective=_objective(folder.read_json("scores.json"), config))
    if state is State.failed and (waited or rerun is Rerun.never):
        status = folder.status()
        why = "" if waited else "; runtime.rerun=never left it at that"
        return Outcome(Ending.failed, folder.path, message=f"{status.error if status else ''}{why}")
    if state is not None and state is not State.running:
        said = {State.done: "is computed again", State.failed: "failed before and is tried again"}
        log.info("run %s %s", folder.path.name, said.get(state, "was cut off and is started again"))
    return None


def _attempt(config: Config, folder: RunFolder, experiment: Experiment) -> Outcome:
    name, began = folder.path.name, time.monotonic()
    with folder.log_file(), terminable(), Progress(folder, name) as progress:
        try:
            settings = as_dict(config)
            folder.start(run_id(settings))
            folder.write_yaml("config.yaml", settings)
            log.info("run %s starts: %s", name, _headline(config))
            scores = plain(experiment(config, folder, progress))
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
        log.error("the run's end could not be written to its folder: %s", error)


def _headline(config: Config) -> str:
    return (
        f"{config.finetune.name} lr={config.finetune.lr:g} on {config.task.name}, {config.task.shots} shots, "
        f"{config.model.name} ({config.model.weights}), seed {config.seed}"
    )


def _objective(scores: Mapping[str, Any], config: Config) -> float:
    if config.runtime.objective is None:
        return math.nan
    score = scores.get(config.runtime.objective) or {}
    value = score.get("mean", score.get("ft"))
    return math.nan if value is None else float(value)
