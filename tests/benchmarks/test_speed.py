"""How many times faster than the published protocol, and how far from the machine's limit?

`make bench` runs it and writes the table of BENCHMARKS.md. Everything compared is measured in the same process. The
naive protocol is timed on a sample of queries and demonstrations and scaled to all of them: its cost is one pass for
each query, so it is linear by construction.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.naive_protocol import NaiveProtocol
from benchmarks.table import write_table
from configs import config as composed
from iclgd.config import Config
from iclgd.evidence import Laboratory
from iclgd.evidence import variant as named_variant
from iclgd.learning import finetuned, training_sequences
from iclgd.metrics import measure, required_inputs, summarise
from iclgd.models import LanguageModel, Question, RecordPlan, load, record
from iclgd.records import PromptSet
from iclgd.runs.progress import Progress
from iclgd.tasks import draw, encode

SAMPLE = int(os.environ.get("ICLGD_BENCH_SAMPLE", "12"))  # queries and demonstrations that the naive protocol runs
QUERIES = int(os.environ.get("ICLGD_BENCH_QUERIES", "200"))
SHOTS = int(os.environ.get("ICLGD_BENCH_SHOTS", "32"))
REPEATS = int(os.environ.get("ICLGD_BENCH_REPEATS", "3"))
RATES = 7


@pytest.fixture(scope="module")
def results() -> Any:
    """Measurements by name, written to BENCHMARKS.md when all is done."""
    found: dict[str, Any] = {"settings": {"queries": QUERIES, "shots": SHOTS, "sample": SAMPLE}}
    yield found
    write_table(found)


@pytest.fixture(scope="module")
def config() -> Config:
    folder = Path(os.environ.get("ICLGD_DATA_DIR", "../shared/datasets"))
    if not (folder / "sst2" / "train.jsonl").is_file():
        pytest.skip("SST-2 is not there: set ICLGD_DATA_DIR to a folder with sst2/train.jsonl")
    return composed(
        "task=sst2",
        "finetune=gd",
        f"paths.data_dir={folder.resolve()}",
        f"task.shots={SHOTS}",
        f"task.queries={QUERIES}",
        "runtime.cache=off",
        "tracking=none",
    )


@pytest.fixture(scope="module")
def model(config: Config) -> LanguageModel:
    return load(config.model, config.runtime)


@pytest.fixture(scope="module")
def prompts(config: Config, model: LanguageModel) -> PromptSet:
    return encode(draw(config), config, model.tokenizer, model.window)


def timed(work: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Wall-clock seconds of each repetition."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return seconds


def test_machine_rate(results: dict[str, Any]) -> None:
    """The rate of a large float32 product: the floor's denominator."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    seconds = timed(lambda: [a @ b for _ in range(8)], repeats=7)
    results["gflops"] = 8 * 2 * 2048**3 / min(seconds) / 1e9
    results["threads"] = torch.get_num_threads()


def test_recordings(results: dict[str, Any], model: LanguageModel, prompts: PromptSet) -> None:
    """icl and zsl recordings against one query at a time, and their numbers."""
    naive = NaiveProtocol(model, prompts)
    questions = [Question(query.token_ids, prompts.options(query)) for query in prompts.queries]
    sample = list(range(0, len(questions), max(1, len(questions) // SAMPLE)))[:SAMPLE]
    for setting in ("zsl", "icl"):
        context = prompts.context() if setting == "icl" else prompts.bos
        fast = timed(partial(record, model, questions, context, RecordPlan()))
        slow = timed(partial(naive.record, sample, setting == "icl"), 1)[0] * len(questions) / len(sample)
        floor = _forward_floor(model, prompts, context, results["gflops"])
        results[setting] = {"naive": [slow], "ours": fast, "floor": floor}
        ours, theirs = record(model, questions, context, RecordPlan()), naive.record(sample, setting == "icl")
        for row, index in enumerate(sample):
            expected = theirs[row]["attention_output"]
            assert (ours.attention_output[index] - expected).abs().max() / expected.abs().max() < 1e-4
            torch.testing.assert_close(ours.label_scores[index], theirs[row]["label_scores"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["gd", "lcgd"])
def test_finetuning(
    variant: str, results: dict[str, Any], model: LanguageModel, prompts: PromptSet, config: Config
) -> None:
    """All steps of a variant against plain autograd; afterwards both have the same weights."""
    naive = NaiveProtocol(model, prompts)
    settings = named_variant(config, variant)
    sample = list(range(min(SAMPLE, SHOTS)))
    lengths = [len(item.token_ids) for item in prompts.demonstrations]
    scale = sum(lengths) / sum(lengths[i] for i in sample)
    slow = [s * scale for s in timed(lambda: naive.finetune(sample, settings.finetune.lr, variant == "lcgd"), 1)]

    def ours() -> None:
        with finetuned(model, prompts, settings):
            pass

    results[variant] = {
        "naive": slow,
        "ours": timed(ours),
        "floor": _step_floor(model, prompts, settings, results["gflops"]),
    }


def test_metrics(results: dict[str, Any], model: LanguageModel, prompts: PromptSet, config: Config) -> None:
    """Scores and intervals of a run, and the peak memory of the process so far."""
    laboratory = Laboratory(model, prompts, config, required_inputs(config.metric.scores), Progress())
    evidence = laboratory.evidence()
    chosen = torch.ones(len(prompts.queries), dtype=torch.bool)
    results["metrics"] = {"ours": timed(lambda: summarise(measure(config.metric.scores, evidence), chosen, 2000, 0))}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    results["peak_gb_with_the_naive_copy"] = peak


def _block_flops(model: LanguageModel) -> float:
    """Multiply-adds times two of one token through all blocks' matrices."""
    return 2.0 * sum(p.numel() for block in model.anatomy.blocks for p in block.parameters() if p.ndim == 2)


def _attention_flops(model: LanguageModel, queries: float, keys: float) -> float:
    shape = model.anatomy.shape
    return 4.0 * shape.layers * shape.heads * shape.head_dim * queries * keys


def _unembedding_flops(model: LanguageModel) -> float:
    return 2.0 * model.anatomy.unembedding.weight.numel()


def _forward_floor(model: LanguageModel, prompts: PromptSet, context: tuple[int, ...], gflops: float) -> float:
    """Seconds that the products of a recording take at the machine's rate: each token once, the context once."""
    lengths = [len(query.token_ids) for query in prompts.queries]
    flops = (len(context) + sum(lengths)) * _block_flops(model) + len(lengths) * _unembedding_flops(model)
    flops += _attention_flops(model, len(context), len(context) / 2)
    flops += sum(_attention_flops(model, n, len(context) + n / 2) for n in lengths)
    return flops / gflops / 1e9


def _step_floor(model: LanguageModel, prompts: PromptSet, config: Config, gflops: float) -> float:
    """Blocks forward and backward (to the activations), and the unembedding forward and back at each exit."""
    exits = model.layers if config.finetune.objective == "lcgd" else 1
    flops = 0.0
    for sequence in training_sequences(prompts, config.finetune.loss_on, config.protocol.step):
        tokens, predicted = len(sequence.token_ids), int(sequence.predicted.sum())
        flops += tokens * 2 * _block_flops(model) + exits * predicted * 2 * _unembedding_flops(model)
        flops += 3 * _attention_flops(model, tokens, tokens / 2)
    return flops / gflops / 1e9


def test_summary(results: dict[str, Any]) -> None:
    """Whole runs and sweeps, put together from the parts, against the targets."""
    middle = {
        name: {key: statistics.median(v) for key, v in entry.items() if isinstance(v, list)}
        for name, entry in results.items()
        if isinstance(entry, dict)
    }
    naive_run = {v: 2 * middle["zsl"]["naive"] + middle["icl"]["naive"] + middle[v]["naive"] for v in ("gd", "lcgd")}
    our_run = {
        v: 2 * middle["zsl"]["ours"] + middle["icl"]["ours"] + middle[v]["ours"] + middle["metrics"]["ours"]
        for v in ("gd", "lcgd")
    }
    again = {v: middle["zsl"]["ours"] + middle[v]["ours"] + middle["metrics"]["ours"] for v in ("gd", "lcgd")}
    sweep = middle["zsl"]["ours"] + middle["icl"]["ours"] + RATES * (again["gd"] + again["lcgd"])
    results["ratios"] = {
        "icl recording": middle["icl"]["naive"] / middle["icl"]["ours"],
        "whole gd run": naive_run["gd"] / our_run["gd"],
        "whole lcgd run": naive_run["lcgd"] / our_run["lcgd"],
        "sweep of 7 rates x {gd, lcgd}": RATES * (naive_run["gd"] + naive_run["lcgd"]) / sweep,
    }
    print(json.dumps(results, indent=1))
    assert results["ratios"]["icl recording"] > 1
