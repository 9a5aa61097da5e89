"""Sweeps whose truth is known, as run folders, read by the report's own comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from iclgd.common.records import Score
from iclgd.common.seeding import numpy_stream
from iclgd.config import ScoreConfig
from iclgd.metrics import summarise
from iclgd.results import comparisons, rates
from iclgd.results.frame import Results
from report_fixtures import make_config

RATES = (1e-3, 1e-2, 1e-1)
BEST = {1e-3: 0.25, 1e-2: 0.30, 1e-1: 0.26}  # the true means
QUERIES, LAYERS = 12, 2


@dataclass(frozen=True)
class Reported:
    """What reports of sweeps without any true difference say.

    Attributes:
        tested: comparisons with a p in all reports.
        false: the share of reports in which any comparison is marked.
        bias: mean of held-out values less the true means at the chosen rates.
    """

    tested: int
    false: float
    bias: float


def write_sweep(root: Path, generator: np.random.Generator, noise: Mapping[str, float], draws: int) -> None:
    """Run folders of equally good variants, each with its own spread between draws, at every rate and seed."""
    for seed in range(draws):
        shared = 0.05 * generator.standard_normal()
        for variant, sd in noise.items():
            for rate in RATES:
                mean = BEST[rate] + shared + sd * generator.standard_normal()
                values = mean + 0.1 * generator.standard_normal((QUERIES, LAYERS))
                _write(root / f"{variant}-{rate}-{seed}", variant, rate, seed, values)


def _write(folder: Path, variant: str, rate: float, seed: int, values: np.ndarray) -> None:
    looks = {"role": "variant", "order": 1}
    config = make_config(variant=variant, lr=rate, seed=seed, scores=("sim_aou",), finetune=looks)
    config["metric"]["scores"] = {"sim_aou": config["metric"]["scores"]["sim_aou"]}
    specs = {"sim_aou": ScoreConfig(limits=[-1, 1])}
    score = Score(torch.from_numpy(values).float(), ("example", "layer"))
    scores = summarise({"sim_aou": score}, torch.zeros(len(values), dtype=torch.bool), specs)
    folder.mkdir(parents=True)
    files = {
        "config.yaml": config,
        "scores.json": scores,
        "status.json": {"state": "done", "run_id": folder.name, "seconds": 1.0},
        "environment.json": {"iclgd": {"version": "0"}, "dtype": "float32", "notes": []},
        "prompts.json": {"demonstrations": [], "queries": [], "bos": [], "separator": []},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def reports(root: Path, repeats: int, draws: int, noise: Mapping[str, float]) -> Reported:
    """What `iclgd-report` concludes from so many sweeps."""
    generator = numpy_stream(f"reports {draws} {sorted(noise.items())}", 0)
    tested, false, bias = 0, 0, []
    for repeat in range(repeats):
        folder = root / f"{draws}-{repeat}"
        write_sweep(folder, generator, noise, draws)
        among, _ = rates.contenders(Results.read([folder]))
        results = [
            result
            for difference in comparisons.differences(Results.read([folder]), among)
            for result in difference.results.values()
        ]
        tested += sum(result.p == result.p for result in results)
        false += any(result.marked for result in results)
        values = [value for one in among for value in one.values["sim_aou"].values()]
        truth = [BEST[rate] for one in among for rate in one.rates.values()]
        bias.append(np.mean(values) - np.mean(truth))
    return Reported(tested, false / repeats, float(np.mean(bias)))
