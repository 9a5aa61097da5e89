"""The command line as Hydra reads it: options first, mistakes that Hydra would misread refused, `--rerun` resolved."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from iclgd.common import paths
from iclgd.config import Config, ConfigError
from iclgd.runs.files import plain, recorded_config

RERUN = "--rerun"
GROUPS = {field.name for field in dataclasses.fields(Config)} - {"seed", "sweep_name"} | {"sweeps"}
_MULTIRUN = ("-m", "--multirun")
_OTHER_COMMANDS = ("--cfg", "-c", "--info", "-i", "--help", "-h", "--hydra-help", "--shell-completion", "-sc")


def for_hydra(arguments: Sequence[str]) -> list[str]:
    """A command line with its options first: between overrides, Hydra's parser would not know those that follow.

    `sweeps=NAME` implies `-m`, so that a key beside it may have several values.

    Raises:
        ConfigError: an argument that Hydra would misread, or answer without naming a remedy.
    """
    folders, others = without_config_dirs(arguments)
    overrides = [argument for argument in others if argument not in _MULTIRUN]
    _refuse_misread(overrides)
    for file in (file for folder in folders for file in paths.shadowed_files(Path(folder))):
        raise ConfigError(f"{file} has the name of a built-in file, which would be used in its place: rename it")
    is_sweep = len(overrides) < len(others) or any(argument.startswith("sweeps=") for argument in overrides)
    other_command = any(argument.partition("=")[0] in _OTHER_COMMANDS for argument in overrides)
    multirun = ["-m"] if is_sweep and not other_command else []
    return [*multirun, *(f"--config-dir={folder}" for folder in folders), *overrides]


def _refuse_misread(overrides: Sequence[str]) -> None:
    keys = {override.partition("=")[0]: override.partition("=")[2] for override in overrides}
    for key, value in keys.items():
        if key.startswith("hydra.sweeper.params."):
            swept = key.removeprefix("hydra.sweeper.params.")
            bare = value.strip("'\"")
            raise ConfigError(f"{key}={value}: write {swept}={bare}, and -m or sweeps=NAME beside it, for a sweep")
        if key in GROUPS and any(re.fullmatch(r"null|-?[\d.]+|range\(.*", name) for name in value.split(",")):
            raise ConfigError(f"{key}={value}: give the name of a file of conf/{key}; iclgd --help lists them")
    if keys.get("metric", "").startswith("[") and "+metric" in keys:
        names = ",".join([keys["metric"].strip("[]"), keys["+metric"].strip("[]")])
        raise ConfigError(
            f"+metric={keys['+metric']} would be lost beside metric={keys['metric']}: write metric=[{names}]"
        )


def without_config_dirs(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The folders that `--config-dir` or `-cd` names, and the other arguments.

    Raises:
        ConfigError: a folder's name is missing.
    """
    folders, others, rest = list[str](), list[str](), iter(arguments)
    for argument in rest:
        option, equals, folder = argument.partition("=")
        if option not in ("-cd", "--config-dir"):
            others.append(argument)
            continue
        folder = folder if equals else next(rest, "")
        if not folder or folder.startswith("-"):
            raise ConfigError(f"{option} needs a folder: iclgd {option} FOLDER [key=value ...]")
        folders.append(folder)
    return folders, others


def quoted(text: str) -> str:
    """A text as Hydra's override grammar reads it, whatever is in it."""
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{escaped}'"


def rerun(arguments: Sequence[str], config_dir: Path) -> list[str]:
    """The command line that makes the run of a folder again: `iclgd --rerun FOLDER [key=value ...]`.

    The run's config.yaml becomes Hydra's main config. Where an argument chooses a file of a config group
    (`finetune=gd`), that file and its defaults replace the run's whole section. Results go to `rerun` in the outputs
    folder of here; the folder of data is the run's if it is here, else what this machine says.

    Args:
        arguments: the command line, with `--rerun FOLDER` first.
        config_dir: a folder for the main config, which must last as long as the command.

    Raises:
        ConfigError: no folder is named, here or by `--config-dir`, or it has no config.yaml that can be read.
    """
    if len(arguments) < 2:
        raise ConfigError("--rerun needs a run's folder: iclgd --rerun outputs/single/RUN_ID [key=value ...]")
    folders, overrides = without_config_dirs(arguments[2:])
    settings = recorded_config(Path(arguments[1]))
    main = yaml.safe_load((paths.config_folder() / "config.yaml").read_text(encoding="utf-8"))
    chosen = {argument.partition("=")[0].lstrip("+") for argument in overrides}
    own = {key: value for key, value in settings.items() if key not in {*chosen, "paths"}}
    defaults = [each for each in main["defaults"] if not isinstance(each, dict) or own.keys().isdisjoint(each)]
    data = (settings.get("paths") or {}).get("data_dir")
    if data and Path(data).expanduser().is_dir():
        own["paths"] = {"data_dir": str(Path(data).expanduser().resolve())}
    hydra = {**main["hydra"], "run": {"dir": "${paths.outputs}/rerun/${iclgd.run_id:}"}}
    if folders:  # Hydra takes one, the last, which is to be `config_dir`
        hydra["searchpath"] = [*hydra["searchpath"], f"file://{Path(folders[-1]).resolve()}"]
    content = {"defaults": defaults, **own, "sweep_name": "rerun", "hydra": hydra}
    (config_dir / "rerun.yaml").write_text(yaml.safe_dump(plain(content), sort_keys=False), encoding="utf-8")
    return ["--config-dir", str(config_dir), "--config-name", "rerun", *overrides]
