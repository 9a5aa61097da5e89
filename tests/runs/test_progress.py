"""Progress on a terminal, in a log, and in status.json."""

import io
import logging

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


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (99, "99 s"), (180, "3 min"), (7500, "2 h 05 min")])
def test_durations_in_words(seconds, words):
    assert progress.duration(seconds) == words


def test_on_a_terminal_a_bar_is_drawn_and_log_lines_stand_above_it(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress.Progress(name="run abc", bar=True) as run:
        run.stage("finetune", 4)(2)
        logger = logging.Logger("test")
        logger.addHandler(progress.ConsoleHandler())
        try:
            raise ValueError("why")
        except ValueError:
            logger.exception("a line [bold]as it is[/bold]")
    drawn = terminal.getvalue()
    assert "run abc: finetune" in drawn and "2/4" in drawn and drawn.endswith("\x1b[2K")
    assert "a line [bold]as it is[/bold]" in drawn and "Traceback" not in drawn
