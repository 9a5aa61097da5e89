import io
import json
import logging
import math
import os
import threading

import pytest

from iclgd.cli import status
from iclgd.cli.invocation import Invocation
from iclgd.runs import environment, process, progress
from iclgd.runs.execute import Ending, Outcome
from iclgd.runs.folder import RunFolder, State, Status
from report_fixtures import write_run


@pytest.fixture
def sweep(tmp_path):
    folder = tmp_path / "sweep"
    own = process.this_process()
    states = {
        "a": Status(state=State.done, owner=own, seconds=10.0, started_at="2026-01-01T00:00:00+00:00"),
        "b": Status(state=State.running, owner=own, seconds=4.0, progress={"stage": "finetune", "done": 3, "total": 8}),
        "c": Status(state=State.failed, owner=own, error="RuntimeError: [bold]no[/bold] luck", traceback="..."),
        "d": Status(state=State.running, owner={**own, "pid": 2**22 + 1}),
        "e": Status(state=State.interrupted, owner=own),
        "f": Status(state=State.done, owner=own, seconds=20.0, **{"diverged": True, "diverged_at": 7}),
    }
    for name, found in states.items():
        RunFolder(folder / name)._write_status(found)
    Invocation.begin(folder, total=9)
    return folder


def test_every_state_is_shown_with_progress_and_remaining_time(sweep, capsys):
    status.cli([str(sweep)])
    told = capsys.readouterr().out
    shown = {line.split()[0]: line.split()[1] for line in told.splitlines()[1:7]}
    assert shown == {"a": "done", "b": "running", "c": "failed", "d": "stale", "e": "interrupted", "f": "done"}
    assert "finetune 3/8" in told and "RuntimeError: [bold]no[/bold] luck" in told and "diverged at step 7" in told
    assert "2 done, 1 failed, 1 interrupted, 1 running, 1 stale".split(", ")[0] in told
    assert "3 waiting" in told and "\x1b" not in told
    # 9 planned, 3 over, 1 running that has 11 of 15 s to go, 5 to come at 15 s each
    assert status.seconds_left(status.run_lines(sweep), 9) == pytest.approx(5 * 15 + 11)
    assert "about 86 s left" in told


def test_a_single_run_and_an_empty_folder(sweep, tmp_path, capsys):
    status.cli([str(sweep / "a")])
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["a", "done"]
    (tmp_path / "empty").mkdir()
    status.cli([str(tmp_path / "empty")])
    assert capsys.readouterr().out.endswith("empty: no runs\n")
    with pytest.raises(SystemExit):
        status.cli([str(tmp_path / "nowhere")])
    assert "is not a folder" in capsys.readouterr().err


def test_results_that_were_replaced_are_no_sweep(sweep, capsys):
    RunFolder(sweep / "a").retire()
    RunFolder(sweep / "a")._write_status(Status(state=State.done, seconds=1.0))
    status.cli([str(sweep.parent)])
    told = capsys.readouterr().out
    assert told.count("sweep: ") == 1 and "earlier" not in told


def test_a_list_shows_what_varied_and_is_sorted_by_it(tmp_path, capsys):
    for sweep, shots, lr, seed in (("b", 8, 1e-2, 0), ("b", 4, 1e-1, 1), ("b", 16, 1e-3, 0), ("a/deep", 8, 1e-3, 0)):
        write_run(tmp_path / sweep / f"run{shots}", shots=shots, lr=lr, seed=seed, finetune={"layers": [0, 1]})
    status.cli([str(tmp_path), "--sort", "lr"])
    deep, *told = capsys.readouterr().out.splitlines()[1:]
    assert deep.split()[:2] == ["run8", "done"] and told[0].endswith("a/deep: 1 done")
    assert told[1].split() == ["run", "state", "shots", "lr", "seed", "took", "progress"]
    rows = [line.split() for line in told[2:5]]
    assert [row[:5] for row in rows] == [
        ["run16", "done", "16", "0.001", "0"],
        ["run8", "done", "8", "0.01", "0"],
        ["run4", "done", "4", "0.1", "1"],
    ]
    assert max(map(len, told[1:5])) <= 80
    for key, first in (("task.shots", "run4"), ("run", "run16"), ("seed", "run16")):
        lines = status.in_order(status.run_lines(tmp_path / "b"), key)
        assert lines[0].name == first
    with pytest.raises(SystemExit):
        status.cli([str(tmp_path / "b"), "--sort", "colour"])
    assert "choose from run, state, started, took, task.shots, finetune.lr, seed" in capsys.readouterr().err


def test_no_estimate_without_a_finished_run(sweep):
    lines = [line for line in status.run_lines(sweep) if line.state is not State.done]
    assert math.isnan(status.seconds_left(lines, 9))


def test_an_invocation_gathers_what_its_runs_wrote(tmp_path, monkeypatch):
    invocation = Invocation.begin(tmp_path, total=3)
    assert invocation.is_own() and not invocation.is_over() and Invocation.latest(tmp_path) == invocation
    monkeypatch.setenv("ICLGD_INVOCATION", str(invocation.folder))
    assert Invocation.current() == invocation
    invocation.mark(0, Outcome(Ending.done, tmp_path / "a", objective=0.5), tmp_path / "a")
    invocation.mark(1, Outcome(Ending.failed, tmp_path / "b", "why"), tmp_path / "b")
    invocation.mark(10, None, tmp_path / "c")
    found = invocation.outcomes()
    assert [(o.ending, o.folder.name, o.message) for o in found] == [
        (Ending.done, "a", ""),
        (Ending.failed, "b", "why"),
        (Ending.interrupted, "c", ""),
    ]
    assert found[0].objective == 0.5 and math.isnan(found[1].objective)
    assert invocation.count() == (2, 1) and invocation.total() == 3


def test_runs_that_were_cut_off_are_marked_when_the_command_ends(tmp_path):
    invocation = Invocation.begin(tmp_path, total=1)
    gone = Status(state=State.running, owner={**process.this_process(), "pid": 2**22 + 1})
    RunFolder(tmp_path / "a")._write_status(gone)
    (tmp_path / "a" / ".part-1-scores.json").touch()
    invocation.mark(0, None, tmp_path / "a")
    invocation.mark_cut_off()
    assert RunFolder(tmp_path / "a").state() is State.interrupted
    assert os.listdir(tmp_path / "a") == ["status.json"]


def test_progress_without_a_terminal_is_lines_and_numbers(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    monkeypatch.setattr(progress, "_STATUS_EVERY", 0.0)
    run = RunFolder(tmp_path / "a")
    run.start("a")
    with progress.Progress(run, "a") as shown:
        advance = shown.stage("finetune", 4)
        advance()
        advance(2)
        assert run.status().progress == {"stage": "finetune", "done": 3, "total": 4}
    assert "a: finetune 1 of 4, 0 s left" in caplog.text and "finetune 3 of 4" in caplog.text


@pytest.mark.parametrize(("is_terminal", "begins"), [(True, "\r\x1b[2K"), (False, "")])
def test_a_workers_log_line_takes_the_place_of_the_commands_bar(monkeypatch, is_terminal, begins):
    class Shown(io.StringIO):
        def isatty(self):
            return is_terminal

    shown = Shown()
    monkeypatch.setattr("sys.stderr", shown)
    progress.ConsoleHandler().emit(logging.makeLogRecord({"msg": "zsl: recorded"}))
    assert shown.getvalue() == f"{begins}zsl: recorded\n"


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (99, "99 s"), (180, "3 min"), (7500, "2 h 05 min")])
def test_durations_in_words(seconds, words):
    assert progress.duration(seconds) == words


def test_the_environment_holds_versions_and_no_secrets(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "local-0123456789abcdef")
    found = environment.environment("cpu", "float32", 2)
    assert found["packages"]["torch"] and found["packages"]["hydra-core"] and found["device"]["name"] == "cpu"
    assert found["threads"] == 2
    text = json.dumps(found)
    assert "0123456789abcdef" not in text and os.path.expanduser("~") not in text


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("processor\t: 0\nmodel name\t: One @ 2GHz\n\nprocessor\t: 1\nmodel name\t: Other\n", "One @ 2GHz"),
        (2 * "CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\n", "aarch64, CPU implementer 0x41, CPU part 0xd0c"),
        ("model name\t: \nCPU part\t: 0xd0c\nCPU part\t: 0xd4f\n", "aarch64, CPU part 0xd0c"),
        ("", "aarch64"),
    ],
)
def test_a_processor_is_told_from_another_on_arm_too(monkeypatch, content, name):
    monkeypatch.setattr(environment.Path, "read_text", lambda *_, **__: content)
    monkeypatch.setattr(environment.platform, "processor", lambda: "aarch64")
    assert environment.processor.__wrapped__().rpartition(", ")[0] == name


def test_status_reads_what_it_writes():
    written = Status.model_validate(
        {"state": "failed", "run_id": "abc", "attempt": 2, "owner": {"pid": 1}, "error": "e", "diverged": False}
    )
    assert Status.model_validate(written.as_dict()) == written and written.facts == {"diverged": False}


def test_on_a_terminal_progress_is_drawn_and_lines_stand_above_it(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    ended = threading.Event()

    def count():
        ended.set()
        return 1, 0

    with progress.terminal(), progress.terminal(), progress.sweep_progress(3, count):
        with progress.Progress(name="run abc") as run:
            run.stage("finetune", 4)(2)
            [task] = [task for task in progress._bars.tasks if task.description == "run abc: finetune"]
            assert (task.completed, task.total) == (2, 4)
            progress.ConsoleHandler().emit(logging.makeLogRecord({"msg": "a line [bold]as it is[/bold]"}))
        assert ended.wait(60)
        assert [task.description for task in progress._bars.tasks] == ["sweep"]  # the run's own bar is gone
    assert progress._bars is None
    assert "a line [bold]as it is[/bold]" in terminal.getvalue()
