"""Whether a process that wrote something is still at work, and how it is stopped politely."""

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
    """What names this process for good: host, pid, and when it started."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "process": _birth(pid)}


def is_alive(record: Mapping[str, Any]) -> bool | None:
    """Whether the process that `this_process` described still runs; None if it ran on another host."""
    if record.get("host") != socket.gethostname():
        return None
    pid = record.get("pid")
    return isinstance(pid, int) and _birth(pid) is not None and _birth(pid) == record.get("process")


def _birth(pid: int) -> str | None:
    """The start of a process in a form that no clock change moves and no later process with the same pid shares."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        return f"{psutil.Process(pid).create_time():.0f}" if psutil.pid_exists(pid) else None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] == "Z" else f"{boot}/{fields[19]}"  # a zombie works no more


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
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    _, stubborn = psutil.wait_procs(children, timeout=patience)
    for child in stubborn:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(stubborn, timeout=patience)
    return len(children)
