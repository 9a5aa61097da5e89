"""Faults of file systems, clocks and processes around a sweep: `make test-outside`. See docs/FAULTS.md.

The command line, launcher and run folders are real; the experiment is the fake one of milliseconds, except where
recordings or W&B matter.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import simulated_reports
from command_line import environment, iclgd
from iclgd.common.seeding import numpy_stream

SWEEP = ("-m", "model=toy", "task=toy", "tracking=none", "seed=0,1,2", "hydra.sweep.dir=out")
REAL = ("model=toy", "task=toy", "task.queries=4", "metric=[sim_aou]")
ENOUGH = 120.0  # seconds


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> str:
    library = tmp_path_factory.mktemp("faulty") / "faulty.so"
    source = Path(__file__).with_name("faulty.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return str(library)


def start(folder: Path, *arguments: str, fake: bool = True, module: str = "iclgd", **added: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env={**environment(fake), **added},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen) -> tuple[int, str]:
    out, _ = process.communicate(timeout=ENOUGH)
    return process.returncode, out


def under(faulty: str, folder: Path, **faults: str) -> tuple[int, str]:
    """The sweep's exit code and words in a folder that behaves as a network folder may."""
    return ended(start(folder, *SWEEP, LD_PRELOAD=faulty, FAULTY_ROOT=str(folder / "out"), **faults))


def scores(folder: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in folder.glob("out/*/scores.json")}


def until(happens, process: subprocess.Popen) -> None:
    while not happens():
        assert process.poll() is None
        time.sleep(0.005)


def test_a_folder_without_locks_is_used_and_said_so(faulty, tmp_path):
    code, out = under(faulty, tmp_path, FAULTY_LOCKS="1")
    assert code == 0 and out.count("cannot be locked") == 3 and len(scores(tmp_path)) == 3
    assert not list(tmp_path.glob("out/*/.*"))


def test_a_folder_that_loses_every_handle_fails_runs_and_the_same_command_mends_them(faulty, tmp_path):
    code, out = under(faulty, tmp_path, FAULTY_RENAMES="1")
    assert code in (1, 2) and "Stale file handle" in out and not scores(tmp_path)
    assert not list(tmp_path.rglob(".part-*"))
    assert iclgd(tmp_path, *SWEEP).returncode == 0 and len(scores(tmp_path)) == 3


def test_a_clock_that_stands_still_stops_nothing(faulty, tmp_path):
    code, out = ended(start(tmp_path, *SWEEP, LD_PRELOAD=faulty, FAULTY_CLOCK="1700000000"))
    assert code == 0 and "3 done" in out
    for path in tmp_path.glob("out/*/status.json"):
        status = json.loads(path.read_text())
        assert status["seconds"] > 0 and status["started_at"] == status["finished_at"]
    assert "3 skipped" in ended(start(tmp_path, *SWEEP, LD_PRELOAD=faulty, FAULTY_CLOCK="1600000000"))[1]


def test_a_stopped_process_keeps_its_run_and_ends_it_when_it_goes_on(tmp_path):
    """As a suspended laptop does; ICLGD_STOPPED=60 stops it for a minute."""
    slow = ("finetune.epochs=40",)
    process = start(tmp_path, *SWEEP, *slow)
    until(lambda: list(tmp_path.glob("out/*/status.json")), process)
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(float(os.environ.get("ICLGD_STOPPED", "1")))
    status = [sys.executable, "-m", "iclgd.cli.status", "out"]
    listed = subprocess.run(status, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    other = start(tmp_path, *SWEEP, *slow)
    assert other.stdout is not None and any("waiting for it" in line for line in other.stdout)
    os.killpg(process.pid, signal.SIGCONT)
    first, second = ended(process), ended(other)
    assert "running" in listed.stdout, listed
    assert (first[0], second[0]) == (0, 0) and len(scores(tmp_path)) == 3


def test_a_folder_copied_while_it_runs_is_finished_in_the_copy(tmp_path):
    process = start(tmp_path, *SWEEP, "finetune.epochs=20")
    until(lambda: len(list(tmp_path.glob("out/*/status.json"))) == 2, process)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "out", copy / "out", ignore_dangling_symlinks=True)
    assert ended(process)[0] == 0
    code, out = ended(start(copy, *SWEEP, "finetune.epochs=20"))
    assert code == 0 and scores(copy) == scores(tmp_path)
    assert "1 skipped" in out or "2 done" in out or "3 done" in out


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can play two users")
def test_another_users_unreadable_cache_entries_cost_time_only(tmp_path):
    cache, numbers = tmp_path / "cache", []
    mortal = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "sh", "-c")
    for name, umask, others in (("first", "077", False), ("second", "022", True), ("third", "002", False)):
        command = f"umask {umask}; exec {sys.executable} -m iclgd {' '.join(REAL)} tracking=none hydra.run.dir={name}"
        done = subprocess.run(
            [*mortal, command],
            cwd=tmp_path,
            env={**environment(fake=False), "ICLGD_CACHE_DIR": str(cache)},
            capture_output=True,
            text=True,
            timeout=ENOUGH,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("damaged" in done.stderr) == others, done.stderr
        numbers.append((tmp_path / name / "scores.json").read_text())
        for path in cache.rglob("*") if name == "first" else ():
            if path.is_file():
                os.chown(path, 65534, 65534)
    assert numbers[0] == numbers[1] == numbers[2]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_of_wandb_costs_its_records_only(tmp_path):
    place = tmp_path / "wandb"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        process = start(tmp_path, *REAL, "hydra.run.dir=run", f"tracking.dir={place}", fake=False)
        code, out = ended(process)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
    assert code == 0, out
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"


def test_ten_thousand_runs_in_one_folder(tmp_path, record_property):
    """Status and report stay usable: seconds of CPU and memory of each are printed and bounded."""
    generator = numpy_stream("ten thousand", 0)
    simulated_reports.write_sweep(
        tmp_path / "out", generator, {"gd": 0.01, "lcgd": 0.02}, int(os.environ.get("ICLGD_DRAWS", "1667"))
    )
    count = len(list((tmp_path / "out").iterdir()))
    for module, seconds, gigabytes in (("iclgd.cli.status", 120, 2), ("iclgd.report", 400, 4)):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        done = subprocess.run(
            [sys.executable, "-m", module, "out"], cwd=tmp_path, env=environment(False), capture_output=True, text=True
        )
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        took, peak = used.ru_utime - before, used.ru_maxrss / 2**20
        sys.stdout.write(f"{module}: {count} runs, {took:.1f} s CPU, {peak:.2f} GiB\n")
        assert done.returncode == 0 and took < seconds and peak < gigabytes, done.stderr[-2000:]
