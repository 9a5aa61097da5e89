"""Where a run's results go besides its folder: to W&B, or nowhere.

W&B is real, offline unless tracking.mode says otherwise, and never in the way: what fails is a warning that says what
was not sent and how to send it later. Under an agent of W&B's own sweeps (sweeps/wandb) the run is the agent's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.config import Config, TrackingConfig, as_dict
from iclgd.config.enumerations import TrackerName, TrackingMode
from iclgd.tracking.agent import agents_run, beside_parameters, destination_of
from iclgd.tracking.kept import is_unsent

if TYPE_CHECKING:
    from iclgd.report.chart import Figure
    from iclgd.tracking.session import Session

log = logging.getLogger(__name__)

__all__ = ["Tracker", "is_unsent", "log_sweep", "send_finished", "tracker"]


class Tracker:
    """Takes a run's results to W&B; without a session it does nothing with them."""

    def __init__(self, session: Session | None = None, objective: str | None = None) -> None:
        self._session, self._objective = session, objective

    def log_run(self, scores: Mapping[str, Any], facts: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Log a run's results, once it has them: what `content.RunContent` takes."""
        if self._session is None:
            return
        from iclgd.tracking.content import RunContent
        from iclgd.tracking.session import artifact_of

        facts = dict(facts or {})
        if self._objective is not None:  # W&B's sweeps would take the best layer of the score under its own name
            facts["objective"] = scores[self._objective]["mean"]
        self._session.write(RunContent(scores, facts=facts, **more).write)
        self._session.write(artifact_of(self._session.identity))


def is_off(tracking: TrackingConfig) -> bool:
    """Whether nothing is logged, and wandb is not even imported."""
    return tracking.name is TrackerName.none or tracking.mode is TrackingMode.disabled


@contextmanager
def tracker(config: Config, folder: Path, run_id: str, sweep_name: str) -> Iterator[Tracker]:
    """Open a W&B run, and finish it however the block ends.

    Args:
        config: of the run; all of it goes to W&B, which is never given keys.
        folder: the run's own, where W&B's files go unless tracking.dir names another.
        run_id: how the run's id in W&B begins; a run that is tried again in its folder resumes its own, and the same
            run in another sweep's folder is another one there.
        sweep_name: the group.
    """
    if is_off(config.tracking):
        yield Tracker()
        return
    from iclgd.tracking.kept import Kept, destination
    from iclgd.tracking.session import Identity, Session

    variant, where, kept = config.finetune.name, destination_of(config.tracking), Kept.of(folder, run_id)
    kept.id = agents_run() or kept.id
    kept.write(folder)
    identity = Identity(
        id=kept.id,
        name=f"{variant} {config.task.name} lr {config.finetune.lr:g} shots {config.task.shots} seed {config.seed}",
        group=sweep_name,
        job_type=variant,
        tags=_tags(config.task.name, config.model.name, variant),
        config=beside_parameters(as_dict(config)),
        tracking=where,
        results=folder,
    )
    session = Session(identity)
    exit_code = 1
    try:
        yield Tracker(session, config.runtime.objective)
        exit_code = 0
    finally:
        session.close(exit_code)
        if exit_code == 0 and session.went is not None:
            kept.modes[destination(where)] = session.went
            kept.write(folder)


def send_finished(config: Config, folder: Path) -> None:
    """Log a run that was skipped as done, from its folder, if it has never gone where `tracking` now wants it.

    Nothing is computed, and nothing raises.
    """
    if is_off(config.tracking):
        return
    from iclgd.runs.inputs import run_id
    from iclgd.tracking.kept import Kept

    name, where = run_id(as_dict(config)), destination_of(config.tracking)
    kept = Kept.of(folder, name)
    if agents_run() in (None, kept.id) and not kept.lacks(where, folder):
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
    from iclgd.tracking.kept import Kept
    from iclgd.tracking.session import Identity, Session

    try:
        content = SweepContent.read(folders, figures)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("W&B: the summary of sweep %s was not made: %s", sweep_name, error)
        return
    kept = Kept.of(out, f"sweep-{sweep_name}")
    kept.write(out)
    identity = Identity(
        id=kept.id,
        name=f"sweep {sweep_name}",
        group=sweep_name,
        job_type="sweep",
        tags=_tags(*content.names),
        config={"sweep": sweep_name, "runs": [folder.name for folder in folders], "axes": content.axes},
        tracking=tracking,
        results=out,
    )
    session = Session(identity)
    session.write(content.write)
    session.close(0)


def _tags(*names: str) -> tuple[str, ...]:
    """Without repeats; W&B refuses tags longer than 64 characters, such as a model's path, of which the end is kept."""
    return tuple(dict.fromkeys(name[-64:] for name in names if name))
