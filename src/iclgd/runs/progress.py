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
    from rich.progress import TaskID

    from iclgd.runs.folder import RunFolder

log = logging.getLogger(__name__)

_STATUS_EVERY = 1.0  # seconds between words to status.json
_LINE_EVERY = 30.0  # seconds between lines where there is no terminal

_bars: Bars | None = None


@contextmanager
def terminal() -> Iterator[None]:
    """Inside, and on a terminal, progress is drawn as bars; log lines appear above them."""
    global _bars
    if _bars is not None or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    _bars = Bars(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    try:
        with _bars:
            yield
    finally:
        _bars = None


class ConsoleHandler(logging.Handler):
    """What Hydra's logging configuration puts on the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line above the bars, without the traceback, which run.log has."""
        try:
            brief = logging.makeLogRecord({**record.__dict__, "exc_info": None, "exc_text": None})
            line = self.format(brief)
            if _bars is None:
                # Of a worker: the command that started it may have drawn its bar where this line goes.
                clear = "\r\x1b[2K" if sys.stderr.isatty() else ""
                sys.stderr.write(f"{clear}{line}\n")
                sys.stderr.flush()
            else:
                _bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        except Exception:  # as every handler of logging does: it tells on stderr, and no run ends for a line
            self.handleError(record)


class Progress:
    """The progress of one run, stage by stage.

    The status.json of a folder, if there is one, is kept up to date, about once a second.
    """

    def __init__(self, folder: RunFolder | None = None, name: str = "run") -> None:
        self._folder = folder
        self._name = name
        self._task: TaskID | None = None
        self._told = self._drawn = 0.0

    def __enter__(self) -> Progress:
        if _bars is not None:
            self._task = _bars.add_task(self._name, total=None)
        return self

    def __exit__(self, *exception: object) -> None:
        if _bars is not None and self._task is not None:
            _bars.remove_task(self._task)

    def stage(self, name: str, total: int) -> Callable[..., None]:
        """Begin a stage of `total` steps.

        Returns:
            What to call after each step, or with the number of steps just made.
        """
        done, began = 0, time.monotonic()
        self._told, self._drawn = 0.0, began
        self._show(name, 0, total)

        def advance(steps: int = 1) -> None:
            nonlocal done
            done += steps
            self._show(name, done, total)
            if _bars is None and time.monotonic() - self._drawn > _LINE_EVERY and 0 < done < total:
                self._drawn = time.monotonic()
                log.info("%s: %s %d of %d, %s left", self._name, name, done, total, remaining(began, done, total))

        return advance

    def _show(self, stage: str, done: int, total: int) -> None:
        if _bars is not None and self._task is not None:
            _bars.update(self._task, description=f"{self._name}: {stage}", completed=done, total=total)
        now = time.monotonic()
        if self._folder is not None and now - self._told >= _STATUS_EVERY:
            self._told = now
            self._folder.report_progress(stage, done, total)


@contextmanager
def sweep_progress(total: int | None, count: Callable[[], tuple[int, int]]) -> Iterator[None]:
    """Show how many runs of a sweep have ended, wherever they are computed.

    `count` returns how many have ended, and how many of these failed.
    """
    stop, began = threading.Event(), time.monotonic()
    task = None if _bars is None else _bars.add_task("sweep", total=total)

    def watch() -> None:
        seen, drawn = (0, 0), 0.0
        while not stop.wait(0.5):
            ended = count()
            if _bars is not None and task is not None:
                _bars.update(task, completed=ended[0])
            elif ended != seen and time.monotonic() - drawn > 2.0:
                drawn, seen = time.monotonic(), ended
                left = f", {remaining(began, ended[0], total)} left" if total and 0 < ended[0] < total else ""
                failed = f", {ended[1]} failed" if ended[1] else ""
                log.info("sweep: %d of %s runs ended%s%s", ended[0], total or "?", failed, left)

    watcher = threading.Thread(target=watch, name="sweep progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join(timeout=2.0)


def remaining(began: float, done: int, total: int) -> str:
    """About how long the rest takes, if it goes on as it went since `began` (a time.monotonic())."""
    return duration((time.monotonic() - began) / done * (total - done))


def duration(seconds: float) -> str:
    """Seconds in words: 8 s, 3 min, 2 h 05 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
