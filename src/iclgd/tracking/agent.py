"""The run for which an agent of W&B's own sweeps (`wandb agent`, sweeps/wandb) has started this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from iclgd.config import TrackingConfig


def agents_run() -> str | None:
    """The id of the agent's run; None without an agent."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def destination_of(tracking: TrackingConfig) -> TrackingConfig:
    """The same, in the project of the agent's sweep if there is one: W&B sends its runs nowhere else."""
    if agents_run() is None:
        return tracking
    project, entity = (os.environ.get(f"WANDB_{name}") for name in ("PROJECT", "ENTITY"))
    return replace(tracking, project=project or tracking.project, entity=entity or tracking.entity)


def beside_parameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as W&B takes them beside the parameters of the agent's sweep, which it lets nothing replace.

    Where a parameter has the name of a section (`finetune: lcgd`), the section's settings go by their whole names.
    """
    import yaml

    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    taken = yaml.safe_load(Path(path).read_text(encoding="utf-8")) if path and agents_run() else {}
    whole = dict(settings)
    for name in taken.keys() & {key for key, value in settings.items() if isinstance(value, Mapping)}:
        whole |= {f"{name}.{key}": value for key, value in whole.pop(name).items()}
    return whole
