"""How far is a sweep? `iclgd-status FOLDER` reads the run folders and says it."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iclgd.runs.folder import RunFolder, State, Status
from iclgd.runs.invocation import Invocation
from iclgd.runs.progress import duration
from iclgd.shown import printable

_STYLES = {State.done: "green", State.running: "cyan", State.failed: "red", State.stale: "yellow"}


@dataclass(frozen=True)
class RunLine:
    """One run: its name, its state now, and what its status.json says."""

    name: str
    state: State
    status: Status

    def progress(self) -> str:
        """How far a running run is, or what a failed one failed of."""
        if self.state is State.failed:
            return (self.status.error or "").splitlines()[0] if self.status.error else ""
        if self.status.facts.get("diverged"):
            return f"diverged at step {self.status.facts.get('diverged_at')}"
        if self.status.facts.get("unstable"):
            return f"unstable: {self.status.facts.get('unstable_because')}"
        now = self.status.progress
        return f"{now['stage']} {now['done']}/{now['total']}" if now and self.state is not State.done else ""


def run_lines(folder: Path) -> list[RunLine]:
    """The runs under a folder, or the one that the folder is, in the order they were started."""
    paths = [folder] if (folder / "status.json").exists() else sorted(folder.glob("*/"))
    lines = []
    for path in paths:
        run = RunFolder(path)
        status, state = run.status(), run.state()
        if status is not None and state is not None:
            lines.append(RunLine(path.name, state, status))
    return sorted(lines, key=lambda line: (line.status.started_at or "", line.name))


def seconds_left(lines: Sequence[RunLine], total: int | None) -> float:
    """About how long the rest of a sweep takes: what is to do, at the mean duration, by as many as now run.

    Returns:
        Seconds; NaN while nothing is done or nobody works.
    """
    took = [line.status.seconds for line in lines if line.state is State.done and line.status.seconds]
    running = [line for line in lines if line.state is State.running]
    if not took or not running:
        return math.nan
    mean = sum(took) / len(took)
    over = sum(line.state in (State.done, State.failed) for line in lines)
    waiting = max(0, (total or len(lines)) - over - len(running))
    under_way = sum(max(0.0, mean - (line.status.seconds or 0.0)) for line in running)
    return (waiting * mean + under_way) / len(running)


def summary(folder: Path, lines: Sequence[RunLine]) -> str:
    """One line: how many runs are in which state, and how long the rest takes."""
    invocation = Invocation.latest(folder)
    total = invocation.total() if invocation else None
    counts = {state: sum(line.state is state for line in lines) for state in State}
    said = [f"{count} {state}" for state, count in counts.items() if count]
    at_work = invocation is not None and not invocation.is_over()
    if total and total > len(lines):
        said.append(f"{total - len(lines)} {'waiting' if at_work else 'not started'}")
    left = seconds_left(lines, total)
    if not math.isnan(left):
        said.append(f"about {duration(left)} left")
    again = counts[State.failed] + counts[State.stale] + counts[State.interrupted]
    hint = "; start the same sweep again to run what failed or was cut off" if again and not at_work else ""
    return f"{folder}: {', '.join(said) or 'no runs'}{hint}"


def _draw(lines: Sequence[RunLine]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 1000)  # in a file, a run is one line however long
    table = Table(*("run", "state", "started", "took", "progress"), box=None)
    for line in lines:
        state = Text(line.state, style=_STYLES.get(line.state, ""))
        took = duration(line.status.seconds) if line.status.seconds is not None else ""
        started = (line.status.started_at or "")[:19].replace("T", " ")
        table.add_row(line.name, state, started, took, Text(printable(line.progress(), 400)))
    console.print(table)


def cli(arguments: Sequence[str] | None = None) -> None:
    """The command `iclgd-status`."""
    parser = argparse.ArgumentParser(prog="iclgd-status", description="How far is a sweep, or a run?")
    parser.add_argument("folder", type=Path, nargs="+", help="a sweep's folder or a run's, such as outputs/first_look")
    parser.add_argument("--watch", action="store_true", help="again every five seconds, until nothing runs")
    chosen = parser.parse_args(arguments)
    for folder in chosen.folder:
        if not folder.is_dir():
            parser.error(f"{folder} is not a folder: name a sweep's folder, such as outputs/first_look")
    while True:
        busy = False
        for folder in chosen.folder:
            lines = run_lines(folder)
            busy |= any(line.state is State.running for line in lines)
            if lines:
                _draw(lines)
            sys.stdout.write(summary(folder, lines) + "\n")
        if not (chosen.watch and busy):
            return
        time.sleep(5)


if __name__ == "__main__":
    cli()
