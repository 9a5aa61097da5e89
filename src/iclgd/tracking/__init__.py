"""Sends finished runs and sweeps to W&B, offline unless tracking.mode says otherwise. A failure is a warning."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from iclgd.config import Config, TrackingConfig, as_dict
from iclgd.config.enumerations import TrackerName, TrackingMode
from iclgd.runs.folder import RunFolder
from iclgd.runs.inputs import run_id
from iclgd.runs.varying_keys import as_text, layer_ranges
from iclgd.tracking.upload import UploadState, send

if TYPE_CHECKING:
    from iclgd.report.chart import Figure

_IN_EVERY_NAME = ("task", "finetune", "finetune.lr", "finetune.layers", "task.shots", "seed")
_NOT_IN_NAMES = ("tracking", "paths", "sweeps", "metric", "runtime")


def is_off(tracking: TrackingConfig) -> bool:
    """Whether nothing is logged, and wandb is not even imported."""
    return tracking.name is TrackerName.none or tracking.mode is TrackingMode.disabled


def log_run(config: Config, folder: Path, overrides: Sequence[str] = ()) -> None:
    """Log a finished run from its folder, if its results have not been recorded where `tracking` wants them.

    `overrides` are Hydra's, for the name. Under an agent of W&B's own sweeps (sweeps/wandb) the run is the agent's.
    """
    if is_off(config.tracking):
        return
    status = RunFolder(folder).status()
    finished_at = (status and status.finished_at) or ""
    under_agent = os.environ.get("WANDB_SWEEP_ID")  # wandb then takes id and project from the agent
    if not under_agent and not UploadState.read(folder).needs_sending(config.tracking, finished_at):
        return
    from iclgd.tracking.content import write_run  # imports pandas, which takes a second

    names = (config.task.name, config.model.name, config.finetune.name)
    send(
        partial(write_run, folder=folder, objective=config.runtime.objective),
        folder,
        config.tracking,
        run_id(as_dict(config)),
        finished_at,
        name=run_name(config, overrides),
        group=folder.parent.name,
        job_type=config.finetune.name,
        tags=[name[-64:] for name in dict.fromkeys(names) if name],  # W&B takes no more; the end of a path says most
        config=without_parameters(as_dict(config)),
    )


def log_sweep(tracking: TrackingConfig, sweep_name: str, folders: Sequence[Path], figures: Sequence[Figure]) -> None:
    """Log a sweep as one further W&B run with job type `sweep`: a table of the runs in `folders`, and figures.

    It is the same W&B run when the sweep is started again.
    """
    if is_off(tracking) or not folders:
        return
    from iclgd.tracking.content import write_sweep  # imports pandas, which takes a second

    send(
        partial(write_sweep, folders=folders, figures=figures),
        folders[0].parent,
        tracking,
        f"sweep-{sweep_name}",
        name=f"sweep {sweep_name}",
        group=sweep_name,
        job_type="sweep",
        config={"sweep": sweep_name, "runs": [folder.name for folder in folders]},
    )


def run_name(config: Config, overrides: Sequence[str]) -> str:
    """Variant, task and the usual keys, then every other key among the overrides that decides what is measured."""
    finetune, task = config.finetune, config.task
    name = (
        f"{finetune.name} {task.name} lr {finetune.lr:g} layers {layer_ranges(finetune.layers)}"
        f" shots {task.shots} seed {config.seed}"
    )
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        excluded = key in _IN_EVERY_NAME or key.split(".")[0] in _NOT_IN_NAMES
        if key == "runtime.dtype" or not excluded:
            name += f" {key.rpartition('.')[2]} {as_text(value)}"
    return name[:128]  # W&B takes no more


def without_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config beside the parameters of the agent's sweep, which W&B does not let a run replace.

    Where a parameter has the name of a group (`finetune: lcgd`), the keys of the group are given by full names.
    """
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    parameters = yaml.safe_load(Path(path).read_text(encoding="utf-8")) if path else {}
    result = dict(config)
    for name in parameters.keys() & {key for key, value in config.items() if isinstance(value, Mapping)}:
        result |= {f"{name}.{key}": value for key, value in result.pop(name).items()}
    return result
