"""The settings that a run folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iclgd.config import ConfigError
from iclgd.runs.parsing import DamagedRun
from iclgd.runs.reader import FolderReader


def settings_of(folder: Path) -> dict[str, Any]:
    """A run's config.yaml, ready to be composed again: `${` in it is text, since all interpolations are resolved.

    Raises:
        ConfigError: there is none, or it holds no settings.
    """
    try:
        return _literal(dict(FolderReader(folder).config))
    except (OSError, DamagedRun) as error:
        raise ConfigError(f"{folder}: no run's config.yaml can be read there ({error})") from error


def _literal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _literal(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_literal(entry) for entry in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
