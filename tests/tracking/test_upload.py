"""A failure of W&B is one warning and ends nothing; a recording replaces an earlier one of the same run."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb

from iclgd import tracking
from iclgd.tracking.upload import UploadState
from tracking_cases import (
    ONLINE,
    FakeRun,
    finished_run,
    no_account,  # noqa: F401  fixture
    settings,
    use_run,
    warnings_of,
)

pytestmark = pytest.mark.usefixtures("no_account")
KEY = "f00dfeed" * 5  # has an API key's form and opens nothing


def recording(folder: Path, date: str, run_id: str) -> Path:
    path = folder / "wandb" / f"offline-run-{date}-{run_id}"
    path.mkdir(parents=True)
    return path


def test_an_absent_wandb_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracking.log_run(settings(), finished_run(tmp_path / "run"))
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
    monkeypatch.setattr(wandb, "setup", lambda **_: None)
    tracking.log_run(settings(), finished_run(tmp_path / "run"))
    [warning] = warnings_of(caplog)
    assert "no luck with ***, ***, https://***@host/ and ***)" in warning
    assert "secret" not in caplog.text and KEY not in caplog.text


def test_a_missing_key_is_a_warning_not_a_question(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = finished_run(tmp_path / "run")
    tracking.log_run(settings(**ONLINE), folder)
    [warning] = warnings_of(caplog)
    assert "API key" in warning or "API_KEY" in warning
    assert UploadState.read(folder).needs_sending(settings(**ONLINE).tracking, "2026-01-01")


def test_a_damaged_run_or_sweep_is_a_warning(tmp_path: Path, caplog, monkeypatch) -> None:
    use_run(monkeypatch, FakeRun(tmp_path))
    folder = finished_run(tmp_path / "run")
    (folder / "scores.json").write_text("{")
    tracking.log_run(settings(), folder)
    tracking.log_sweep(settings().tracking, "rates", [tmp_path / "absent"], ())
    assert ["scores.json" in warning or "absent" in warning for warning in warnings_of(caplog)] == [True, True]


@pytest.mark.parametrize(("stop", "warnings"), [(KeyboardInterrupt, 0), (ZeroDivisionError, 1)])
def test_after_an_interrupt_nothing_is_said_of_wandb(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch, stop: type[BaseException], warnings: int
) -> None:
    """The signal stops W&B's process as well: its errors say nothing to the one who pressed Ctrl-C."""

    def broken() -> None:
        raise RuntimeError

    use_run(monkeypatch, FakeRun(tmp_path, stop()))
    monkeypatch.setattr(wandb, "teardown", broken)
    raised = None
    try:
        tracking.log_run(settings(), finished_run(tmp_path / "run"))
    except KeyboardInterrupt as error:
        raised = error
    assert len(warnings_of(caplog)) == warnings and (raised is None) == bool(warnings)


@pytest.mark.parametrize("whole", [True, False])
def test_only_a_whole_recording_replaces_the_older(tmp_path: Path, monkeypatch, whole: bool) -> None:
    """A run that is computed again leaves one folder of its id: `wandb sync` would send both."""
    folder = finished_run(tmp_path / "run")
    UploadState("one", "2025-01-01", "/iclgd", "offline").write(folder)
    older, newer = (recording(folder, date, "one") for date in ("20260101_000000", "20260102_000000"))
    other = recording(folder, "20260101_000000", "another")
    use_run(monkeypatch, FakeRun(newer, None if whole else RuntimeError()))
    tracking.log_run(settings(), folder)
    assert newer.exists() and other.exists() and older.exists() != whole
    assert UploadState.read(folder).finished_at == ("2026-01-01" if whole else "2025-01-01")


def test_a_retried_run_keeps_its_id_and_each_sweep_has_its_own(tmp_path: Path, monkeypatch) -> None:
    folders, ids = [finished_run(tmp_path / name / "run") for name in ("a", "b")], []
    use_run(monkeypatch, FakeRun(tmp_path, RuntimeError()))
    for folder in (folders[0], folders[0], folders[1]):
        tracking.log_run(settings(), folder)
        ids.append(json.loads((folder / "wandb" / "iclgd.json").read_text())["id"])
    assert ids[0] == ids[1] != ids[2] and ids[0].rpartition("-")[0] == ids[2].rpartition("-")[0] != ""


def test_an_offline_run_names_the_command_that_sends_it(tmp_path: Path, caplog, monkeypatch) -> None:
    caplog.set_level(logging.INFO)
    use_run(monkeypatch, FakeRun(tmp_path / "elsewhere" / "offline-run-1-one"))
    tracking.log_run(settings(dir=str(tmp_path / "elsewhere")), finished_run(tmp_path / "run"))
    assert f"wandb sync {tmp_path / 'elsewhere' / 'offline-run-1-one'}" in caplog.text and warnings_of(caplog) == []
