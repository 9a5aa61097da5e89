"""Runs with another finetuning variant."""

from __future__ import annotations

from omegaconf import OmegaConf

from iclgd.config import Config, ConfigError, as_dict, typed
from iclgd.paths import config_files


def variant(config: Config, name: str | None, key: str = "metric.compare_with") -> Config:
    """The same run with another finetuning variant, as its yaml says.

    Raises:
        ConfigError: there is no such yaml; the message names `key`.
    """
    files = config_files("finetune")
    if name not in files:
        known = ", ".join(files)
        raise ConfigError(f"{key}={name} is no variant that another can be compared with: name one of {known}")
    return typed(OmegaConf.create({**as_dict(config), "finetune": OmegaConf.load(files[name])}))
