"""Signals, kills and disks around the real command line; only the experiment is a fake of milliseconds."""

import errno
import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from command_line import PATIENCE, environment, results, runs, start, started, states
from iclgd.cli import command
from iclgd.runs.folder import RunFolder, State


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.soak)])
def test_a_killed_sweep_started_again_gives_what_an_uninterrupted_one_gives(in_process, tmp_path, capsys, launcher):
    sweep = ("-m", "finetune=gd,lcgd", "seed=0,1")
    process, folder = started(tmp_path, *sweep[1:], f"hydra/launcher={launcher}", hold=1, done=1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    (tmp_path / "hold1").unlink()
    assert command.run(sweep).code == 0 and "skipped" in capsys.readouterr().out
    assert command.run([*sweep, "sweep_name=calm"]).code == 0
    assert len(results(folder)) == 4 and results(folder) == results(tmp_path / "outputs" / "calm")
    assert not [part for run in folder.glob("[!.]*/") for part in run.rglob(".part-*")]


@pytest.mark.parametrize(
    ("number", "code", "launcher"), [(signal.SIGINT, 130, "basic"), (signal.SIGTERM, 143, "joblib")]
)
def test_a_signal_ends_the_command_and_leaves_nothing_behind(tmp_path, number, code, launcher):
    process, folder = started(tmp_path, "seed=0,1,2,3,4", f"hydra/launcher={launcher}", hold=2, done=2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)  # seed 2 waits for longer
    assert process.returncode == code, err
    assert not re.search(r'File ".*/iclgd/', err), err  # loky's tracker has tracebacks of its own
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    counted = {word: int(n) for n, word in re.findall(r"(\d+) (done|interrupted|not started)", out)}
    assert sum(counted.values()) == 5, out
    assert set(states(folder)) <= {State.done, State.interrupted, State.stale, None}
    assert counted["done"] == states(folder).count(State.done) >= 2
    assert counted["interrupted"] >= 1 and (launcher == "joblib" or counted["not started"] == 2)


def test_two_commands_at_once_share_the_work(tmp_path):
    processes = [start(tmp_path, "-m", "seed=range(0,4)") for _ in range(2)]
    ends = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    counts = [{word: int(n) for n, word in re.findall(r"(\d+) (done|skipped)", out)} for out, _ in ends]
    assert sum(count.get("done", 0) for count in counts) == 4
    assert all(sum(count.values()) == 4 for count in counts)
    assert [run.status().attempt for run in runs(tmp_path / "outputs" / "multirun")] == [1] * 4


@pytest.mark.parametrize("arguments", [(), ("-m", "seed=0,1")])
def test_a_folder_that_cannot_be_written_is_said_in_a_line(in_process, tmp_path, capsys, arguments):
    (tmp_path / "outputs").write_text("in the way")
    assert command.run(arguments).code == 2
    told = capsys.readouterr().err
    assert "name another folder with paths.outputs=" in told and "Traceback" not in told


@pytest.mark.parametrize("arguments", [(), ("-m", "seed=0,1")])
def test_a_read_only_disk_is_said_in_a_line(in_process, read_only, capsys, arguments):
    assert command.run([*arguments, f"paths.outputs={read_only}/outputs"]).code == 2
    told = capsys.readouterr().err
    assert "Read-only file system" in told and "paths.outputs=" in told and "Traceback" not in told


def test_a_disk_that_fills_up_in_a_sweep_fails_its_runs_and_the_same_command_mends_them(
    in_process, tmp_path, monkeypatch, capsys
):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "write", full)
        assert command.run(["-m", "seed=0,1"]).code == 1
    told = capsys.readouterr()
    assert "2 failed" in told.out and told.err.count("No space left on device") >= 2
    assert command.run(["-m", "seed=0,1"]).code == 0
    assert "2 done" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [("iclgd", "--keys"), ("iclgd", "--help"), ("iclgd.cli.status", ".")])
def test_a_closed_pipe_ends_the_command_quietly(tmp_path, arguments):
    (tmp_path / "sweep" / "run").mkdir(parents=True)
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=tmp_path, env=environment(), stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")
