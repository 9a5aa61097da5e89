"""Progress on a terminal, in a log, and in status.json."""

import io
import logging
import threading

import pytest

from iclgd.runs import progress
from iclgd.runs.folder import RunFolder


def test_progress_without_a_terminal_is_lines_and_numbers(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    monkeypatch.setattr(progress, "STATUS_EVERY", 0.0)
    run = RunFolder(tmp_path / "a")
    run.start("a")
    with progress.Progress(run, "a") as shown:
        advance = shown.stage("finetune", 4)
        advance()
        advance(2)
        assert run.status().progress == {"stage": "finetune", "done": 3, "total": 4}
    assert "a: finetune 1 of 4\n" in caplog.text and "finetune 3 of 4" in caplog.text


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


def test_on_a_terminal_progress_is_drawn_and_lines_stand_above_it(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    ended = threading.Event()

    def count():
        ended.set()
        return 1, 0

    with progress.terminal_bars() as bars, progress.sweep_progress(3, count, bars):
        with progress.Progress(name="run abc", bars=bars) as run:
            run.stage("finetune", 4)(2)
            [task] = [task for task in bars.tasks if task.description == "run abc: finetune"]
            assert (task.completed, task.total) == (2, 4)
            progress.ConsoleHandler().emit(logging.makeLogRecord({"msg": "a line [bold]as it is[/bold]"}))
        assert ended.wait(60)
        assert [task.description for task in bars.tasks] == ["sweep"]  # the run's own bar is gone
    assert "a line [bold]as it is[/bold]" in terminal.getvalue()
