"""Random directions compared with each other in real runs: how many comparisons the report marks.

Each pair is two variants of random directions on the same demonstrations, so that every mark is false. Runs as a
script: `python -m random_pairs --pairs 40 --out FOLDER model=toy task=toy`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import iclgd
from iclgd.results import comparisons, rates
from iclgd.results.frame import Results
from iclgd.statistics import Comparison


def compared(results: Results, pairs: Sequence[tuple[str, str]]) -> Iterator[dict[str, Comparison]]:
    """What the report of each pair's own runs concludes, by score."""
    for pair in pairs:
        own = Results(tuple(run for run in results if run.settings["finetune.name"] in pair))
        among, _ = rates.contenders(own)
        (difference,) = comparisons.differences(own, among)
        yield dict(difference.results)


def main() -> None:
    """Make the runs that are not there yet, and print what is marked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    pairs = [(f"random_{index}_a", f"random_{index}_b") for index in range(asked.pairs)]
    results = iclgd.sweep(
        *("finetune=random_direction", "finetune.role=variant", "tracking=none", *asked.overrides),
        f"hydra.sweep.dir={asked.out}",
        finetune__name=[name for pair in pairs for name in pair],
        seed=list(range(asked.draws)),
    )
    found = list(compared(results, pairs))
    tested = sum(result.p == result.p for by_score in found for result in by_score.values())
    marked = sum(result.marked for by_score in found for result in by_score.values())
    reports = sum(any(result.marked for result in by_score.values()) for by_score in found)
    sys.stdout.write(f"{len(pairs)} pairs, {tested} comparisons tested, {marked} marked, in {reports} reports\n")


if __name__ == "__main__":
    main()
