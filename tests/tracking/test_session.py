"""A failure of W&B is one warning and ends nothing; a recording replaces an earlier one of the same run."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb

from iclgd import tracking
from iclgd.tracking.session import UploadState, is_unsent
from tracking_cases import (
    KEY,
    SCORES,
    fresh_process,  # noqa: F401  fixture
    online,
    recorded_in,
    settings,
    track,
    warnings_of,
)

pytestmark = pytest.mark.usefixtures("fresh_process")


class FakeRun:
    """A W&B run that keeps nothing and may fail at its end."""

    def __init__(self, folder: Path, error: BaseException | None = None) -> None:
        self.dir, self.error, self.summary = str(folder / "files"), error, {}

    def finish(self, exit_code: int) -> None:
        if self.error:
            raise self.error

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


def use_run(monkeypatch: pytest.MonkeyPatch, run: FakeRun) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    monkeypatch.setattr(wandb, "setup", lambda **_: None)


def offline_folder(folder: Path, date: str, state: UploadState) -> Path:
    path = folder / "wandb" / f"offline-run-{date}-{state.id}"
    path.mkdir(parents=True)
    return path


def test_an_absent_wandb_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    track(tmp_path / "run")
    [warning] = warnings_of(caplog)
    assert "ModuleNotFoundError" in warning or "ImportError" in warning
    assert warning.endswith(f"The same command sends it from {tmp_path / 'run'}")


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
    assert "no luck with ***, ***, https://***@host/ and ***)" in warning
    assert "secret" not in caplog.text and KEY not in caplog.text


def test_a_missing_key_is_a_warning_not_a_question(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    track(tmp_path / "run", online())
    [warning] = warnings_of(caplog)
    assert "API key" in warning or "API_KEY" in warning


def test_when_its_process_is_killed_only_this_run_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tracking.tracker(settings(), tmp_path / "run", "a", "first_look") as tracker:
        for child in psutil.Process().children():
            if child.name().startswith("wandb-core"):
                child.kill()
                child.wait()
        tracker.log_run(SCORES)
    assert len(warnings_of(caplog)) == 1
    assert UploadState.read(tmp_path / "run", "").needs_sending(settings().tracking, tmp_path / "run")
    track(tmp_path / "next")
    [recorded] = recorded_in(tmp_path / "next")
    assert recorded.exit_code == 0 and recorded.summary["sim_aou"] == 1 / 3
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize(("stop", "warnings"), [(KeyboardInterrupt, 0), (ZeroDivisionError, 1)])
def test_after_an_interrupt_nothing_is_said_of_wandb(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch, stop: type[BaseException], warnings: int
) -> None:
    """The signal stops W&B's process as well: `MailboxClosedError: ` says nothing to the one who pressed Ctrl-C."""
    use_run(monkeypatch, FakeRun(tmp_path, RuntimeError()))
    with pytest.raises(stop), tracking.tracker(settings(), tmp_path / "run", "a", "first_look"):
        raise stop
    assert len(warnings_of(caplog)) == warnings


@pytest.mark.parametrize("whole", [True, False])
def test_only_a_whole_recording_replaces_the_older(tmp_path: Path, monkeypatch, whole: bool) -> None:
    state = UploadState("one")
    state.write(tmp_path)
    older, newer = (offline_folder(tmp_path, date, state) for date in ("20260101_000000", "20260102_000000"))
    other = offline_folder(tmp_path, "20260101_000000", UploadState("another"))
    use_run(monkeypatch, FakeRun(newer, None if whole else RuntimeError()))
    track(tmp_path)
    assert newer.exists() and other.exists() and older.exists() != whole


def test_what_needs_sending(tmp_path: Path) -> None:
    folder, state, offline = tmp_path, UploadState("one"), settings().tracking
    assert state.needs_sending(offline, folder)
    recording = offline_folder(folder, "20260101_000000", state)
    state.modes["/iclgd"] = "offline"
    assert not state.needs_sending(offline, folder)
    assert state.needs_sending(online().tracking, folder) and is_unsent(folder)
    assert state.needs_sending(settings(project="another").tracking, folder)
    (recording / "run-one.wandb.synced").touch()
    assert not state.needs_sending(online().tracking, folder) and not is_unsent(folder)


def test_an_offline_run_prints_nothing_and_names_the_command_that_sends_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    elsewhere = settings(dir=str(tmp_path / "elsewhere"))
    track(tmp_path / "run", elsewhere)
    [recorded] = recorded_in(tmp_path / "elsewhere" / "wandb")
    assert f"wandb sync {recorded.path.parent}" in caplog.text and warnings_of(caplog) == []
    assert capfd.readouterr().out == ""
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()] == ["iclgd.json"]
