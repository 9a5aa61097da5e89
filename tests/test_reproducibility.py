"""The same settings give the same bytes: by any launcher, with the cache or without, in one go or after kill -9."""

from __future__ import annotations

import os
import signal
from itertools import product
from pathlib import Path

import pytest

from command_line import PATIENCE, iclgd, start, wait_until
from iclgd.cli import command
from iclgd.runs.folder import RunFolder

SWEEP = (
    *("-m", "model=toy", "task=toy", "tracking=none", "task.queries=12", "task.shots=4"),
    *("finetune=gd,lcgd", "seed=0", "runtime.threads=1"),
)
SAME = ("scores.json", "prompts.json", "scores.parquet", "gradient_norms.parquet", "losses.parquet")
RUNS = 2
REPRESENTATIVE = ("basic", "auto", True)  # of all ways, which `make soak` tries


def written(sweep: Path) -> dict[str, bytes]:
    """What the finished runs of a sweep hold, by run and file."""
    runs = [path for path in sweep.glob("[!.]*/") if RunFolder(path).is_done()]
    assert len(runs) == RUNS
    return {f"{run.name}/{name}": (run / name).read_bytes() for run in runs for name in SAME}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("plain")
    ran = command.run([*SWEEP, "runtime.cache=off", f"paths.outputs={folder / 'outputs'}"], quiet=True)
    assert ran.code == 0, ran.message
    return written(folder / "outputs" / "multirun")


def cut_off(folder: Path, *arguments: str) -> None:
    """Start the sweep and kill it, workers and all, once a run is done."""
    process = start(folder, *arguments, fake=False)
    wait_until(lambda: any(folder.glob("outputs/multirun/*/scores.json")))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)


WAYS = [
    pytest.param(*way, marks=() if way == REPRESENTATIVE else pytest.mark.soak)
    for way in product(("basic", "joblib", "submitit_local"), ("off", "auto"), (False, True))
]


@pytest.mark.parametrize(("launcher", "cache", "resumed"), WAYS)
def test_launcher_cache_and_resuming_change_no_byte(plain, tmp_path, monkeypatch, launcher, cache, resumed):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sweep = (*SWEEP, f"hydra/launcher={launcher}", f"runtime.cache={cache}")
    if resumed:
        cut_off(tmp_path, *sweep)
    if launcher == "basic":
        monkeypatch.chdir(tmp_path)
        assert command.run(sweep, quiet=True).code == 0
    else:
        done = iclgd(tmp_path, *sweep, fake=False)
        assert done.returncode == 0, done.stderr
    assert written(tmp_path / "outputs" / "multirun") == plain
    assert any((tmp_path / "cache").rglob("*.safetensors")) == (cache == "auto")
