"""The life of one run: skip it if it is done and its inputs are what they were, else claim it and compute it.

Signals that end a process unwind as exceptions, so that a run is marked as interrupted.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from iclgd.common.printable import without_secrets
from iclgd.config import Config, ConfigError, MissingInput, as_dict
from iclgd.config.enumerations import Rerun
from iclgd.runs.files import DamagedRun, State, read
from iclgd.runs.folder import RunFolder
from iclgd.runs.inputs import INPUTS, run_id
from iclgd.runs.progress import Progress, duration

log = logging.getLogger(__name__)


class Terminated(KeyboardInterrupt):
    """The system or a cluster ends this process; an exception that unwinds like Ctrl-C. Its text says why."""


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated` in the main thread, so that `finally` blocks run.

    A launcher's own handlers stay. On Slurm, submitit ignores SIGTERM, which comes first when a task is preempted, and
    on SIGUSR2 queues the task again and exits; its error for a task whose time is over becomes `Terminated`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_term(number: int, frame: FrameType | None) -> None:
        raise Terminated("it was ended by SIGTERM")

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    if before[signal.SIGTERM] is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, on_term)
    if callable(handler := before[signal.SIGUSR2]):
        signal.signal(signal.SIGUSR2, _at_the_time_limit(handler))
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: set outside of Python, as by faulthandler
                signal.signal(number, handler)


def _at_the_time_limit(requeue: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], None]:
    def on_signal(number: int, frame: FrameType | None) -> None:
        try:
            requeue(number, frame)
        except Exception as error:
            raise Terminated("the time limit of its task is over: raise hydra.launcher.timeout_min") from error

    return on_signal


def end_children(patience: float = 3.0) -> None:
    """Terminate every process that this one started, and theirs; kill those that ignore it for `patience` seconds."""
    children = psutil.Process().children(recursive=True)
    for send in (psutil.Process.terminate, psutil.Process.kill):
        for child in children:
            with suppress(psutil.NoSuchProcess):
                send(child)
        _, children = psutil.wait_procs(children, timeout=patience)


# What is prepared before a run and handed on to its experiment; its `inputs` are all that the run's numbers depend on.
Prepared = Any
Experiment = Callable[[Config, RunFolder, Progress, Prepared], object]
Prepare = Callable[[Config], Prepared]
# How a run ended for the command that asked for it. skipped: it was done before; refused: for settings, data or model
Ending = StrEnum("Ending", "done skipped failed refused interrupted")


@dataclass(frozen=True)
class Outcome:
    """What became of one run."""

    ending: Ending
    folder: Path
    message: str = ""  # what went wrong, in one line

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds the run's results."""
        return self.ending in (Ending.done, Ending.skipped)


def execute(
    config: Config,
    path: Path,
    experiment: Experiment,
    prepare: Prepare | None = None,
    name: str = "",
    bar: bool = False,
) -> Outcome:
    """Bring one run to its end, unless it is there already.

    Args:
        config: the run.
        path: its folder.
        experiment: computes the scores and writes the files; called only if there is something to compute.
        prepare: gives the inputs of the run, and what else its experiment is handed. A finished run that had other
            inputs is computed anew, and its old results go to the folder `earlier`; None: only settings count.
        name: what logs call the run; by default the folder's name.
        bar: whether progress is drawn on a terminal.
    """
    folder, name, prepared = RunFolder(path), name or path.name, None
    try:
        prepared = prepare(config) if prepare else None
    except Exception as error:
        is_done = folder.is_done()
        if isinstance(error, ConfigError) and not (is_done and isinstance(error, MissingInput)):
            why = f"run {path.name} is done, but its inputs have changed: " if is_done else ""
            return Outcome(Ending.refused, path, f"{why}{error}")
        if is_done:
            log.warning("run %s is done; its inputs cannot be read again for comparison: %s", name, error)

    def measure(progress: Progress) -> None:
        folder.start(run_id(as_dict(config)))
        # What could not be prepared fails here again, and leaves its traceback in the folder.
        ready = prepare(config) if prepared is None and prepare else prepared
        folder.write("config.yaml", as_dict(config))
        if ready is not None:
            folder.write(INPUTS, ready.inputs.parts)
        log.info(
            f"run {name} starts: {config.finetune.name} lr={config.finetune.lr:g} on {config.task.name}, "
            f"{config.task.shots} shots, {config.model.name} ({config.model.weights}), seed {config.seed}"
        )
        experiment(config, folder, progress, ready)

    outcome = _earlier_outcome(config, folder, prepared)
    if outcome is not None:
        return outcome
    with folder.claim():  # another process may have computed it while this one waited
        outcome = _earlier_outcome(config, folder, prepared)
        if outcome is not None:
            return outcome
        before, changed = folder.status(), _changed_inputs(folder, prepared)
        is_other = before is not None and before.state is State.done and bool(changed)
        earlier = folder.retire() if is_other else None  # with the log, before a new one begins
        with folder.log_file(), Progress(folder, name, bar) as progress:
            if earlier is not None:
                message = "run %s was computed from other inputs; changed: %s. Its results are now in %s"
                log.warning(message, name, ", ".join(changed), earlier)
            elif before is not None:
                state = "cut off" if before.state is State.running else before.state
                log.info("run %s was %s and is computed again", name, state)
            return _compute(folder, name, lambda: measure(progress))


def _earlier_outcome(config: Config, folder: RunFolder, prepared: Prepared | None) -> Outcome | None:
    """The outcome of a run that need not be computed; None if it must be."""
    rerun, status = config.runtime.rerun, folder.status()
    if status is not None and status.state is State.failed and rerun is Rerun.never:
        return Outcome(Ending.failed, folder.path, f"{status.error}; runtime.rerun=never left it at that")
    if rerun is Rerun.all or not folder.is_done() or _changed_inputs(folder, prepared):
        return None
    return Outcome(Ending.skipped, folder.path)


def _changed_inputs(folder: RunFolder, prepared: Prepared | None) -> list[str]:
    """The inputs in which a finished run differs from the present ones, in words."""
    if prepared is None:
        return []
    try:
        return prepared.inputs.changes(read(folder.path / INPUTS, dict[str, str]))
    except DamagedRun:
        return ["its inputs, which were not written down"]


def _compute(folder: RunFolder, name: str, measure: Callable[[], None]) -> Outcome:
    """Measure a run whose folder is claimed, and mark how it ended."""
    start = time.monotonic()
    try:
        measure()
        folder.finish()
    except (KeyboardInterrupt, SystemExit) as stop:  # a launcher exits once it has queued the run again
        log.warning("run %s was interrupted%s", name, f": {stop}" if isinstance(stop, Terminated) else "")
        folder.interrupt()
        raise
    except Exception as error:
        log.error("run %s failed: %s", name, error, exc_info=error)
        folder.fail(error)
        if isinstance(error, ConfigError):
            return Outcome(Ending.refused, folder.path, without_secrets(str(error)))
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return Outcome(Ending.failed, folder.path, without_secrets(message))
    log.info("run %s is done, after %s", name, duration(time.monotonic() - start))
    return Outcome(Ending.done, folder.path)
