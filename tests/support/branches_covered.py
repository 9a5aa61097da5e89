"""Tells which share of lines and branches the tests took, by SlipCover's file; fewer than 94 % of branches fail.

What processes of their own take (commands, workers) is not counted.
"""

import json
import sys
from pathlib import Path

LEAST, SHOWN = 0.94, 15

files = json.loads(Path(sys.argv[1]).read_text())["files"]
for name in sorted(files, key=lambda name: -len(files[name]["missing_branches"]))[:SHOWN]:
    gone = files[name]["missing_branches"]
    places = ", ".join(f"{start}->{end}" for start, end in gone[:8])
    sys.stdout.write(f"{len(gone):4d} branches not taken in {name}: {places}\n")
for kind in ("lines", "branches"):
    taken, gone = (sum(len(file[f"{state}_{kind}"]) for file in files.values()) for state in ("executed", "missing"))
    sys.stdout.write(f"{taken / (taken + gone):.1%} of {kind} are covered\n")
share = taken / (taken + gone)
if share < LEAST:
    sys.stdout.write(f"below {LEAST:.0%} of branches this fails\n")
sys.exit(share < LEAST)
