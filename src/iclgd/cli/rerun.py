"""`iclgd --rerun FOLDER [key=value ...]`: a finished run again, from its folder alone, with changes if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from iclgd.cli.hydra_setup import without_config_dirs
from iclgd.common import paths
from iclgd.config import ConfigError
from iclgd.runs.files import plain
from iclgd.runs.schema import recorded_config

OPTION = "--rerun"
_NAME = "rerun"


def composed_from(arguments: Sequence[str], place: Path) -> list[str]:
    """The command line that makes the run of a folder again.

    The run's config.yaml becomes Hydra's main config. Where an argument chooses a file of a config group
    (`finetune=gd`), that file and its defaults replace the run's whole section. Results go to `rerun` in the outputs
    folder of here; the folder of data is the run's if it is here, else what this machine says.

    Args:
        arguments: the command line, with `--rerun FOLDER` first.
        place: a folder for the main config, which must last as long as the command.

    Raises:
        ConfigError: no folder is named, here or by `--config-dir`, or it has no config.yaml that can be read.
    """
    if len(arguments) < 2:
        raise ConfigError("--rerun needs a run's folder: iclgd --rerun outputs/single/RUN_ID [key=value ...]")
    folder, (folders, rest) = Path(arguments[1]), without_config_dirs(arguments[2:])
    settings = recorded_config(folder)
    main = yaml.safe_load((paths.config_folder() / "config.yaml").read_text(encoding="utf-8"))
    chosen = {argument.partition("=")[0].lstrip("+") for argument in rest}
    own = {key: value for key, value in settings.items() if key not in {*chosen, "paths"}}
    defaults = [entry for entry in main["defaults"] if not isinstance(entry, dict) or own.keys().isdisjoint(entry)]
    data = (settings.get("paths") or {}).get("data_dir")
    if data and Path(data).expanduser().is_dir():
        own["paths"] = {"data_dir": str(Path(data).expanduser().resolve())}
    hydra = {**main["hydra"], "run": {"dir": "${paths.outputs}/rerun/${iclgd.run_id:}"}}
    if folders:  # Hydra takes one, the last, which is to be `place`
        hydra["searchpath"] = [*hydra["searchpath"], f"file://{Path(folders[-1]).resolve()}"]
    content = {"defaults": defaults, **own, "sweep_name": _NAME, "hydra": hydra}
    (place / f"{_NAME}.yaml").write_text(yaml.safe_dump(plain(content), sort_keys=False), encoding="utf-8")
    return ["--config-dir", str(place), "--config-name", _NAME, *rest]
