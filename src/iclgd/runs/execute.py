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


@dataclass(frozen=True)
class _Run:
    config: Config
    folder: RunFolder
    experiment: Experiment
    prepare: Prepare | None
    name: str
    bar: bool


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
    run, prepared = _Run(config, RunFolder(path), experiment, prepare, name or path.name, bar), None
    try:
        prepared = prepare(config) if prepare else None
    except Exception as error:
        is_done = run.folder.is_done()
        if isinstance(error, ConfigError) and not (is_done and isinstance(error, MissingInput)):
            why = f"run {path.name} is done, but its inputs have changed: " if is_done else ""
            return Outcome(Ending.refused, path, f"{why}{error}")
        if is_done:
            log.warning("run %s is done; its inputs cannot be compared with those of today: %s", run.name, error)
    outcome = _earlier_outcome(run, prepared)
    if outcome is not None:
        return outcome
    with run.folder.claim():  # another process may have computed it while this one waited
        return _earlier_outcome(run, prepared) or _compute(run, prepared)


def _earlier_outcome(run: _Run, prepared: Prepared | None) -> Outcome | None:
    """The outcome of a run that need not be computed; None if it must be."""
    rerun, status, path = run.config.runtime.rerun, run.folder.status(), run.folder.path
    if status is not None and status.state is State.failed and rerun is Rerun.never:
        return Outcome(Ending.failed, path, f"{status.error}; runtime.rerun=never left it at that")
    if rerun is Rerun.all or not run.folder.is_done() or _changed_inputs(run, prepared):
        return None
    return Outcome(Ending.skipped, path)


def _changed_inputs(run: _Run, prepared: Prepared | None) -> list[str]:
    """The inputs in which a finished run differs from today's, in words."""
    if prepared is None:
        return []
    try:
        return prepared.inputs.changes(read(run.folder.path / INPUTS, dict[str, str]))
    except DamagedRun:
        return ["its inputs, which were not written down"]


def _compute(run: _Run, prepared: Prepared | None) -> Outcome:
    folder, start = run.folder, time.monotonic()
    before = folder.status()
    changed = _changed_inputs(run, prepared) if before is not None and before.state is State.done else []
    earlier = folder.retire() if changed else None
    with folder.log_file(), Progress(folder, run.name, run.bar) as progress:
        if changed:
            message = "run %s was computed from other inputs; changed: %s. Its results are now in %s"
            log.warning(message, run.name, ", ".join(changed), earlier)
        elif before is not None:
            state = "cut off" if before.state is State.running else before.state
            log.info("run %s was %s and is computed again", run.name, state)
        try:
            _measure(run, prepared, progress)
        except (KeyboardInterrupt, SystemExit) as stop:  # a launcher exits once it has queued the run again
            log.warning("run %s was interrupted%s", run.name, f": {stop}" if isinstance(stop, Terminated) else "")
            folder.interrupt()
            raise
        except Exception as error:
            log.error("run %s failed: %s", run.name, error, exc_info=error)
            folder.fail(error)
            is_refused = isinstance(error, ConfigError)
            message = without_secrets(
                str(error) if is_refused else f"{type(error).__name__}: {error} ({_place(error)})"
            )
            return Outcome(Ending.refused if is_refused else Ending.failed, folder.path, message)
        log.info("run %s is done, after %s", run.name, duration(time.monotonic() - start))
        return Outcome(Ending.done, folder.path)


def _place(error: BaseException) -> str:
    """The file and line that raised an error; the traceback is in run.log."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _measure(run: _Run, prepared: Prepared | None, progress: Progress) -> None:
    """Compute a run whose folder is claimed, and mark it as done."""
    folder, config, settings = run.folder, run.config, as_dict(run.config)
    folder.start(run_id(settings))
    if prepared is None and run.prepare is not None:
        prepared = run.prepare(config)  # what failed before fails here, and leaves its traceback
    folder.write("config.yaml", settings)
    if prepared is not None:
        folder.write(INPUTS, prepared.inputs.parts)
    log.info(
        f"run {run.name} starts: {config.finetune.name} lr={config.finetune.lr:g} on {config.task.name}, "
        f"{config.task.shots} shots, {config.model.name} ({config.model.weights}), seed {config.seed}"
    )
    run.experiment(config, folder, progress, prepared)
    folder.finish()
