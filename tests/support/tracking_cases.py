"""Runs for the tests of W&B."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb

from configs import config as composed
from iclgd.config import enumerations, schema
from report_fixtures import write_run

NORMS = pd.DataFrame([(0, 0, 1.5), (0, 1, 0.1)], columns=["demonstration", "layer", "value"])
LOSSES = pd.DataFrame([(0, 2.0), (1, 1.5), (2, 1.25)], columns=["step", "loss"])


class FakeRun:
    """A W&B run that keeps what it is given in memory and may fail at its end."""

    id, offline = "one", True

    def __init__(self, folder: Path, error: BaseException | None = None) -> None:
        self.dir, self.error = str(folder / "files"), error
        self.logged: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}

    def log(self, content: dict[str, Any], step: int) -> None:
        self.logged |= content

    def finish(self, exit_code: int) -> None:
        if self.error:
            raise self.error

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


def use_run(monkeypatch: pytest.MonkeyPatch, run: FakeRun) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    monkeypatch.setattr(wandb, "setup", lambda **_: None)


@pytest.fixture(scope="module")
def no_account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """As on a machine where nobody has logged in to W&B."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_SERVICE"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # no .netrc
        wandb.teardown()
        yield
    wandb.teardown()


def settings(*overrides: str, **fields: Any) -> schema.Config:
    config = composed("tracking=wandb", "model=hf", "model.name=a/model", "task.shots=4", *overrides)
    return dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, **fields))


ONLINE = {"mode": enumerations.TrackingMode.online}


def finished_run(folder: Path) -> Path:
    """A run's folder with all files that tracking reads."""
    write_run(folder, examples=4, layers=3)
    NORMS.to_parquet(folder / "gradient_norms.parquet")
    LOSSES.to_parquet(folder / "losses.parquet")
    (folder / "fingerprint.json").write_text('{"model config.json": "ab"}')
    scores = json.loads((folder / "scores.json").read_text())
    scores["sim_am"]["layers"][1] = None
    (folder / "scores.json").write_text(json.dumps(scores))
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"finished_at": "2026-01-01", "diverged": True}))
    return folder


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [record for record in caplog.records if record.name.startswith("iclgd")]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]
