"""How many times faster than the published protocol, and how far from the machine's limit?

`make bench` runs it and writes the table of BENCHMARKS.md. Everything compared is measured in the same process. The
naive protocol is timed on a sample of queries and demonstrations and scaled to all of them: its cost is one pass for
each query, so it is linear by construction.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from benchmarks.table import write_table
from configs import config as composed
from iclgd.common.records import PromptSet
from iclgd.config import Config
from iclgd.config.variants import variant as named_variant
from iclgd.evidence.gather import gather
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.preparation import prepare
from iclgd.mechanisms.finetuning import training_sequences
from iclgd.metrics import measure, required_inputs, summarise
from iclgd.models.anatomy import LanguageModel
from iclgd.models.loading import load
from iclgd.models.products import linear
from iclgd.models.recorder import Question, RecordPlan, record
from iclgd.runs.progress import Progress
from iclgd.tasks.draw import draw
from iclgd.tasks.encoding import encode
from iclgd.verify.naive import Naive
from learning_cases import finetuned

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


def seconds_of(benchmark: Any, work: Callable[[], object], rounds: int = REPEATS) -> list[float]:
    """Wall-clock seconds of each round, after one that is not counted."""
    benchmark.pedantic(work, rounds=rounds, warmup_rounds=1)
    return list(benchmark.stats.stats.data)


def once(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one round, as of the naive protocol, which is too slow to be repeated."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def test_machine_rate(results: dict[str, Any], benchmark: Any) -> None:
    """The rate of a large float32 product, by MKL or oneDNN, whichever is faster here: the floor's denominator."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    by_mkl = min(seconds_of(benchmark, lambda: [a @ b for _ in range(8)], 7))
    by_onednn = min(once(lambda: [linear(a, b) for _ in range(8)]) for _ in range(7))
    results["gflops"] = 8 * 2 * 2048**3 / min(by_mkl, by_onednn) / 1e9
    results["threads"] = torch.get_num_threads()


@pytest.mark.parametrize("setting", ["zsl", "icl"])
def test_recording(
    setting: str, results: dict[str, Any], benchmark: Any, model: LanguageModel, prompts: PromptSet, config: Config
) -> None:
    """A recording against one query at a time, in time and in numbers."""
    questions = [Question(query.token_ids, prompts.options(query)) for query in prompts.queries]
    sample = list(range(0, len(questions), max(1, len(questions) // SAMPLE)))[:SAMPLE]
    naive = Naive(model.network, config, replace(prompts, queries=tuple(prompts.queries[index] for index in sample)))
    context = prompts.context() if setting == "icl" else prompts.bos
    fast = seconds_of(benchmark, partial(record, model, questions, context, RecordPlan()))
    slow = once(partial(naive.record, context)) * len(questions) / len(sample)
    floor = _forward_floor(model, prompts, context, results["gflops"])
    results[setting] = {"naive": [slow], "ours": fast, "floor": floor}
    ours, theirs = record(model, questions, context, RecordPlan()), naive.record(context)
    attention = ours.attention_output[sample] - theirs.attention_output
    assert attention.abs().max() / theirs.attention_output.abs().max() < 1e-4
    torch.testing.assert_close(ours.label_scores[sample], theirs.label_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["gd", "lcgd"])
def test_finetuning(
    variant: str, results: dict[str, Any], benchmark: Any, model: LanguageModel, prompts: PromptSet, config: Config
) -> None:
    """All steps of a variant against plain autograd; the sample leaves both with the same weights."""
    settings, count = named_variant(config, variant), min(SAMPLE, SHOTS)
    lengths = [len(item.token_ids) for item in prompts.demonstrations]
    few = replace(prompts, demonstrations=prompts.demonstrations[:count], in_context=tuple(range(count)))
    naive, began = Naive(model.network, settings, few), time.perf_counter()
    with naive.finetuned():
        slow = time.perf_counter() - began
        with finetuned(model, few, settings):
            pairs = list(zip(model.network.parameters(), naive.network.parameters(), strict=True))
            assert all(torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5) for ours, theirs in pairs)

    def ours() -> None:
        with finetuned(model, prompts, settings):
            pass

    fast = seconds_of(benchmark, ours)
    floor = _step_floor(model, prompts, settings, results["gflops"])
    results[variant] = {"naive": [slow * sum(lengths) / sum(lengths[:count])], "ours": fast, "floor": floor}


def test_metrics(
    results: dict[str, Any], benchmark: Any, model: LanguageModel, prompts: PromptSet, config: Config
) -> None:
    """Scores and intervals of a run."""
    laboratory = Laboratory(model, prompts, config, required_inputs(config.metric.scores), Progress(), prepare(config))
    evidence = gather(laboratory)
    chosen = torch.ones(len(prompts.queries), dtype=torch.bool)
    work = lambda: summarise(measure(config.metric.scores, evidence), chosen, config.metric.scores)  # noqa: E731
    results["metrics"] = {"ours": seconds_of(benchmark, work)}


def test_peak_memory(results: dict[str, Any], config: Config) -> None:
    """Peak memory of one whole run, in a process of its own."""
    command = [sys.executable, "-c", _ONE_RUN, *_overrides(config)]
    with TemporaryDirectory() as folder:
        done = subprocess.run([*command, f"paths.outputs={folder}"], capture_output=True, text=True, check=True)
    results["peak_gb"] = float(done.stdout.split()[-1]) / 1e6
    assert results["peak_gb"] <= 2.5


_ONE_RUN = (
    "import re, sys; from pathlib import Path; from iclgd.cli.command import run; "
    "code = run(sys.argv[1:], quiet=True).code; assert code == 0; "
    "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"  # rusage counts the parent's too
)


def _overrides(config: Config) -> list[str]:
    counts = [f"task.shots={SHOTS}", f"task.queries={QUERIES}"]
    fixed = ["task=sst2", "finetune=lcgd", "runtime.cache=off", "tracking=none"]
    return [*fixed, *counts, f"paths.data_dir={config.paths.data_dir}"]


@pytest.mark.parametrize("axis", ["queries", "shots"])
def test_cost_is_linear(axis: str, results: dict[str, Any], model: LanguageModel, prompts: PromptSet) -> None:
    """The icl recording's time over the number of queries and of shots."""
    points = [(n, SHOTS) for n in (25, 50, 100, 200)] if axis == "queries" else [(50, k) for k in (4, 8, 16, 32)]
    rows = []
    for queries, shots in points:
        some = replace(prompts, in_context=prompts.in_context[:shots])
        questions = [Question(query.token_ids, some.options(query)) for query in some.queries[:queries]]
        tokens = len(some.context()) + sum(len(question.token_ids) for question in questions)
        seconds = min(once(partial(record, model, questions, some.context(), RecordPlan())) for _ in range(2))
        rows.append((queries, shots, tokens, seconds))
    results.setdefault("linear", {})[axis] = rows


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
    """Whole runs and sweeps, put together from the parts."""
    parts = ("zsl", "icl", "gd", "lcgd", "metrics")
    ours = {name: statistics.median(results[name]["ours"]) for name in parts}
    naive = {name: results[name]["naive"][0] for name in parts[:-1]}
    naive_run = {v: 2 * naive["zsl"] + naive["icl"] + naive[v] for v in ("gd", "lcgd")}
    another = {v: ours["zsl"] + ours[v] + ours["metrics"] for v in ("gd", "lcgd")}  # the cache has zsl and icl
    common = ours["zsl"] + ours["icl"]
    results["ratios"] = {
        "icl recording": naive["icl"] / ours["icl"],
        "one gd run": naive_run["gd"] / (common + another["gd"]),
        "one lcgd run": naive_run["lcgd"] / (common + another["lcgd"]),
        "sweep of 7 rates x {gd, lcgd}": RATES * sum(naive_run.values()) / (common + RATES * sum(another.values())),
    }
    assert results["ratios"]["icl recording"] > 1
