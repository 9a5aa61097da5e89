"""The command `iclgd-status`: the state of sweeps and runs, with the settings that differ among the runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iclgd.cli.sweep_record import SweepRecord
from iclgd.common.paths import import_from_current_folder
from iclgd.common.printable import pipe_may_close, printable
from iclgd.runs import varying_keys
from iclgd.runs.files import State, Status, read
from iclgd.runs.folder import RunFolder, run_folders
from iclgd.runs.progress import duration

_STYLES = {State.done: "green", State.running: "cyan", State.failed: "red", State.stale: "yellow"}


@dataclass(frozen=True)
class RunLine:
    """One run."""

    name: str
    state: State
    status: Status
    settings: Mapping[str, Any]  # by Hydra name; none where config.yaml cannot be read

    def progress(self) -> str:
        """How far a running run is, or what a failed one failed of."""
        if self.state is State.failed:
            return (self.status.error or "").partition("\n")[0]
        facts, progress = self.status.facts, self.status.progress
        if facts.get("diverged"):
            return f"diverged at step {facts.get('diverged_at')}"
        if facts.get("unstable"):
            return f"unstable: {facts.get('unstable_because')}"
        if progress is None or self.state is State.done:
            return ""
        return f"{progress['stage']} {progress['done']}/{progress['total']}"


def sweeps(folders: Sequence[Path]) -> Iterator[tuple[Path, list[RunLine]]]:
    """The folders that hold runs, in or below the given ones, each with its runs in the order they were started."""
    for folder in folders:
        runs = run_folders(folder)
        parents = [folder] if runs == [folder] or not runs else sorted({run.parent for run in runs})
        for parent in parents:
            lines = [line for run in runs if run == folder or run.parent == parent for line in _run_line(run)]
            yield parent, sorted(lines, key=lambda line: (line.status.started_at or "", line.name))


def _run_line(path: Path) -> Iterator[RunLine]:
    run = RunFolder(path)
    status = run.status()
    if status is None:  # damaged, of which a warning tells
        return
    settings: Mapping[str, Any] = {}
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        settings = varying_keys.settings_of(read(path / "config.yaml"))
    yield RunLine(path.name, run.state_of(status), status, settings)


def summary(folder: Path, lines: Sequence[RunLine]) -> str:
    """One line: how many runs are in which state, and what to do about those that did not end well."""
    record = SweepRecord.latest(folder)
    counts: dict[str, int] = {state: sum(line.state is state for line in lines) for state in State}
    is_running = counts[State.running] > 0
    total = (record.total() if record else None) or 0
    counts["waiting" if is_running else "not started"] = max(0, total - len(lines))
    words = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    again = counts[State.failed] + counts[State.stale] + counts[State.interrupted]
    hint = "; start the same sweep again to run what failed or was cut off" if again and not is_running else ""
    return f"{printable(str(folder), 1000)}: {words or 'no runs'}{hint}"


def _print_table(lines: Sequence[RunLine]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 1000)  # in a file, a run is one line however long
    settings = [line.settings for line in lines if line.settings]
    drawn = [key for key in varying_keys.DRAW if len({run.get(key) for run in settings}) > 1]
    keys = varying_keys.varying_keys(settings) + drawn
    table = Table(box=None)
    for name in ("run", "state", *(varying_keys.heading(key, keys) for key in keys), "took", "progress"):
        table.add_column(Text(printable(name)))
    for line in lines:
        state = Text(line.state, style=_STYLES.get(line.state, ""))
        took = duration(line.status.seconds) if line.status.seconds is not None else ""
        values = [varying_keys.as_text(line.settings[key]) if key in line.settings else "" for key in keys]
        texts = [Text(printable(value, 24)) for value in values]
        table.add_row(Text(printable(line.name)), state, *texts, took, Text(printable(line.progress(), 400)))
    console.print(table)


def cli(arguments: Sequence[str] | None = None) -> None:
    """The command `iclgd-status`."""
    import_from_current_folder()
    parser = argparse.ArgumentParser(prog="iclgd-status", description="The state of sweeps and runs.")
    parser.add_argument("folder", type=Path, nargs="+", help="a run's folder, a sweep's, or a folder of sweeps")
    options = parser.parse_args(arguments)
    for folder in options.folder:
        if not folder.is_dir():
            parser.error(f"{folder} is not a folder: name a sweep's folder, such as outputs/first_look")
    with pipe_may_close():
        for folder, lines in sweeps(options.folder):
            if lines:
                _print_table(lines)
            sys.stdout.write(summary(folder, lines) + "\n")


if __name__ == "__main__":
    cli()
