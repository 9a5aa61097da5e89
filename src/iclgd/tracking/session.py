"""One W&B run from opening to closing, and what a run's folder says about it. W&B's failures are warnings."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from iclgd.config import TrackingConfig
from iclgd.runs.files import write_text
from iclgd.runs.secrets import without_secrets

log = logging.getLogger(__name__)

_FILE = Path("wandb") / "iclgd.json"
_ARTIFACT = ("fingerprint.json", "config.yaml", "prompts.json", "scores.json", "environment.json")
_OLD_KEY = re.compile(r"\b[0-9a-fA-F]{40}\b")  # W&B's older keys, which elsewhere would be a commit


@dataclass
class UploadState:
    """What a folder says about W&B.

    Attributes:
        id: of the W&B run. No two folders share one, so a run that two sweeps make is two runs there.
        modes: by `entity/project`, how the results were last recorded: online or offline.
    """

    id: str
    modes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, new_id: str) -> UploadState:
        """The state that the folder holds, or a fresh one with `new_id`."""
        try:
            return cls(**json.loads((folder / _FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls(new_id)

    def write(self, folder: Path) -> None:
        """Write the state; a failure is a warning."""
        try:
            write_text(folder / _FILE, json.dumps(asdict(self)))
        except OSError as error:
            log.warning("W&B: the id of %s was not written: %s", folder, error)

    def recordings(self, tracking: TrackingConfig, folder: Path) -> list[Path]:
        """W&B's folders of this run, on this machine."""
        return sorted((files_folder(tracking, folder) / "wandb").glob(f"*run-*-{self.id}"))

    def needs_sending(self, tracking: TrackingConfig, folder: Path) -> bool:
        """Whether the results have not been recorded where `tracking` wants them; `wandb sync` counts as online."""
        mode = self.modes.get(destination(tracking))
        if mode is None:
            return True
        synced = any(any(run.glob("*.wandb.synced")) for run in self.recordings(tracking, folder))
        return not (synced or mode in ("online", tracking.mode))


def is_unsent(folder: Path) -> bool:
    """Whether a run's folder has offline recordings of which none was sent."""
    recordings = list((folder / "wandb").glob("offline-run-*"))
    synced = any(any(run.glob("*.wandb.synced")) for run in recordings)
    return bool(recordings) and not synced and "online" not in UploadState.read(folder, "").modes.values()


def files_folder(tracking: TrackingConfig, folder: Path) -> Path:
    """The folder in which W&B makes its own folder `wandb`."""
    return Path(tracking.dir).expanduser() if tracking.dir else folder


def destination(tracking: TrackingConfig) -> str:
    """Entity and project as one key."""
    return f"{tracking.entity or ''}/{tracking.project}"


@dataclass(frozen=True)
class Identity:
    """What W&B is given about a run before it has results."""

    name: str  # shown by the dashboard
    group: str  # the sweep
    job_type: str  # the finetuning variant
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    tracking: TrackingConfig
    folder: Path  # of the results


class Session:
    """An open W&B run. No method raises: the first failure is kept, and `close` warns of it."""

    def __init__(self, identity: Identity, state: UploadState) -> None:
        self.identity, self.state = identity, state
        self._failure: Exception | None = None
        self._run: Any = None
        self._attempt(self._open)

    def write(self, content: Callable[[Any], None]) -> None:
        """Call `content` with the W&B run."""
        self._attempt(lambda: content(self._run))

    def write_artifact(self) -> None:
        """Log the files that say what the run was made of and what came out."""

        def content(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(f"result-{self.state.id}", type="result")
            for name in _ARTIFACT:
                if (self.identity.folder / name).is_file():
                    artifact.add_file(str(self.identity.folder / name), name=name)
            run.log_artifact(artifact)

        self.write(content)

    def close(self, exit_code: int, interrupted: bool = False) -> None:
        """Finish the run.

        Args:
            exit_code: 0 if the results are whole; they then replace earlier recordings of the same run.
            interrupted: a signal stopped the program. It stops W&B's process as well, so its errors mean nothing.
        """
        self._attempt(lambda: self._run.finish(exit_code=exit_code))
        if self._failure is not None:
            message = "W&B failed (%s): %s is not there, or not all of it. The same command sends it from %s"
            level = logging.DEBUG if interrupted else logging.WARNING
            log.log(level, message, describe(self._failure), self.identity.name, self.identity.folder)
        elif exit_code == 0:
            self._finish_recording()

    def _finish_recording(self) -> None:
        tracking, folder = self.identity.tracking, self.identity.folder
        recording = Path(self._run.dir).parent
        for older in self.state.recordings(tracking, folder):  # else `wandb sync` would send both under one id
            if older.name != recording.name:
                shutil.rmtree(older, ignore_errors=True)
        self.state.modes[destination(tracking)] = str(tracking.mode)
        self.state.write(folder)
        if tracking.mode == "offline":
            log.info("W&B: recorded offline; to send it: wandb sync %s", recording)

    def _attempt(self, call: Callable[[], None]) -> None:
        if self._failure is not None:
            return
        try:
            call()
        except Exception as error:
            self._failure = error
            with suppress(Exception, SystemExit):  # the next run starts a new process of W&B
                import wandb

                wandb.teardown()

    def _open(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else W&B sends its own errors, offline too
        import wandb

        wandb.setup(settings=wandb.Settings(silent=True))  # before init: no question on the terminal for a missing key
        identity = self.identity
        self._run = wandb.init(
            project=identity.tracking.project,
            entity=identity.tracking.entity,
            id=self.state.id,
            name=identity.name,
            group=identity.group,
            job_type=identity.job_type,
            tags=list(identity.tags),
            config=dict(identity.config),
            dir=files_folder(identity.tracking, identity.folder),
            resume="allow",
            reinit="create_new",  # leaves alone whatever other run this process has open
            settings=_settings(str(identity.tracking.mode)),
        )


def _settings(mode: str) -> Any:
    """Nothing about the machine, which environment.json has, and no output on the terminal."""
    import wandb

    return wandb.Settings(
        mode=mode,  # pyright: ignore[reportArgumentType]
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        save_code=False,
        symlink=False,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        init_timeout=10.0,
        finish_timeout=30.0,
        finish_timeout_raises=True,
    )


def describe(error: BaseException) -> str:
    """The first line of an error, without anything that may be an API key."""
    first = (str(error).splitlines() or [""])[0]
    return without_secrets(f"{type(error).__name__}: {_OLD_KEY.sub('***', first)}")
