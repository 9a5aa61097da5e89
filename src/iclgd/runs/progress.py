"""Progress of a run: a bar on a terminal, lines in a log, numbers in status.json."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from iclgd.common.printable import without_secrets

if TYPE_CHECKING:
    from iclgd.runs.folder import RunFolder

log = logging.getLogger(__name__)

STATUS_EVERY = 1.0  # seconds between updates of status.json
LINE_EVERY = 30.0  # seconds between lines where there is no bar


class Formatter(logging.Formatter):
    """Formats log lines, tracebacks included, without the keys and passwords that an error of a library may quote."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or lines."""
        return without_secrets(super().format(record))


class ConsoleHandler(logging.StreamHandler):
    """The handler for the terminal in Hydra's logging configuration; tracebacks are left to run.log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line to standard error as it is at this moment: rich replaces it while a bar is drawn."""
        self.stream = sys.stderr
        super().emit(logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None}))


class Progress:
    """The progress of a run, stage by stage.

    Args:
        folder: where status.json is updated, about once a second.
        name: what the run is called on the bar and in the log.
        bar: draw a bar if standard error is a terminal; without one, a line is logged every 30 seconds.
    """

    def __init__(self, folder: RunFolder | None = None, name: str = "run", bar: bool = False) -> None:
        self._folder = folder
        self._name = name
        self._bars = None
        self._status_at = self._line_at = 0.0
        if bar and sys.stderr.isatty():
            from rich.console import Console  # here, to start faster where there is no terminal
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
            self._task = self._bars.add_task(name, total=None)

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def stage(self, name: str, total: int) -> Callable[..., None]:
        """Begin a stage of `total` steps.

        Returns:
            What to call after each step, or with the number of steps just made.
        """
        done = 0
        self._status_at, self._line_at = 0.0, time.monotonic()
        self._show(name, 0, total)

        def advance(steps: int = 1) -> None:
            nonlocal done
            done += steps
            self._show(name, done, total)

        return advance

    def _show(self, stage: str, done: int, total: int) -> None:
        time_now = time.monotonic()
        if self._bars is not None:
            self._bars.update(self._task, description=f"{self._name}: {stage}", completed=done, total=total)
        elif time_now - self._line_at > LINE_EVERY and 0 < done < total:
            self._line_at = time_now
            log.info("%s: %s %d of %d", self._name, stage, done, total)
        if self._folder is not None and time_now - self._status_at >= STATUS_EVERY:
            self._status_at = time_now
            self._folder.report_progress(stage, done, total)


def duration(seconds: float) -> str:
    """Seconds in words: 8 s, 3 min, 2 h 05 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
