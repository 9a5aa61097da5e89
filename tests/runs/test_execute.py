import contextlib
import itertools
import logging
import os
import shutil
import subprocess
import sys
import threading
import types

import psutil
import pytest

from command_line import wait_until
from configs import config
from iclgd.config import ConfigError, MissingInput
from iclgd.runs.execute import Ending, Terminated, end_children, execute
from iclgd.runs.folder import RunFolder, State
from iclgd.runs.inputs import Inputs


@pytest.fixture(scope="module")
def settings():
    return config()


def score(value):
    def experiment(config, folder, progress, prepared):
        experiment.calls += 1
        folder.write("scores.json", {"sim_aou": {"mean": value}})
        return {"sim_aou": {"mean": value}}

    experiment.calls = 0
    return experiment


def failing(config, folder, progress, prepared):
    raise RuntimeError("no luck")


@pytest.mark.parametrize(
    ("rerun", "done", "failed", "cut_off"),
    [
        ("never", Ending.skipped, Ending.failed, Ending.done),
        ("failed", Ending.skipped, Ending.done, Ending.done),
        ("all", Ending.done, Ending.done, Ending.done),
    ],
)
def test_rerun_says_what_is_run_again(tmp_path, rerun, done, failed, cut_off, settings):
    execute(settings, tmp_path / "done", score(0.5))
    assert execute(settings, tmp_path / "failed", failing).message.startswith("RuntimeError: no luck (test_execute.py:")
    RunFolder(tmp_path / "cut_off").start("x")
    chosen = config(f"runtime.rerun={rerun}")
    endings = [execute(chosen, tmp_path / name, score(1.0)).ending for name in ("done", "failed", "cut_off")]
    assert endings == [done, failed, cut_off]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Terminated])
def test_a_signal_marks_the_run_and_goes_on_up(tmp_path, settings, stop):
    def stopped(config, folder, progress, prepared):
        raise stop

    with pytest.raises(stop):
        execute(settings, tmp_path / "a", stopped)
    assert RunFolder(tmp_path / "a").state() is State.interrupted
    assert not list((tmp_path / "a").glob(".*"))
    assert execute(settings, tmp_path / "a", score(0.5)).ending is Ending.done


def test_inputs_are_compared_where_they_are_there_and_refused_where_they_cannot_be_used(tmp_path, settings, caplog):
    def prepare(error=None, **parts):
        def prepared(config):
            if error is not None:
                raise error
            return types.SimpleNamespace(inputs=Inputs(parts))

        return prepared

    def ending(prepare):
        outcome = execute(settings, tmp_path / "a", score(0.5), prepare)
        return outcome.ending, outcome.message

    assert ending(prepare(ConfigError("no rows"))) == (Ending.refused, "no rows") and not (tmp_path / "a").exists()
    ended, message = ending(prepare(OSError("no network")))
    assert ended is Ending.failed and message.startswith("OSError: no network (test_execute.py:")
    assert "Traceback" in (tmp_path / "a" / "run.log").read_text()
    assert ending(prepare(rows="1"))[0] is Ending.done and ending(prepare(rows="1"))[0] is Ending.skipped
    for error in (OSError("no network"), MissingInput("no train.jsonl")):
        assert ending(prepare(error))[0] is Ending.skipped and "read again for comparison" in caplog.text
    assert ending(prepare(ConfigError("no column text")))[1].endswith("its inputs have changed: no column text")
    (tmp_path / "a" / "wandb").mkdir()
    assert ending(prepare(rows="2"))[0] is Ending.done and "was computed from other inputs" in caplog.text
    assert RunFolder(tmp_path / "a" / "earlier" / "1").is_done() and not (tmp_path / "a" / "wandb").exists()
    logs = [(tmp_path / "a" / name).read_text() for name in ("earlier/1/run.log", "run.log")]
    assert [("no network" in text, "other inputs" in text) for text in logs] == [(True, False), (False, True)]


@pytest.mark.parametrize("damage", [b"", b"{", b'{"sim_aou": {"mean": 0.6}}'])
def test_a_damaged_finished_run_is_computed_again_and_the_log_says_so(tmp_path, settings, damage, caplog):
    caplog.set_level(logging.INFO)
    execute(settings, tmp_path / "a", score(0.5))
    (tmp_path / "a" / "scores.json").write_bytes(damage)
    assert execute(settings, tmp_path / "a", score(0.5)).ending is Ending.done
    assert "is not what the finished run wrote" in caplog.text and "is computed again" in caplog.text
    assert RunFolder(tmp_path / "a").read_json("scores.json") == {"sim_aou": {"mean": 0.5}}


def test_two_at_once_compute_once(tmp_path, settings, caplog):
    caplog.set_level(logging.INFO)
    calls = []

    def slow(config, folder, progress, prepared):
        calls.append(threading.get_ident())
        wait_until(lambda: caplog.text.count("waiting for it") == 2)
        folder.write("scores.json", {})
        return {}

    def start():
        endings.append(execute(config_all, tmp_path / "a", slow).ending)

    config_all, endings = config(), []
    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and sorted(endings) == [Ending.done, Ending.skipped, Ending.skipped]


class Killed(BaseException):
    """Stands for SIGKILL: after it, the process writes nothing more."""


def test_killed_at_every_write_a_run_is_never_taken_for_done_and_the_next_start_repairs_it(
    tmp_path, settings, monkeypatch
):
    def experiment(config, folder, progress, prepared):
        progress.stage("stage", 1)()
        folder.write("scores.json", {"sim_aou": {"mean": 0.5}})
        folder.write("figures/a.txt", "x" * 1000)

    def killed_at(moment, path):
        writes = itertools.count(1)

        def replace(*arguments, real=os.replace):
            if next(writes) >= moment:
                raise Killed
            real(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", replace)
            with contextlib.suppress(Killed):
                execute(settings, path, experiment)
        return next(writes) > moment

    moment = 1
    while killed_at(moment, path := tmp_path / str(moment)):
        assert not RunFolder(path).is_done()
        (path / ".part-left-scores.json").touch()
        assert execute(settings, path, experiment).ending is Ending.done
        assert RunFolder(path).is_done() and not list(path.rglob(".*"))
        moment += 1
    assert moment > 4 and execute(settings, path, experiment).ending is Ending.skipped


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 64 kB, where the machine lets us make one."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting needs privileges; test_folder.py injects the same error")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_fails_the_run_and_the_next_start_mends_it(small_disk, settings):
    def big(config, folder, progress, prepared):
        folder.write("scores.json", ["x" * 100_000])
        return {}

    outcome = execute(settings, small_disk / "a", big)
    assert outcome.ending is Ending.failed and "No space left" in outcome.message
    assert not list((small_disk / "a").glob(".*"))
    assert execute(settings, small_disk / "a", score(0.5)).ending is Ending.done


def test_a_disk_that_is_full_from_the_start_leaves_nothing_that_looks_done(small_disk, settings):
    with pytest.raises(OSError, match="No space left"):
        for number in range(1000):
            (small_disk / "filler").mkdir(exist_ok=True)
            (small_disk / "filler" / str(number)).write_bytes(b"x" * 4096)
    try:
        outcome = execute(settings, small_disk / "a", score(0.5))
        assert outcome.ending is Ending.failed
    except OSError as error:
        assert "No space left" in str(error)
    assert not RunFolder(small_disk / "a").is_done()
    shutil.rmtree(small_disk / "filler")
    assert execute(settings, small_disk / "a", score(0.5)).ending is Ending.done


def test_children_are_ended_the_stubborn_too():
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)"
    child = subprocess.Popen([sys.executable, "-c", f"{stubborn}; time.sleep(60)"], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"up\n"
    end_children(patience=0.3)
    assert not psutil.pid_exists(child.pid)
    child.stdout.close()
    child.wait()
