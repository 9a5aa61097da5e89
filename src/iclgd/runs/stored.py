"""The settings that a run folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from iclgd.config import ConfigError


def settings_of(folder: Path) -> dict[str, Any]:
    """A run's config.yaml, ready to be composed again: `${` in it is text, since all interpolations are resolved.

    Raises:
        ConfigError: there is none, or it holds no settings.
    """
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{folder}: no run's config.yaml can be read there ({error})") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{folder}: config.yaml holds no settings")
    return _literal(settings)


def _literal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _literal(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_literal(entry) for entry in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
