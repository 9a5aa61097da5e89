"""Many runs in one process: neither memory nor open files, threads or processes grow."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

RUNS = 200 if os.environ.get("ICLGD_SOAK") == "1" else 40
WARM_UP = 24  # runs until the allocator has settled
GROWTH = 12 * 2**20  # bytes: twice the noise seen afterwards, in 40 runs and in 200
CHEAP = (
    *("model=toy", "task=toy", "tracking=none", "task.queries=2", "task.shots=2", "runtime.cache=off"),
    *("metric=[sim_aou]", "finetune=lcgd"),
)


@pytest.mark.soak
def test_runs_leave_nothing_behind_in_the_process(tmp_path: Path) -> None:
    environment = {**os.environ, "ICLGD_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]  # of its own: other tests' garbage is not this one's
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20 * RUNS)
    assert done.returncode == 0, done.stderr
    memory, *counts = zip(*json.loads(done.stdout.splitlines()[-1])[WARM_UP:], strict=True)
    assert max(memory[-5:]) - memory[0] < GROWTH
    for count in counts:
        assert count[-1] <= count[0] + 1  # one may open late; what every run leaves behind would be sixteen
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def _many_runs(folder: Path) -> list[tuple[int, ...]]:
    import ctypes
    import gc

    import psutil

    from configs import config
    from iclgd import experiment
    from iclgd.runs.execute import Ending, execute

    settings, process, seen = config(*CHEAP), psutil.Process(), []
    for seed in range(RUNS):
        run = folder / f"run{seed}"
        assert execute(replace(settings, seed=seed), run, experiment.run).ending is Ending.done
        shutil.rmtree(run)
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # what is free but held for the next run is no growth
        seen.append((process.memory_info().rss, process.num_fds(), process.num_threads(), len(process.children())))
    return seen


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_many_runs(Path(sys.argv[1]))) + "\n")
