"""The command `iclgd-status`: the state of sweeps and runs, with the settings that differ among the runs."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iclgd.cli.invocation import Invocation
from iclgd.common.paths import import_from_current_folder
from iclgd.common.printable import pipe_may_close, printable
from iclgd.runs import varying_keys
from iclgd.runs.folder import RunFolder, run_folders
from iclgd.runs.progress import duration
from iclgd.runs.schema import State, Status, read

_STYLES = {State.done: "green", State.running: "cyan", State.failed: "red", State.stale: "yellow"}
_OWN = ("run", "state", "started", "took")  # what a list can be sorted by beside the settings


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
            return (self.status.error or "").splitlines()[0] if self.status.error else ""
        facts, progress = self.status.facts, self.status.progress
        if facts.get("diverged"):
            return f"diverged at step {facts.get('diverged_at')}"
        if facts.get("unstable"):
            return f"unstable: {facts.get('unstable_because')}"
        if progress is None or self.state is State.done:
            return ""
        return f"{progress['stage']} {progress['done']}/{progress['total']}"

    def sort_key(self, key: str) -> tuple[bool, bool, Any]:
        """Numbers first, then texts, then runs without a value."""
        own = {"run": self.name, "state": self.state, "started": self.status.started_at, "took": self.status.seconds}
        value = own[key] if key in own else self.settings.get(key)
        return value is None, not isinstance(value, int | float), 0 if value is None else value


def sweeps(folders: Sequence[Path]) -> Iterator[tuple[Path, list[RunLine]]]:
    """The folders that hold runs, in or below the given ones, each with its runs in the order they were started."""
    for folder in folders:
        runs = run_folders(folder)
        for sweep in [folder] if runs == [folder] else sorted({run.parent for run in runs}) or [folder]:
            yield sweep, run_lines(sweep)


def run_lines(folder: Path) -> list[RunLine]:
    """The runs in a sweep's folder, or the one that the folder is, in the order they were started."""
    paths = [folder] if (folder / "status.json").exists() else sorted(folder.glob("*/"))
    lines = []
    for path in paths:
        run = RunFolder(path)
        status = run.status()
        if status is not None:
            lines.append(RunLine(path.name, run.state_of(status), status, _settings(path)))
    return sorted(lines, key=lambda line: (line.status.started_at or "", line.name))


def _settings(folder: Path) -> Mapping[str, Any]:
    """The settings in a run's config.yaml; none where it cannot be read."""
    try:
        return varying_keys.settings_of(read(folder / "config.yaml"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def summary(folder: Path, lines: Sequence[RunLine]) -> str:
    """One line: how many runs are in which state, and what to do about those that did not end well."""
    invocation = Invocation.latest(folder)
    is_at_work = invocation is not None and not invocation.is_over()
    counts: dict[str, int] = {state: sum(line.state is state for line in lines) for state in State}
    total = (invocation.total() if invocation else None) or 0
    counts["waiting" if is_at_work else "not started"] = max(0, total - len(lines))
    words = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    again = counts[State.failed] + counts[State.stale] + counts[State.interrupted]
    hint = "; start the same sweep again to run what failed or was cut off" if again and not is_at_work else ""
    return f"{printable(str(folder), 1000)}: {words or 'no runs'}{hint}"


def in_order(lines: Sequence[RunLine], key: str) -> list[RunLine]:
    """The runs by a setting, named by its Hydra key or the last part of it, or by run, state, started or took.

    Raises:
        ValueError: no run has such a key; the message names those that there are.
    """
    keys = dict.fromkeys(name for line in lines for name in line.settings)
    matches = [name for name in keys if key in (name, name.rpartition(".")[2])]
    if key not in _OWN and not matches:
        raise ValueError(f"no run has {key!r} to sort by: choose from {', '.join((*_OWN, *_keys(lines)))}")
    chosen = key if key in _OWN or key in keys else matches[0]
    return sorted(lines, key=lambda line: line.sort_key(chosen))


def _keys(lines: Sequence[RunLine]) -> list[str]:
    """The keys that differ among the runs, those of the draw included."""
    settings = [line.settings for line in lines if line.settings]
    drawn = [key for key in varying_keys.DRAW if len({run.get(key) for run in settings}) > 1]
    return varying_keys.varying_keys(settings) + drawn


def _print_table(lines: Sequence[RunLine]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 1000)  # in a file, a run is one line however long
    keys = _keys(lines)
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
    parser.add_argument("--sort", metavar="KEY", default="started", help="a setting, run, state, started or took")
    parser.add_argument("--watch", action="store_true", help="again every five seconds, until nothing runs")
    options = parser.parse_args(arguments)
    for folder in options.folder:
        if not folder.is_dir():
            parser.error(f"{folder} is not a folder: name a sweep's folder, such as outputs/first_look")
    with pipe_may_close():
        while True:
            is_running = False
            for folder, lines in sweeps(options.folder):
                is_running |= any(line.state is State.running for line in lines)
                try:
                    lines = in_order(lines, options.sort)
                except ValueError as error:
                    parser.error(str(error))
                if lines:
                    _print_table(lines)
                sys.stdout.write(summary(folder, lines) + "\n")
            if not (options.watch and is_running):
                return
            sys.stdout.flush()
            time.sleep(5)


if __name__ == "__main__":
    cli()
