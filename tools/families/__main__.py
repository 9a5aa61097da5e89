"""`python -m families [NAME ...]`: compares tiny models of every family with the naive implementation; a table, a JSON.

Families that are not named keep their results in the JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging as transformers_logging

from families.compare import compare
from families.tiny import MODEL_TYPES

RESULTS = Path(__file__).with_name("results.json")


def main() -> int:
    """Compare, print and write; 1 if a family is wrong, fails or is unknown to the naive implementation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="model types of transformers; none: all")
    parser.add_argument("--to", type=Path, default=RESULTS, help="the JSON of results")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    families = json.loads(options.to.read_text("utf-8"))["families"] if options.to.is_file() else {}
    bad = 0
    for name in options.names or MODEL_TYPES:
        result = compare(name)
        bad += result.state in ("wrong", "failed", "unknown")
        families[name] = result.summary()
        sys.stdout.write(f"{name:28} {result.state:10} {result.difference:8.1e} {result.reason[:150]}\n")
        sys.stdout.flush()
    write(options.to, families)
    return int(bad > 0)


def write(path: Path, families: dict[str, Any]) -> None:
    """Write results, a line for each family."""
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
    lines = [f"{json.dumps(name)}: {json.dumps(families[name])}" for name in MODEL_TYPES if name in families]
    head = json.dumps(versions).removesuffix("}")
    path.write_text(head + ', "families": {\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
