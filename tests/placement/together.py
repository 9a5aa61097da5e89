"""A run of the toy model over two processes, as torchrun starts it, and the same run in one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from command_line import environment
from configs import config
from iclgd import experiment
from iclgd.runs.execute import Ending, execute
from iclgd.runs.folder import RunFolder

RUN = ("model=toy", "task=toy", "finetune=lcgd", "finetune.lr=0.1", "task.shots=4", "task.queries=6", "tracking=none")
SCORED = "metric=[sim_aou,sim_am,accuracy,gradient_norm]"
FOLLOWERS = Path(__file__).with_name("pretended.py")


def torchrun(folder: Path, *program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The run's end; `program` is what torchrun starts: `-m iclgd`, or a script."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *program, *RUN, SCORED]
    arguments = ("runtime.placement=tensor_parallel", "runtime.cache=off", f"paths.outputs={folder}/outputs")
    variables = {"ICLGD_CACHE_DIR": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": "", **variables}
    return subprocess.run(
        [*command, *arguments], cwd=folder, env={**environment(fake=False), **variables}, timeout=500,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def only_run(folder: Path) -> RunFolder:
    """The one run folder there is."""
    [path] = (folder / "outputs" / "single").iterdir()
    return RunFolder(path)


def same_as_alone(split: RunFolder, folder: Path) -> None:
    """Compare all scores with those of one process, to 1e-5."""
    outcome = execute(config(*RUN, SCORED, "runtime.cache=off"), folder / "alone", experiment.run)
    assert outcome.ending is Ending.done, outcome.message
    alone, shared = RunFolder(folder / "alone").read_json("scores.json"), split.read_json("scores.json")
    assert alone.keys() == shared.keys() and len(alone) > 4
    for name, expected in alone.items():
        for field in ("mean", "layers"):
            assert shared[name].get(field) == pytest.approx(expected.get(field), abs=1e-5, rel=1e-5), name
