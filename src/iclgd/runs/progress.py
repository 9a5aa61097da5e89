"""Progress: bars on a terminal, plain lines in a log file, numbers in status.json."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from iclgd.runs.folder import RunFolder

log = logging.getLogger(__name__)

STATUS_EVERY = 1.0  # seconds between updates of status.json
LINE_EVERY = 30.0  # seconds between lines where there is no terminal


@contextmanager
def terminal_bars() -> Iterator[Bars | None]:
    """The bars of a terminal while the block lasts; None where standard error is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # While they are drawn, rich prints above them what is written to standard error.
    with Bars(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bars:
        yield bars


class ConsoleHandler(logging.Handler):
    """The handler for the terminal in Hydra's logging configuration."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line to standard error as it is now, without the traceback, which run.log has."""
        try:
            brief = logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None})
            # A worker's line may come where the command that started it has drawn its bar.
            clear = "\r\x1b[2K" if sys.stderr.isatty() else ""
            sys.stderr.write(f"{clear}{self.format(brief)}\n")
            sys.stderr.flush()
        except Exception:  # as every handler of logging does: no run ends for a line
            self.handleError(record)


class Progress:
    """The progress of a run, stage by stage: in its folder's status.json, and as a bar or a line every 30 seconds."""

    def __init__(self, folder: RunFolder | None = None, name: str = "run", bars: Bars | None = None) -> None:
        self._folder = folder
        self._name = name
        self._bars = bars
        self._task = None if bars is None else bars.add_task(name, total=None)
        self._status_at = self._line_at = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)

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
        now = time.monotonic()
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, description=f"{self._name}: {stage}", completed=done, total=total)
        elif now - self._line_at > LINE_EVERY and 0 < done < total:
            self._line_at = now
            log.info("%s: %s %d of %d", self._name, stage, done, total)
        if self._folder is not None and now - self._status_at >= STATUS_EVERY:
            self._status_at = now
            self._folder.report_progress(stage, done, total)


@contextmanager
def sweep_progress(total: int | None, count: Callable[[], tuple[int, int]], bars: Bars | None) -> Iterator[None]:
    """Show how many runs of a sweep have ended, and of these failed, as `count` returns them from wherever they run."""
    stop = threading.Event()
    task = None if bars is None else bars.add_task("sweep", total=total)

    def watch() -> None:
        seen = (0, 0)
        while not stop.wait(0.5 if bars else 2.0):
            ended, failed = count()
            if bars is not None and task is not None:
                bars.update(task, completed=ended)
            elif (ended, failed) != seen:
                seen = (ended, failed)
                log.info("sweep: %d of %s runs ended%s", ended, total or "?", f", {failed} failed" if failed else "")

    watcher = threading.Thread(target=watch, name="sweep progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join(timeout=2.0)


def duration(seconds: float) -> str:
    """Seconds in words: 8 s, 3 min, 2 h 05 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
