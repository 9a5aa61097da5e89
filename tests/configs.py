"""Configs for tests, composed from the project's own files."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from iclgd import hydra_setup, paths
from iclgd.config import Config, typed


def composed(overrides: Sequence[str] = (), with_hydra: bool = False) -> DictConfig:
    """What Hydra makes of a command line."""
    hydra_setup.register()
    with initialize_config_dir(str(paths.config_folder()), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=with_hydra)


def config(*overrides: str) -> Config:
    """The same, typed."""
    return typed(composed(overrides))
