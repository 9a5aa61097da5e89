"""How alike two fits of the static patch are, the ceiling of scores that compare changes of weights with it.

`PYTHONPATH=tests/support python -m patch_halves [KEY=VALUE ...]` fits it to each half of a run's calibration
queries, to all of them, and to those of the next draw, and prints the weight scores of these pairs (SmolLM2: three
minutes of one core).
"""

from __future__ import annotations

import sys
from dataclasses import replace

from configs import config
from iclgd.mechanisms.patches import static_changes
from iclgd.metrics import geometry
from iclgd.models.loading import load
from iclgd.tasks.draw import draw
from iclgd.tasks.encoding import encode


def changes(model, prompts, run):
    """By layer, then by matrix, as the scores take them."""
    found = static_changes(model, prompts, run)
    layers, names = sorted({layer for layer, _ in found}), sorted({name for _, name in found})
    return tuple(tuple(found[layer, name].float().cpu() for name in names) for layer in layers)


def pairs(*overrides):
    """Two halves, the whole and a half, and two draws: what each pair is, and both changes."""
    runs = [config("finetune=static_patch", *overrides, f"seed={seed}") for seed in (0, 1)]
    model = load(runs[0].model, runs[0].runtime)
    first, second = (encode(draw(run), run, model.tokenizer, model.window) for run in runs)
    half = len(first.calibration) // 2
    parts = (first.calibration[:half], first.calibration[half:])
    one, other = (changes(model, replace(first, calibration=part), runs[0]) for part in parts)
    whole, next_draw = changes(model, first, runs[0]), changes(model, second, runs[1])
    return {"two halves": (one, other), "whole and half": (whole, one), "two draws": (whole, next_draw)}


if __name__ == "__main__":
    for name, (one, other) in pairs(*sys.argv[1:]).items():
        cosine = geometry.weight_cosine(one, other).nanmean()
        angles = geometry.weight_principal_angles(one, other).nanmean()
        sys.stdout.write(f"{name}: cosine {cosine:.3f}, principal angles {angles:.3f}\n")
