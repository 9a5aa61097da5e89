"""Processes: how one is recognised later, and how it is stopped politely."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception that unwinds like Ctrl-C."""


def this_process() -> dict[str, Any]:
    """A record that names this process for good: host, pid, and when it started."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "process": _birth(os.getpid())}


def is_alive(record: Mapping[str, Any]) -> bool | None:
    """Whether the process that `this_process` described still runs; None if it ran on another host."""
    if record.get("host") != socket.gethostname():
        return None
    pid = record.get("pid")
    return isinstance(pid, int) and _birth(pid) is not None and _birth(pid) == record.get("process")


def _birth(pid: int) -> str | None:
    """The start of a process in a form that no clock change moves and no later process with the same pid shares."""
    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return None
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except psutil.NoSuchProcess:
        return None
    except FileNotFoundError:  # not Linux
        return f"{psutil.Process(pid).create_time():.0f}"
    return f"{boot}/{stat[stat.rindex(')') + 2 :].split()[19]}"


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated` in the main thread, so that `finally` blocks run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise Terminated(f"signal {number}")

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_children(patience: float = 3.0) -> int:
    """End every process that this one started, and theirs: first politely, then for good. Returns how many."""
    children = psutil.Process().children(recursive=True)
    for send in (psutil.Process.terminate, psutil.Process.kill):
        for child in children:
            with suppress(psutil.NoSuchProcess):
                send(child)
        if not psutil.wait_procs(children, timeout=patience)[1]:
            break
    return len(children)
