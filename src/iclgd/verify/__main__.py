"""The command `iclgd-verify`: checks that finished runs can be reproduced."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from iclgd.common.paths import import_from_current_folder
from iclgd.common.printable import pipe_may_close, printable
from iclgd.runs.folder import run_folders
from iclgd.verify.check import Verdict, verify


def cli(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 where every run holds, and 1 where one does not."""
    import_from_current_folder()
    parser = argparse.ArgumentParser(
        prog="iclgd-verify",
        description="Compute the scores of finished runs again, from their folders alone: as the program does, and by "
        "a naive implementation. Says how far the stored scores are from both, and whether the runs hold.",
    )
    parser.add_argument("folder", type=Path, nargs="+", help="a run's folder, or a sweep's")
    parser.add_argument("--queries", type=int, default=8, help="how many queries to compute again (8)")
    parser.add_argument("--all", action="store_true", help="compute all queries again")
    options = parser.parse_args(arguments)
    if options.queries < 1:
        parser.error("--queries needs 1 or more")
    logging.getLogger("iclgd").setLevel(logging.ERROR)
    verdicts = []
    for folder in options.folder:
        runs = run_folders(folder)
        if not runs:
            parser.error(f"{folder} holds no run: name a run's folder or a sweep's, such as outputs/first_look")
        for run in runs:
            verdicts.append(verify(run, None if options.all else options.queries))
            with pipe_may_close():
                sys.stdout.write(_as_text(verdicts[-1]))
    return 0 if all(verdict.holds for verdict in verdicts) else 1


def _as_text(verdict: Verdict) -> str:
    lines = ["", f"{verdict.folder}: {'holds' if verdict.holds else 'DOES NOT HOLD'}"]
    if verdict.scores:
        lines.append(f"{'largest, mean distance':24}{'own way':20}{'naive way':20}of {verdict.queries} queries")
    for check in verdict.scores:
        own, naive = (f"{pair[0]:.1e}, {pair[1]:.1e}" if pair else "not known" for pair in (check.own, check.naive))
        lines.append(f"{check.score:24}{own:20}{naive:20}{'' if check.holds else 'OFF'}".rstrip())
    lines += [f"does not hold: {problem}" for problem in verdict.problems] + verdict.notes
    return "\n".join(printable(line, 1000) for line in lines) + "\n"


if __name__ == "__main__":
    sys.exit(cli())
