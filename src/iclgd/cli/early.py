"""What can be refused before anything heavy is imported: folders, rows, shots and layers."""

from __future__ import annotations

import sys

from iclgd.config import Config, ConfigError
from iclgd.config.bounds import parse_layers
from iclgd.config.enumerations import TrainingData
from iclgd.models.files import layers_of
from iclgd.tasks import draw
from iclgd.tasks.sources import is_local


def refuse(config: Config) -> None:
    """Refuse a run that cannot be, as its experiment would after some seconds; what needs a network is left to it."""
    if "torch" in sys.modules:  # the experiment then says it as quickly
        return
    if is_local(config.task, config.paths.data_dir) and config.finetune.data is not TrainingData.other_task:
        draw(config)
    layers, count = parse_layers(config.finetune.layers), layers_of(config.model)
    if layers is not None and count is not None and layers[-1] >= count:
        raise ConfigError(f"finetune.layers names layer {layers[-1]}, but the model's layers are 0 to {count - 1}")
