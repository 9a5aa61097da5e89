"""Many runs in one process: neither memory nor open files, threads or processes grow."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import psutil

from configs import config
from iclgd import experiment
from iclgd.runs.execute import Ending, execute

RUNS = 200 if os.environ.get("ICLGD_SOAK") == "1" else 40
WARM_UP = 10
GROWTH = 24 * 2**20  # bytes: noise of the allocator; a run that keeps its model or figures exceeds it in 40 runs
CHEAP = (
    *("model=toy", "task=toy", "tracking=none", "task.queries=2", "task.shots=2"),
    *("metric=[sim_aou]", "metric.bootstrap=0", "finetune=lcgd"),
)


def test_runs_leave_nothing_behind_in_the_process(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ICLGD_CACHE_DIR", str(tmp_path / "cache"))
    settings, process = config(*CHEAP), psutil.Process()
    seen = []
    for seed in range(RUNS):
        folder = tmp_path / f"run{seed}"
        assert execute(replace(settings, seed=seed), folder, experiment.run).ending is Ending.done
        shutil.rmtree(folder)
        seen.append((process.memory_info().rss, process.num_fds(), process.num_threads(), len(process.children())))
    memory, *counts = zip(*seen[WARM_UP:], strict=True)
    assert max(memory[-5:]) - memory[0] < GROWTH
    for count in counts:
        assert count[-1] <= count[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]
