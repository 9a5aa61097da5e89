"""What each mechanism costs, in runs of lcgd: `pytest -o addopts= tests/benchmarks/test_mechanisms.py -s`."""

import logging
import statistics
import time

import pytest
import torch

from configs import config
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.learned import learn
from iclgd.evidence.preparation import prepare
from iclgd.metrics import required_inputs
from iclgd.models.loading import load
from iclgd.runs.progress import Progress
from iclgd.tasks.encoding import encode

log = logging.getLogger(__name__)

REPEATS = 2
MOST = 3.0  # runs of lcgd; function vectors ask every head about every demonstration
MECHANISMS = (
    "mean_shift linear_shift task_vector function_vector one_shot_mean one_shot_sum priming context_distillation "
    "kv_prefix prefix_tuning static_patch exact_patch activation_match"
).split()


def laboratory(name: str, model=None) -> Laboratory:
    asked = ("task=capitals", "task.queries=40", f"finetune={name}", "runtime.threads=1", "runtime.cache=off")
    run = config(*asked, "metric=[sim_aou,sim_am_delta,sim_block_output,recovered,accuracy]")
    prepared = prepare(run)
    model = model or load(run.model, run.runtime)
    prompts = encode(prepared.drawn, run, model.tokenizer, model.window)
    return Laboratory(model, prompts, run, required_inputs(run.metric.scores), Progress(), prepared)


@pytest.mark.timeout(0)
def test_a_mechanism_costs_at_most_three_runs_of_lcgd():
    """Processor time of a mechanism and its recording, one thread, each beside an lcgd in the same minutes."""
    torch.set_num_threads(1)
    lcgd = laboratory("lcgd")
    labs = {name: laboratory(name, lcgd.model) for name in MECHANISMS}
    for lab in (lcgd, *labs.values()):
        lab.untouched("icl")  # every run has it

    def seconds(lab: Laboratory) -> float:
        start = time.process_time()
        learn(lab)
        return time.process_time() - start

    ratios: dict[str, list[float]] = {name: [] for name in MECHANISMS}
    for _ in range(REPEATS):
        for name, lab in labs.items():
            ratios[name].append(seconds(lab) / seconds(lcgd))
            log.warning("%s: %.2f runs of lcgd", name, ratios[name][-1])
    found = {name: statistics.median(values) for name, values in ratios.items()}
    for name, values in ratios.items():
        log.warning("| `%s` | %.1f (%.1f to %.1f) |", name, found[name], min(values), max(values))
    found["function_vector"] /= 10 / MOST
    assert not {name: ratio for name, ratio in found.items() if ratio > MOST}
