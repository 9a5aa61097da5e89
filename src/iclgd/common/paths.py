"""The project's own folders, and those it writes to."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def project_root() -> Path:
    """The folder that holds `conf/` and `sweeps/`: the package itself in a wheel, the checkout in a clone."""
    return _PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1]


def config_folder() -> Path:
    """The folder of Hydra config groups."""
    return project_root() / "conf"


def config_files(group: str) -> dict[str, Path]:
    """The files of a config group by name: this project's, and those in folders that `--config-dir` added."""
    from hydra.core.hydra_config import HydraConfig

    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else ()
    folders = [config_folder(), *(Path(source.path) for source in sources if source.schema == "file")]
    return {file.stem: file for folder in folders for file in sorted((folder / group).glob("*.yaml"))}


def shadowed_files(folder: Path) -> list[Path]:
    """Files of one's own config folder that Hydra would pass over, because a built-in file has the same name."""
    own = [file for file in sorted(folder.rglob("*.yaml")) if file.parent != folder]
    built_in = {file: config_folder() / file.relative_to(folder) for file in own}
    return [file for file in own if built_in[file].is_file() and built_in[file].read_bytes() != file.read_bytes()]


def bundled_data_folder() -> Path:
    """The folder of the example sentences that ship with the package, one folder for each task."""
    return _PACKAGE / "tasks" / "bundled"


def toy_model_folder(name: str = "toy") -> Path:
    """The folder of a small model that ships with the package: toy, or toy_plane."""
    return _PACKAGE / "models" / name


def cache_folder() -> Path:
    """Where converted models and shared recordings are kept; `ICLGD_CACHE_DIR` overrides the user's cache folder."""
    named = os.environ.get("ICLGD_CACHE_DIR")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "iclgd"


def import_from_current_folder() -> None:
    """Let a command import the user's own functions from the folder it is called in, as `python -m` does.

    The folder comes last, so that its files shadow nothing.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
