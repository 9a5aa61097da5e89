import errno
import json
import logging
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclgd.common.digests import sha256
from iclgd.runs import files, folder
from iclgd.runs.files import State, Status
from iclgd.runs.folder import RunFolder

TEXT = st.text(st.characters(codec=None), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "abc")


def finish(run):
    run.start("abc")
    run.write("scores.json", {"sim_aou": {"mean": 0.5}})
    run.write("config.yaml", {"seed": 0})
    run.write("scores.parquet", pd.DataFrame({"layer": [0, 1], "value": [0.5, np.nan]}))
    run.finish()


@given(JSON)
def test_json_is_strict_and_its_bytes_depend_on_the_content_alone(content):
    text = files.to_json(content)
    assert files.to_json(content) == text == text.encode("ascii").decode()
    assert json.loads(text) == files.plain(content)


def test_plain_values():
    content = {"a": np.float32("nan"), 1: (np.int64(2), float("inf")), "c": np.array([[1.0, np.nan]]), "d": State.done}
    assert files.plain(content) == {"a": None, 1: [2, None], "c": [[1.0, None]], "d": "done"}


def test_a_full_disk_leaves_the_old_file_and_nothing_else(run, monkeypatch):
    run.write("scores.json", {"a": {"mean": 1}})

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        run.write("scores.json", {"a": {"mean": 2}})
    assert run.read_json("scores.json") == {"a": {"mean": 1}}
    assert os.listdir(run.path) == ["scores.json"]


def test_progress_and_the_end_survive_a_full_disk(run, monkeypatch, caplog):
    run.start("abc")
    monkeypatch.setattr(files.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    run.report_progress("finetune", 1, 2)
    run.fail(RuntimeError("why"))
    assert caplog.text.count("status.json could not be written") == 2


def test_a_done_run_is_done_and_says_what_it_holds(run):
    finish(run)
    status = run.status()
    assert (status.state, status.attempt, run.is_done()) == (State.done, 1, True)
    assert set(status.files) == {"scores.json", "config.yaml", "scores.parquet"}
    assert status.files["scores.json"]["sha256"] == sha256(run.path / "scores.json")
    assert status.finished_at and status.seconds is not None


@pytest.mark.parametrize("name", ["scores.json", "scores.parquet"])
@pytest.mark.parametrize("damage", [lambda content: content[:-3], lambda content: content[::-1], None])
def test_a_damaged_finished_run_counts_as_not_done_and_the_log_says_so(run, name, damage, caplog):
    finish(run)
    path = run.path / name
    content = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(content))
    assert not run.is_done()
    assert f"{name} is not what the finished run wrote" in caplog.text


@pytest.mark.parametrize("content", ["", '{"state": "perhaps"}', "null"])
def test_a_damaged_status_counts_as_never_started(run, content, caplog):
    finish(run)
    (run.path / "status.json").write_text(content)
    assert run.status() is None and run.state() is None and not run.is_done()
    assert "the run counts as never started" in caplog.text


def test_a_running_run_is_stale_when_its_process_is_gone(run):
    script = (
        "import sys; from iclgd.runs.folder import RunFolder; run = RunFolder(sys.argv[1])\n"
        "with run.claim(): run.start('abc'); print('up', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n" and run.state() is State.running
        process.kill()
    assert run.state() is State.stale
    with run.claim():  # a new process may compute it
        assert run.state() is State.running


def test_a_run_on_another_host_is_stale_after_an_hour_of_silence(run, monkeypatch):
    """Locks of other hosts are not seen on every network file system."""
    run._write_status(Status(state=State.running, owner={"host": "elsewhere", "pid": 1}))
    assert run.state() is State.running
    now = time.time()
    monkeypatch.setattr(folder.time, "time", lambda: now + 7200)
    assert run.state() is State.stale


def test_where_nothing_can_be_locked_a_run_is_computed_with_a_warning(run, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    run.path.mkdir()
    (run.path / ".claim").touch()
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with run.claim():
        run.start("abc")
        assert run.state() is State.running
    assert "cannot be locked" in caplog.text and not (run.path / ".claim").exists()


def test_a_clock_that_jumps_changes_neither_state_nor_duration(run, monkeypatch):
    run.start("abc")
    monkeypatch.setattr(folder.time, "time", lambda: 0.0)
    monkeypatch.setattr(folder, "_utc_now", lambda: "1970-01-01T00:00:00+00:00")
    with run.claim():
        assert run.state() is State.running
    run.write("scores.json", {})
    run.finish()
    assert 0 <= run.status().seconds < 60 and run.is_done()


def test_the_log_goes_to_the_folder_and_the_handler_goes_away(run):
    before = list(logging.getLogger().handlers)
    with run.log_file():
        logging.getLogger("iclgd.test").warning("a line with \ud800")
    logging.getLogger("iclgd.test").warning("not this one")
    assert logging.getLogger().handlers == before
    text = (run.path / "run.log").read_text()
    assert "WARNING iclgd.test: a line with \\ud800" in text and "not this one" not in text


def test_a_users_own_files_in_a_run_folder_are_left_alone(run):
    finish(run)
    (run.path / "notes.md").write_text("mine")
    (run.path / "mine.svg").write_text("<svg/>")
    (run.path / "stale.parquet").write_bytes(b"an earlier attempt's")
    finish(run)
    assert (run.path / "notes.md").read_text() == "mine" and (run.path / "mine.svg").is_file()
    assert not (run.path / "stale.parquet").exists()
    (run.path / "notes.md").write_text("changed")
    assert run.is_done()
