"""Runs for the tests of W&B."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb

from configs import config as composed
from iclgd import tracking
from iclgd.config import enumerations, schema
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
    yield
    wandb.teardown()


def settings(**fields: Any) -> schema.Config:
    config = composed("tracking=wandb", "model=hf", "model.name=a/model", "task.shots=4")
    return dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, **fields))


def online() -> schema.Config:
    return settings(mode=enumerations.TrackingMode.online)


def track(folder: Path, config: schema.Config | None = None, **content: Any) -> None:
    with tracking.tracker(config or settings(), folder, "0123456789ab", "first_look") as tracker:
        tracker.log_run(SCORES, **content)


def recorded_in(folder: Path) -> list[Recorded]:
    wandb.teardown()  # waits until everything is on disk
    return read_runs(folder)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [record for record in caplog.records if record.name.startswith("iclgd")]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]
