"""Sends a run's results to W&B, offline unless tracking.mode says otherwise. What fails is a warning.

Under an agent of W&B's own sweeps (sweeps/wandb) the run is the agent's.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.config import Config, TrackingConfig, as_dict
from iclgd.config.enumerations import TrackerName, TrackingMode
from iclgd.runs.varying_keys import as_text, layer_ranges
from iclgd.tracking.session import Identity, Session, UploadState, is_unsent

if TYPE_CHECKING:
    from iclgd.report.chart import Figure

log = logging.getLogger(__name__)

__all__ = ["Tracker", "is_unsent", "log_sweep", "send_finished", "tracker"]

_IN_EVERY_NAME = ("task", "finetune", "finetune.lr", "finetune.layers", "task.shots", "seed")
_NOT_IN_NAMES = ("tracking", "paths", "sweeps", "metric", "runtime")


class Tracker:
    """Takes a run's results to W&B; without a session it does nothing with them."""

    def __init__(self, session: Session | None = None, objective: str | None = None) -> None:
        self._session, self._objective = session, objective

    def log_run(self, scores: Mapping[str, Any], facts: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Log a run's results: what `content.RunContent` takes."""
        if self._session is None:
            return
        from iclgd.tracking.content import RunContent  # pandas and the frame: not at start-up

        facts = dict(facts or {})
        if self._objective is not None:  # W&B's sweeps would take the best layer of the score under its own name
            facts["objective"] = scores[self._objective]["mean"]
        self._session.write(RunContent(scores, facts=facts, **more).write)
        self._session.write_artifact()


def is_off(tracking: TrackingConfig) -> bool:
    """Whether nothing is logged, and wandb is not even imported."""
    return tracking.name is TrackerName.none or tracking.mode is TrackingMode.disabled


@contextmanager
def tracker(config: Config, folder: Path, run_id: str, sweep_name: str) -> Iterator[Tracker]:
    """Open a W&B run, and finish it however the block ends.

    Args:
        config: of the run; all of it goes to W&B, which is never given keys.
        folder: of the run, where W&B's files go unless tracking.dir names another.
        run_id: the start of the run's id in W&B. A run that is tried again in its folder has the same id.
        sweep_name: the group.
    """
    if is_off(config.tracking):
        yield Tracker()
        return
    state = _state(folder, run_id)
    state.id = agent_run() or state.id
    state.write(folder)
    variant = config.finetune.name
    identity = Identity(
        name=run_name(config, _overrides()),
        group=sweep_name,
        job_type=variant,
        tags=_tags(config.task.name, config.model.name, variant),
        config=without_parameters(as_dict(config)),
        tracking=agent_tracking(config.tracking),
        folder=folder,
    )
    session = Session(identity, state)
    exit_code, interrupted = 1, False
    try:
        yield Tracker(session, config.runtime.objective)
        exit_code = 0
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        session.close(exit_code, interrupted)


def run_name(config: Config, overrides: Sequence[str]) -> str:
    """Variant, task and the usual keys, then every other key of the command or sweep that decides what is measured.

    Args:
        config: of the run.
        overrides: as Hydra gives them to the run, `key=value`; each swept key is among them.
    """
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


def _overrides() -> Sequence[str]:
    """The overrides of Hydra's present job; none when called from Python."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _state(folder: Path, name: str) -> UploadState:
    return UploadState.read(folder, f"{name}-{secrets.token_hex(4)}")


def agent_run() -> str | None:
    """The id of the run for which a W&B agent started this process; None without an agent."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def agent_tracking(tracking: TrackingConfig) -> TrackingConfig:
    """The same, in the project of the agent's sweep if there is one: W&B sends its runs nowhere else."""
    if agent_run() is None:
        return tracking
    project, entity = os.environ.get("WANDB_PROJECT"), os.environ.get("WANDB_ENTITY")
    return replace(tracking, project=project or tracking.project, entity=entity or tracking.entity)


def without_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config beside the parameters of the agent's sweep, which W&B does not let a run replace.

    Where a parameter has the name of a group (`finetune: lcgd`), the keys of the group are given by full names.
    """
    import yaml

    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    parameters = yaml.safe_load(Path(path).read_text(encoding="utf-8")) if path and agent_run() else {}
    whole = dict(config)
    for name in parameters.keys() & {key for key, value in config.items() if isinstance(value, Mapping)}:
        whole |= {f"{name}.{key}": value for key, value in whole.pop(name).items()}
    return whole


def send_finished(config: Config, folder: Path) -> None:
    """Log a finished run from its folder, if it has not been sent where `tracking` wants it."""
    if is_off(config.tracking):
        return
    from iclgd.runs.inputs import run_id

    name, tracking = run_id(as_dict(config)), agent_tracking(config.tracking)
    state = _state(folder, name)
    if agent_run() in (None, state.id) and not state.needs_sending(tracking, folder):
        return
    try:
        content = _stored(folder)
    except (OSError, ValueError, KeyError) as error:
        log.warning("W&B: the results of %s were not sent: %s", folder.name, error)
        return
    log.info("W&B: run %s was done before and is logged now, from its folder", folder.name)
    with tracker(config, folder, name, folder.parent.name) as opened:
        opened.log_run(**content)


def _stored(folder: Path) -> dict[str, Any]:
    """What `log_run` takes, from a finished run's folder."""
    import pandas as pd

    from iclgd.runs.folder import RunFolder

    run = RunFolder(folder)
    status, trajectory, losses = run.status(), folder / "trajectory.parquet", folder / "losses.parquet"
    return {
        "scores": run.read_json("scores.json"),
        "gradient_norms": pd.read_parquet(folder / "gradient_norms.parquet"),
        "trajectory": pd.read_parquet(trajectory) if trajectory.is_file() else None,
        "losses": pd.read_parquet(losses)["loss"].tolist() if losses.is_file() else [],
        "facts": {name: fact for name, fact in (status.facts if status else {}).items() if isinstance(fact, bool)},
    }


def log_sweep(
    tracking: TrackingConfig, sweep_name: str, folders: Sequence[Path], out: Path, figures: Sequence[Figure] = ()
) -> None:
    """Log a sweep as one further W&B run with job type `sweep`: its table, plots over what varies, and its figures.

    Args:
        tracking: of the sweep's runs; with tracking=none nothing happens.
        sweep_name: the group; the run's id begins with `sweep-NAME`, and it is resumed when the sweep is started again.
        folders: of the runs, in order.
        out: the sweep's folder, where W&B's files go unless tracking.dir names another.
        figures: of the sweep's results.
    """
    if is_off(tracking) or not folders:
        return
    from iclgd.tracking.content import SweepContent

    try:
        content = SweepContent.read(folders, figures)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("W&B: the summary of sweep %s was not made: %s", sweep_name, error)
        return
    state = _state(out, f"sweep-{sweep_name}")
    state.write(out)
    identity = Identity(
        name=f"sweep {sweep_name}",
        group=sweep_name,
        job_type="sweep",
        tags=_tags(*content.names),
        config={"sweep": sweep_name, "runs": [folder.name for folder in folders], "axes": content.axes},
        tracking=tracking,
        folder=out,
    )
    session = Session(identity, state)
    session.write(content.write)
    session.close(0)


def _tags(*names: str) -> tuple[str, ...]:
    """Without repeats; W&B refuses tags longer than 64 characters, such as a model's path, of which the end is kept."""
    return tuple(dict.fromkeys(name[-64:] for name in names if name))
