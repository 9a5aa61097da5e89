"""`PYTHONPATH=tools python -m toy`: make both toy models and the rows of their tasks anew. Some minutes on one core."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from iclgd.common import paths
from iclgd.common.seeding import numpy_stream
from toy import language, plane, training

log = logging.getLogger("toy")

ROWS = {"train": 96, "test": 96}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `models/toy/`, `models/toy_plane/` and `tasks/bundled/TASK/SPLIT.jsonl`."""
    package = paths.bundled_data_folder().parents[1]
    parser = argparse.ArgumentParser(prog="python -m toy", description=__doc__)
    parser.add_argument("--out", type=Path, default=package, help="where to write; by default this package's own files")
    parser.add_argument("--seed", type=int, default=0, help="of weights, contexts and rows; the committed files have 0")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # sums in one order: the same weights again on the same machine
    write_rows(chosen.out / "tasks" / "bundled", chosen.seed)
    write_model(chosen.out / "models" / "toy", chosen.seed)
    write_plane(chosen.out / "models" / "toy_plane", chosen.seed)


def write_rows(folder: Path, seed: int) -> None:
    """Rows of the tasks; no text stands in both splits."""
    for task in language.TASKS:
        rows = language.rows(task, sum(ROWS.values()), numpy_stream(f"toy rows {task}", seed))
        (folder / task).mkdir(parents=True, exist_ok=True)
        for split, count in ROWS.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows[:count])
            (folder / task / f"{split}.jsonl").write_text(lines)
            rows = rows[count:]
    for task in plane.TASKS:
        (folder / task).mkdir(parents=True, exist_ok=True)
        for split, points in plane.rows(task).items():
            (folder / task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in points))


def write_model(folder: Path, seed: int) -> None:
    """config.json, model.safetensors and the tokenizer."""
    began, step = time.monotonic(), 0

    def report(label: float, word: float) -> None:
        nonlocal step
        step += 1
        if step % 100 == 0:
            log.info("step %4d  label loss %.3f  word loss %.3f  %3.0f s", step, label, word, time.monotonic() - began)

    network, tokenizer = training.train(seed=seed, after_step=report)
    for shots in (0, 1, 2, 4, 8, 15):
        log.info("accuracy after %2d demonstrations: %.3f", shots, training.accuracy(network, tokenizer, shots))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_plane(folder: Path, seed: int) -> None:
    """The model of the plane, in the same files."""
    network, tokenizer = plane.train(seed=seed)
    for shots in (0, 1, 8, 32):
        log.info("accuracy after %2d points: %.3f", shots, plane.accuracy(network, shots))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
