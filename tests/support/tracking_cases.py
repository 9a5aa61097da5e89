"""Runs for the tests of W&B, and what reads them back."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import wandb

from command_line import PATIENCE
from configs import config as composed
from iclgd import tracking
from iclgd.config import enumerations, schema
from iclgd.tracking import session
from wandb_reader import Recorded, read_runs

KEY = "f00dfeed" * 5  # has an API key's form and opens nothing
SCORES = {
    "sim_aou": {
        "mean": 1 / 3,
        "layers": [0.1, None, 0.1 + 0.2],
        "n": 20,
        "undefined": 20,
        "ci": [0.25, 0.375],
        "flipped": {"mean": None, "layers": [None, None, None], "n": 0, "undefined": 0, "ci": None},
    },
    "spread/of": {"mean": 0.5, "layers": [], "n": 20, "undefined": 0, "ci": [0.4, 0.6], "flipped": None},
    "accuracy/zsl": {"mean": 0.55, "layers": [], "n": 20, "undefined": 0, "ci": [0.5, 0.6]},
    "accuracy/icl": {"mean": 0.8, "layers": [], "n": 20, "undefined": 0, "ci": [0.7, 0.9]},
    "accuracy/ft": {"mean": 2 / 3, "layers": [], "n": 20, "undefined": 0, "ci": None},
}
TRAJECTORY = pd.DataFrame(
    [(1, "sim_aou", 0, 0.1), (1, "sim_aou", 1, 0.3), (2, "sim_aou", 0, None), (2, "sim_aou", 1, 0.7)],
    columns=["step", "score", "layer", "mean"],
)
NORMS = pd.DataFrame([(0, 0, 1.5), (0, 1, 0.1)], columns=["demonstration", "layer", "value"])


@pytest.fixture
def fresh_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no .netrc
    monkeypatch.setattr(session, "_unreached", None)
    monkeypatch.setattr(session, "CALL_SECONDS", PATIENCE)
    yield
    wandb.teardown()


def settings(**entries: Any) -> schema.Config:
    made = composed("tracking=wandb", "model=hf", "model.name=a/model", "task.shots=4")
    return dataclasses.replace(made, tracking=dataclasses.replace(made.tracking, **entries))


def online() -> schema.Config:
    return settings(mode=enumerations.TrackingMode.online)


def track(folder: Path, config: schema.Config | None = None, run_id: str = "0123456789ab", **content: Any) -> None:
    with tracking.tracker(config or settings(), folder, run_id, "first_look") as tracker:
        tracker.log_run(SCORES, **content)


def service() -> psutil.Process:
    [process] = [child for child in psutil.Process().children() if child.name().startswith("wandb-core")]
    return process


def recorded_in(folder: Path) -> list[Recorded]:
    wandb.teardown()  # waits until everything is on disk
    return read_runs(folder)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [record for record in caplog.records if record.name.startswith("iclgd")]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


def assert_whole(recorded: Recorded) -> None:
    assert recorded.curve("sim_aou") == SCORES["sim_aou"]["layers"]
    for name, entry in SCORES.items():
        assert recorded.summary[name] == entry["mean"]
    assert recorded.exit_code == 0


def assert_nowhere(folder: Path, secret: str) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if secret.encode() in path.read_bytes()]
