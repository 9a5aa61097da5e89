"""A W&B run that can never harm ours: each call has a time limit, and what fails is recorded anew, offline."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from iclgd.config import TrackingConfig
from iclgd.runs.secrets import without_secrets
from iclgd.tracking.kept import parent_of

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Content = Callable[[Any], None]  # writes to a W&B run

INIT_SECONDS = 10.0  # to reach the server
CALL_SECONDS = 30.0  # for anything else, uploading at the end included
HURRY_SECONDS = 5.0  # the same for a run that failed or was stopped
PATIENCE = 600.0  # after which a server that could not be reached is tried again

_ARTIFACT = ("fingerprint.json", "config.yaml", "prompts.json", "scores.json", "environment.json", "source.patch")

_KEY = re.compile(r"\b[0-9a-fA-F]{40}\b")  # W&B's older keys, which elsewhere would be a commit


_unreached: tuple[float, Exception] | None = None  # when this process last failed to reach the server, and why


class NoAnswer(Exception):
    """W&B did not return in time."""


@dataclass(frozen=True)
class Identity:
    """What W&B is told about a run before it has results."""

    id: str  # names the run in its project; opened again with the same id, it is resumed
    name: str  # what the dashboard calls it
    group: str  # the sweep
    job_type: str  # the finetuning variant
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    tracking: TrackingConfig  # where it goes
    results: Path  # the folder that has the results in any case


class Session:
    """One W&B run from opening to closing. Nothing raises: whatever fails ends in one warning, when it is closed.

    Attributes:
        went: after closing, how all of it was recorded: `online`, `offline`, or None if it was not.
    """

    def __init__(self, identity: Identity) -> None:
        self.identity, mode = identity, str(identity.tracking.mode)
        self.went: str | None = None
        self._contents: list[Content] = []
        self._failure: Exception | None = None
        self._run: Any = None
        if mode == "online":
            self._failure = _recent_failure()
        if self._failure is None:
            self._run = self._attempt(2 * INIT_SECONDS, lambda: _open(identity, mode))
        if mode == "online" and self._failure is not None:
            _remember(self._failure)

    def write(self, content: Content) -> None:
        """Write to the run. What is written may be written a second time, to another run, if this one fails."""
        self._contents.append(content)
        if self._failure is None:
            self._attempt(CALL_SECONDS, lambda: content(self._run))

    def close(self, exit_code: int) -> None:
        """Finish the run; if W&B has failed, record all of it anew offline and say how to send it."""
        seconds = HURRY_SECONDS if exit_code else CALL_SECONDS + HURRY_SECONDS
        if self._failure is None:
            self._attempt(seconds, lambda: self._run.finish(exit_code=exit_code))
        if self._failure is not None:
            self._record_again(exit_code)
            return
        self.went = str(self.identity.tracking.mode)
        if self.went == "offline":
            folder = Path(self._run.dir).parent
            log.info("W&B: recorded offline; to send it: wandb sync %s", folder)

    def _attempt(self, seconds: float, call: Callable[[], Result]) -> Result | None:
        try:
            return within(seconds, call)
        except Exception as error:
            self._failure = error
            _end_service(kill=isinstance(error, NoAnswer))
            return None

    def _record_again(self, exit_code: int) -> None:
        failure, name, results = describe(self._failure), self.identity.name, self.identity.results
        self._failure = None
        run: Any = self._attempt(2 * INIT_SECONDS, lambda: _open(self.identity, "offline"))
        for content in [*self._contents, lambda run: run.finish(exit_code=exit_code)]:
            if self._failure is None:
                self._attempt(CALL_SECONDS, lambda content=content: content(run))
        if self._failure is None:
            self.went = "offline"
            message = "W&B failed (%s): %s was not sent, or not all of it; to send it later: wandb sync %s"
            log.warning(message, failure, name, Path(run.dir).parent)
        else:
            message = (
                "W&B failed (%s; offline: %s): %s was not recorded there, and cannot be sent; its results are in %s"
            )
            log.warning(message, failure, describe(self._failure), name, results)


def artifact_of(identity: Identity) -> Content:
    """What a run was made of and what came out, as files of an artifact whose source is the run."""

    def write(run: Any) -> None:
        import wandb

        artifact = wandb.Artifact(f"result-{identity.id}", type="result")
        for name in _ARTIFACT:
            path = identity.results / name
            if path.is_file():
                artifact.add_file(str(path), name=name)
        run.log_artifact(artifact)

    return write


def _recent_failure() -> Exception | None:
    """Why the server could not be reached a short while ago: a sweep's runs do not each wait for it anew."""
    return _unreached[1] if _unreached is not None and time.monotonic() < _unreached[0] + PATIENCE else None


def _remember(failure: Exception) -> None:
    global _unreached
    if _recent_failure() is None:
        _unreached = (time.monotonic(), failure)


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """The result of a call that may hang, made in a thread that is left behind if it does.

    Raises:
        NoAnswer: it took longer.
    """
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=work, name="W&B", daemon=True)
    thread.start()
    thread.join(seconds)
    if not future.done():
        raise NoAnswer(f"no answer within {seconds:.0f} s")
    return future.result()


def describe(error: BaseException | None) -> str:
    """One line about an error, without anything that may be an API key."""
    first = (str(error).splitlines() or [""])[0]
    return without_secrets(f"{type(error).__name__}: {_KEY.sub('***', first)}")


def _open(identity: Identity, mode: str) -> Any:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else W&B calls home with its own errors, offline too
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))  # before init: no question on the terminal for a missing key
    return wandb.init(
        project=identity.tracking.project,
        entity=identity.tracking.entity,
        id=identity.id,
        name=identity.name,
        group=identity.group,
        job_type=identity.job_type,
        tags=list(identity.tags),
        config=dict(identity.config),
        dir=parent_of(identity.tracking, identity.results),
        resume="allow",
        reinit="create_new",  # leaves alone whatever other run this process has open
        settings=_settings(mode),
    )


def _settings(mode: str) -> Any:
    """Files of this run alone and nothing about the machine, which environment.json has; no word on the terminal."""
    import wandb

    wanted = {
        "mode": mode,
        "console": "off",
        "disable_code": True,
        "disable_git": True,
        "disable_job_creation": True,
        "save_code": False,
        "symlink": False,
        "x_disable_machine_info": True,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
        "init_timeout": INIT_SECONDS,
        "x_service_wait": INIT_SECONDS,
        "finish_timeout": CALL_SECONDS,
        "finish_timeout_raises": True,
        "summary_timeout": int(CALL_SECONDS),
    }
    known = wandb.Settings.model_fields  # older versions have fewer
    return wandb.Settings(**{key: value for key, value in wanted.items() if key in known})


def _end_service(kill: bool) -> None:
    """Let the next run start a service process of its own; the old one is dead, hangs, or still holds the run's id."""
    wandb = sys.modules.get("wandb")
    if wandb is None:
        return
    if kill:
        _kill_service()
    try:
        within(HURRY_SECONDS, wandb.teardown)
    except (Exception, SystemExit) as error:
        log.debug("W&B could not be torn down: %s", describe(error))
    os.environ.pop("WANDB_SERVICE", None)  # the address of the process that is gone


def _kill_service() -> None:
    import psutil

    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
            if child.name().startswith("wandb-core"):
                child.kill()
                child.wait(HURRY_SECONDS)
