"""Processes and signals: those that end a run as exceptions, and the end of child processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import psutil


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
