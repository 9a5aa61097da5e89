"""The command `iclgd-verify`: whether finished runs hold."""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from iclgd.runs.folder import run_folders
from iclgd.verify.check import Verdict, verify


def cli(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0 where every run holds, and 1 where one does not."""
    parser = argparse.ArgumentParser(
        prog="iclgd-verify",
        description="Compute finished runs again, from their folders alone: by the program's own way and by a naive "
        "one, one query at a time. Says how far the stored scores are from both, and whether the runs hold.",
    )
    parser.add_argument("folder", type=Path, nargs="+", help="a run's folder, or a sweep's")
    parser.add_argument("--queries", type=int, default=8, help="how many queries to ask again (8)")
    parser.add_argument("--all", action="store_true", help="ask all queries again")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    if chosen.queries < 1:
        parser.error("--queries needs 1 or more")
    logging.getLogger("iclgd").setLevel(logging.ERROR)
    verdicts = []
    for folder in chosen.folder:
        runs = run_folders(folder)
        if not runs:
            parser.error(f"{folder} holds no run: name a run's folder or a sweep's, such as outputs/first_look")
        for run in runs:
            verdicts.append(verify(run, None if chosen.all else chosen.queries))
            if not chosen.json:
                _show(verdicts[-1])
    holds = all(verdict.holds for verdict in verdicts)
    if chosen.json:
        content = {"holds": holds, "runs": [_finite(verdict.as_dict()) for verdict in verdicts]}
        sys.stdout.write(json.dumps(content, indent=2, allow_nan=False) + "\n")
    return 0 if holds else 1


def _finite(content: object) -> object:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return str(content) if isinstance(content, float) and not math.isfinite(content) else content


def _show(verdict: Verdict) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(Text(f"\n{verdict.folder}: {'holds' if verdict.holds else 'DOES NOT HOLD'}"))
    if verdict.scores:
        table = Table("score", "own way", "naive way", "rounding explains", "the rest", "", box=None)
        for line in verdict.scores:
            naive = "not known" if line.naive is None else f"{line.naive:.1e}"
            numbers = f"{line.own:.1e}", naive, f"{line.explained:.1e}", f"{line.rest:.1e}"
            table.add_row(Text(line.score), *numbers, "holds" if line.holds else "OFF")
        console.print(Text(f"largest distance of a stored value, on {verdict.queries} queries, any layer"))
        console.print(table)
    for problem in verdict.problems:
        console.print(Text(f"does not hold: {problem}"))
    for note in verdict.notes:
        console.print(Text(note))


if __name__ == "__main__":
    sys.exit(cli())
