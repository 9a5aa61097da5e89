"""Sends one folder's results to W&B, and remembers in the folder that they were sent."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iclgd.common.printable import without_secrets
from iclgd.config import TrackingConfig
from iclgd.runs.files import write_text
from iclgd.runs.folder import RunFolder

log = logging.getLogger(__name__)

_STATE = Path("wandb") / "iclgd.json"
_OLD_KEY = re.compile(r"\b[0-9a-fA-F]{40}\b")  # W&B's older keys, which elsewhere would be a commit


@dataclass
class UploadState:
    """What a folder says about W&B."""

    id: str = ""  # of the W&B run; no two folders share one, so a run that two sweeps make is two runs there
    finished_at: str = ""  # when the results that were recorded last were finished
    destination: str = ""  # entity and project for which they were recorded
    mode: str = ""  # how they were recorded: online or offline

    @classmethod
    def read(cls, folder: Path) -> UploadState:
        """The state that the folder holds; an empty one if there is none."""
        try:
            return cls(**json.loads((folder / _STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, folder: Path) -> None:
        """Write the state into the folder."""
        write_text(folder / _STATE, json.dumps(asdict(self)))

    def needs_sending(self, tracking: TrackingConfig, finished_at: str) -> bool:
        """Whether the results have not been recorded where and how `tracking` wants them."""
        is_there = (self.finished_at, self.destination) == (finished_at, _destination(tracking))
        return not is_there or self.mode not in ("online", tracking.mode)


def _destination(tracking: TrackingConfig) -> str:
    return f"{tracking.entity or ''}/{tracking.project}"


def send(
    content: Callable[[Any], None],
    folder: Path,
    tracking: TrackingConfig,
    run_id: str,
    finished_at: str = "",
    **identity: Any,
) -> None:
    """Record results as one W&B run, in place of an earlier recording. Whatever fails is one warning.

    `content` is called with the open W&B run. Its id begins with `run_id`, and `identity` goes to `wandb.init`.
    """
    try:
        with RunFolder(folder).claim():  # two commands would delete each other's recordings
            state = UploadState.read(folder)
            state.id = state.id or f"{run_id}-{secrets.token_hex(4)}"
            state.write(folder)
            run = _init(state.id, tracking, folder, identity)
            content(run)
            run.finish(exit_code=0)
            _replace_older(run)
            UploadState(run.id, finished_at, _destination(tracking), str(tracking.mode)).write(folder)
    except BaseException as error:
        with suppress(Exception, SystemExit):  # the next run starts a new process of W&B
            import wandb

            wandb.teardown()
        if not isinstance(error, Exception):  # Ctrl-C, which stops W&B's process too: its errors mean nothing
            raise
        message = "W&B failed (%s): %s is not there, or not all of it. The same command sends it from %s"
        log.warning(message, describe(error), identity["name"], folder)


def _replace_older(run: Any) -> None:
    """Delete older recordings of the same run: `wandb sync` would send both under one id."""
    recording = Path(run.dir).parent
    for older in recording.parent.glob(f"*run-*-{run.id}"):
        if older != recording:
            shutil.rmtree(older, ignore_errors=True)
    if run.offline:
        log.info("W&B: recorded offline; to send it: wandb sync %s", recording)


def _init(run_id: str, tracking: TrackingConfig, folder: Path, identity: Mapping[str, Any]) -> Any:
    """Open the W&B run: nothing about the machine, which environment.json has, and no output on the terminal."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else W&B sends its own errors, offline too
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))  # before init: no question on the terminal for a missing key
    return wandb.init(
        **identity,
        id=run_id,
        mode=str(tracking.mode),  # pyright: ignore[reportArgumentType]
        project=tracking.project,
        entity=tracking.entity,
        dir=Path(tracking.dir).expanduser() if tracking.dir else folder,  # W&B makes its folder `wandb` there
        resume="allow",
        reinit="create_new",  # leaves alone whatever other run this process has open
        settings=wandb.Settings(
            console="off",
            x_disable_machine_info=True,
            x_save_requirements=False,
            init_timeout=10.0,
            finish_timeout=30.0,
            finish_timeout_raises=True,
        ),
    )


def describe(error: BaseException) -> str:
    """The first line of an error, without anything that may be an API key."""
    first = (str(error).splitlines() or [""])[0]
    return without_secrets(f"{type(error).__name__}: {_OLD_KEY.sub('***', first)}")
