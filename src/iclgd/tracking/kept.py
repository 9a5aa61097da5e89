"""What a folder remembers of W&B: the id under which its results are there, and where they were recorded or sent."""

from __future__ import annotations

import json
import logging
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from iclgd.config import TrackingConfig
from iclgd.runs.files import write_text

log = logging.getLogger(__name__)

_FILE = Path("wandb") / "iclgd.json"


@dataclass
class Kept:
    """The memory of one run's or one sweep's folder.

    Attributes:
        id: of the W&B run; no two folders have the same, so that a run that two sweeps make is two runs there.
        modes: by entity and project, how the results went there last: online or offline.
    """

    id: str
    modes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, name: str) -> Kept:
        """What the folder remembers, or a new id that begins with `name`."""
        try:
            return cls(**json.loads((folder / _FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls(f"{name}-{secrets.token_hex(4)}")

    def write(self, folder: Path) -> None:
        """Remember it; a folder that cannot be written is only warned of."""
        try:
            write_text(folder / _FILE, json.dumps(asdict(self)))
        except OSError as error:
            log.warning("W&B: the id of %s was not written down: %s", folder, error)

    def lacks(self, tracking: TrackingConfig, folder: Path) -> bool:
        """Whether the results have never gone where they are wanted; what `wandb sync` has sent counts as sent."""
        mode = self.modes.get(destination(tracking))
        synced = any((parent_of(tracking, folder) / "wandb").glob(f"*-{self.id}/*.wandb.synced"))
        return not (mode == "online" or mode == tracking.mode or (mode is not None and synced))


def is_unsent(folder: Path) -> bool:
    """Whether a run's folder has offline recordings and none was ever sent."""
    recorded = list((folder / "wandb").glob("offline-run-*"))
    synced = any(any(run.glob("*.wandb.synced")) for run in recorded)
    return bool(recorded) and not synced and "online" not in Kept.of(folder, "").modes.values()


def parent_of(tracking: TrackingConfig, folder: Path) -> Path:
    """Where W&B's folder `wandb` goes for the results in a folder."""
    return Path(tracking.dir).expanduser() if tracking.dir else folder


def destination(tracking: TrackingConfig) -> str:
    """A project of W&B, as a key."""
    return f"{tracking.entity or ''}/{tracking.project}"
