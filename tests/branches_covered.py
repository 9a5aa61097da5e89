"""Tells what share of branches the last tests with coverage took, and fails below 94 %."""

import json
import sys
import tempfile
from pathlib import Path

from coverage import Coverage

LEAST = 0.94

coverage = Coverage()
coverage.load()
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "coverage.json"
    coverage.json_report(outfile=str(file))
    totals = json.loads(file.read_text())["totals"]
share = totals["covered_branches"] / totals["num_branches"]
sys.stdout.write(f"{share:.1%} of branches are covered, at least {LEAST:.0%} are wanted\n")
sys.exit(share < LEAST)
