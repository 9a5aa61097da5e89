"""Limits of processor time and of memory for what reads a stranger's files."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SECONDS = 10.0  # of the processor, so that other work beside the tests does not count
MEGABYTES = 250  # above what the process held before; libraries that are loaded on first use count too
_PROCESS = Path("/proc/self")


@contextmanager
def bounded(seconds: float = SECONDS, megabytes: float = MEGABYTES) -> Iterator[None]:
    """Fail if the block takes more time, or at its worst moment more memory. Memory is measured on Linux only."""
    before, start = _peak(reset=True), time.process_time()
    yield
    took, grew = time.process_time() - start, _peak() - before
    assert took < seconds, f"{took:.1f} s of the processor, {seconds:.1f} are allowed"
    assert grew < megabytes, f"{grew:.0f} MB of memory, {megabytes:.0f} are allowed"


def _peak(reset: bool = False) -> float:
    """The most memory that this process has held, in MB, since the last reset where the system can reset it."""
    if not (_PROCESS / "status").exists():
        return 0.0
    if reset:
        with suppress(OSError):
            (_PROCESS / "clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s*(\d+) kB", (_PROCESS / "status").read_text())
    return int(found[1]) / 1024 if found else 0.0
