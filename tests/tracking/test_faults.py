"""Nothing that befalls W&B befalls the run."""

from __future__ import annotations

import http.server
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from command_line import PATIENCE
from iclgd import tracking
from iclgd.tracking import session
from tracking_cases import (  # noqa: F401  fixtures
    KEY,
    SCORES,
    assert_nowhere,
    assert_whole,
    fresh_process,
    online,
    recorded_in,
    service,
    settings,
    track,
    warnings_of,
)

pytestmark = pytest.mark.usefixtures("fresh_process")


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """The names of the loggers from which a word reaches the terminal or run.log."""
    names: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            names.append(record.name)

    handler = Handler()
    logging.getLogger().addHandler(handler)
    yield names
    logging.getLogger().removeHandler(handler)


def test_an_absent_wandb_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    track(tmp_path / "run")
    [warning] = warnings_of(caplog)
    assert "ModuleNotFoundError" in warning or "ImportError" in warning
    assert f"its results are in {tmp_path / 'run'}" in warning


def test_an_init_that_raises_is_a_warning_without_the_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**arguments: Any) -> None:
        raise RuntimeError(
            f"no luck with {KEY}, wandb_v1_secret, https://me:secret@host/ and other-secret\nsecond line"
        )

    monkeypatch.setenv("WANDB_API_KEY", "other-secret")
    monkeypatch.setattr(wandb, "init", broken)
    track(tmp_path / "run")
    [warning] = warnings_of(caplog)
    assert warning.count("no luck with ***, ***, https://***@host/ and ***;") == 1
    assert "secret" not in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize("moment", ["before results", "before finishing"])
def test_when_its_process_is_killed_the_run_is_recorded_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, moment: str
) -> None:
    with tracking.tracker(settings(), tmp_path / "run", "0123456789ab", "first_look") as tracker:
        if moment == "before finishing":
            tracker.log_run(SCORES)
        service().kill()
        service().wait(PATIENCE)
        if moment == "before results":
            tracker.log_run(SCORES)
    [warning] = warnings_of(caplog)
    [recorded] = recorded_in(Path(warning.rpartition("wandb sync ")[2]))
    assert_whole(recorded)
    track(tmp_path / "next", run_id="bbbbbbbbbbbb")
    [following] = recorded_in(tmp_path / "next")
    assert_whole(following)
    assert len(warnings_of(caplog)) == 1


def test_a_process_that_hangs_is_ended_in_bounded_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended_and_patient_again(end=session._kill_service) -> None:
        end()
        monkeypatch.setattr(session, "CALL_SECONDS", PATIENCE)

    monkeypatch.setattr(session, "CALL_SECONDS", 1.0)
    monkeypatch.setattr(session, "_kill_service", ended_and_patient_again)
    with tracking.tracker(settings(), tmp_path / "run", "0123456789ab", "first_look") as tracker:
        stopped = service()
        stopped.suspend()
        tracker.log_run(SCORES)  # the test's own limit of time would end a wait without bounds
    [warning] = warnings_of(caplog)
    assert "NoAnswer: no answer within" in warning
    assert_whole(recorded_in(tmp_path)[-1])
    assert not stopped.is_running()


def test_the_address_of_a_process_that_is_gone_is_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SERVICE", f"2-{os.getpid()}-tcp-localhost-1")  # as inherited from a parent process
    track(tmp_path / "run")
    [recorded] = recorded_in(tmp_path)
    assert_whole(recorded)
    assert len(warnings_of(caplog)) == 1


def test_an_unreachable_server_costs_one_wait_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, heard: list[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(session, "INIT_SECONDS", 5.0)
    track(tmp_path / "first", online(), "aaaaaaaaaaaa")
    monkeypatch.setattr(session, "INIT_SECONDS", 1000.0)  # would be waited for if the server were tried again
    track(tmp_path / "second", online(), "bbbbbbbbbbbb")
    for folder, warning in zip(("first", "second"), warnings_of(caplog), strict=True):
        assert "was not sent" in warning
        sendable = Path(warning.rpartition("wandb sync ")[2])
        assert sendable.is_relative_to(tmp_path / folder)
        [recorded] = recorded_in(sendable)
        assert_whole(recorded)
    assert set(heard) == {"iclgd.tracking.session"}
    assert KEY not in caplog.text
    assert_nowhere(tmp_path, KEY)


@pytest.mark.parametrize("key", [None, "too-short"])
def test_a_missing_or_malformed_key_is_a_warning_not_a_question(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    track(tmp_path / "run", online())
    [warning] = warnings_of(caplog)
    assert "API key" in warning or "API_KEY" in warning
    assert key is None or key not in warning
    assert_whole(recorded_in(tmp_path)[-1])


def test_a_key_that_the_server_refuses_is_a_warning_and_kept_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = []

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b'{"errors": [{"message": "invalid api key"}]}')

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        track(tmp_path / "run", online())
        recorded = recorded_in(tmp_path)[0]  # offline-run-..., before the run-... that was refused
        server.shutdown()
    assert set(asked) == {"/graphql"}  # and no report of W&B's own errors
    assert_whole(recorded)
    [warning] = warnings_of(caplog)
    assert "401" in warning
    assert_nowhere(tmp_path, KEY)
    assert KEY not in caplog.text
    assert capfd.readouterr() == ("", "")
