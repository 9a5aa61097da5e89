"""Signals, kills and disks around the real command line; only the experiment is a fake of milliseconds."""

import errno
import os
import re
import signal

import psutil
import pytest

from command_line import PATIENCE, iclgd, results, runs, start, started, states, wait_until
from iclgd.cli import command
from iclgd.runs import files
from iclgd.runs.folder import RunFolder, State


def assert_gone_on(tmp_path, sweep, folder, count):
    """The same command finishes a killed sweep; its results are those of one left in peace, run after run."""
    last = iclgd(tmp_path, *sweep)
    assert last.returncode == 0 and "skipped" in last.stdout, last.stderr
    (tmp_path / "calm").mkdir()
    *settings, launcher = sweep
    assert launcher.startswith("hydra/launcher=") and iclgd(tmp_path / "calm", *settings).returncode == 0
    expected = results(tmp_path / "calm" / "outputs" / "multirun")
    assert len(expected) == count and results(folder) == expected
    assert not [part for run in folder.glob("[!.]*/") for part in run.rglob(".part-*")]


@pytest.mark.parametrize("launcher", ["joblib", pytest.param("basic", marks=pytest.mark.soak)])
def test_a_killed_sweep_started_again_gives_what_an_uninterrupted_one_gives(tmp_path, launcher):
    sweep = ("-m", "finetune=gd,lcgd", "seed=0,1,2", f"hydra/launcher={launcher}")
    process, folder = started(tmp_path, *sweep[1:], hold=1, done=1 if launcher == "basic" else 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    (tmp_path / "hold1").unlink()
    assert_gone_on(tmp_path, sweep, folder, 6)


@pytest.mark.soak
def test_killed_at_several_moments_a_sweep_gives_what_an_uninterrupted_one_gives(tmp_path):
    sweep = ("-m", "finetune=gd,lcgd", "seed=range(0,6)", "hydra/launcher=joblib")
    folder = tmp_path / "outputs" / "multirun"
    for moment in (1, 5, 9):
        process = start(tmp_path, *sweep)
        wait_until(lambda moment=moment: len(list(folder.glob("*/scores.json"))) >= moment)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
    assert_gone_on(tmp_path, sweep, folder, 12)


@pytest.mark.parametrize(
    ("number", "code", "launcher"),
    [
        (signal.SIGINT, 130, "basic"),
        (signal.SIGTERM, 143, "joblib"),
        pytest.param(signal.SIGTERM, 143, "basic", marks=pytest.mark.soak),
    ],
)
def test_a_signal_ends_the_command_and_leaves_nothing_behind(tmp_path, number, code, launcher):
    process, folder = started(tmp_path, "seed=0,1,2,3,4", f"hydra/launcher={launcher}", hold=2, done=2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)  # seed 2 waits for longer
    assert process.returncode == code, err
    assert err.count("Traceback") == err.count("resource_tracker.py")  # loky's, of a folder that was removed before
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    counted = {word: int(n) for n, word in re.findall(r"(\d+) (done|interrupted)", out)}
    assert set(states(folder)) <= {State.done, State.interrupted, None}
    assert counted["done"] == states(folder).count(State.done) >= 2
    assert counted["interrupted"] >= states(folder).count(State.interrupted) >= 1  # more are told before they start
    left = {path: RunFolder(path.parent).state() for path in folder.rglob(".*") if path.name != ".invocations"}
    assert left == {}, (out, err)


def test_two_commands_at_once_share_the_work(tmp_path):
    processes = [start(tmp_path, "-m", "seed=range(0,6)") for _ in range(2)]
    ends = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    counts = [{word: int(n) for n, word in re.findall(r"(\d+) (done|skipped)", out)} for out, _ in ends]
    assert sum(count.get("done", 0) for count in counts) == 6
    assert all(sum(count.values()) == 6 for count in counts)
    assert [run.status().attempt for run in runs(tmp_path / "outputs" / "multirun")] == [1] * 6


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path):
    (tmp_path / "outputs").write_text("in the way")
    for arguments in ((), ("-m", "seed=0,1")):
        refused = iclgd(tmp_path, *arguments)
        assert refused.returncode == 2 and "name another folder with paths.outputs=" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_path_may_hold_what_the_command_line_reads_as_quotes(tmp_path):
    place = tmp_path / "o'brien" / 'a "b" c'
    place.mkdir(parents=True)
    done = iclgd(place, "-m", "seed=0,1")
    assert done.returncode == 0 and "2 done" in done.stdout, done.stderr


def test_a_read_only_disk_is_said_so(read_only, tmp_path):
    for arguments in ((), ("-m", "seed=0,1")):
        refused = iclgd(tmp_path, *arguments, f"paths.outputs={read_only}/outputs")
        assert refused.returncode == 2 and "Read-only file system" in refused.stderr
        assert "Traceback" not in refused.stderr and "paths.outputs=" in refused.stderr


def test_a_disk_that_fills_up_in_a_sweep_fails_its_runs_and_the_same_command_mends_them(
    in_process, monkeypatch, capsys
):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        assert command.run(["-m", "seed=0,1"]).code == 1
    assert "2 failed" in capsys.readouterr().out
    assert command.run(["-m", "seed=0,1"]).code == 0
    assert "2 done" in capsys.readouterr().out
