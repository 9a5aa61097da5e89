"""Runs with another finetuning variant: one to compare with, or one that plays ICL's part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from iclgd.common.paths import config_files
from iclgd.config.bounds import ConfigError
from iclgd.config.schema import Config, FinetuneConfig, as_dict, naming_keys

ICL = "icl"
STATIC = "static_patch"  # its changes are what the context amounts to in weights


def group_of_file(config: Config, group: str, schema: type, file: Path) -> Any:
    """A group's settings as a yaml has them; they may refer to the run's other keys.

    Raises:
        ConfigError: it has a value that cannot be used; the message names the key.
    """
    root = OmegaConf.create(as_dict(config))
    with naming_keys():
        root[group] = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(file))
        return OmegaConf.to_object(root[group])


def variant(config: Config, name: str | None, key: str = "metric.compare_with") -> Config:
    """The same run with another finetuning variant, as its yaml says.

    Raises:
        ConfigError: there is no such yaml, or it has a value that cannot be used; the message names the key.
    """
    files = config_files("finetune")
    if name not in files:
        raise ConfigError(f"{key}={name} is not a variant of conf/finetune: name one of {', '.join(files)}")
    return replace(config, finetune=group_of_file(config, "finetune", FinetuneConfig, files[name]))


def reference_config(config: Config) -> Config:
    """The run as the reference has it: its variant, rate and order; the run itself where all of that is ICL's own."""
    reference, task = config.reference, config.task
    if reference.name != ICL:
        chosen = variant(config, reference.name, "reference.name")
        finetune = replace(
            chosen.finetune,
            lr=(reference.lr or chosen.finetune.lr) * reference.lr_factor,
            other_task=config.finetune.other_task or chosen.finetune.other_task,
        )
    elif reference.permutation is None and not reference.draw:
        return config
    else:
        finetune = config.finetune
    order = task.permutation if reference.permutation is None else reference.permutation
    return replace(config, finetune=finetune, task=replace(task, permutation=order))
