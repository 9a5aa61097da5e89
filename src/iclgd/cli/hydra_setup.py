"""The resolvers and the schema that Hydra needs, the runs of a sweep, and plain words for its errors."""

from __future__ import annotations

import difflib
import inspect
import re
import warnings
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from iclgd.common import paths
from iclgd.config import ConfigError, as_dict, register_schema, typed
from iclgd.results.published import published
from iclgd.runs.inputs import run_id


def register() -> None:
    """Register resolvers and schema; every process that composes a config needs them first."""
    sweeps = paths.project_root() / "sweeps"
    resolvers = {
        "iclgd.root": lambda: str(paths.project_root()),
        "iclgd.run_id": _run_id,
        "iclgd.sweep_name": _sweep_name,
        "iclgd.sweep_names": lambda: ", ".join(sorted(path.stem for path in sweeps.glob("*.yaml"))),
        "iclgd.published": _published,
        "iclgd.stem": lambda path: re.sub(r"\.(ya?ml|jsonl?|csv|parquet)$", "", Path(str(path)).name),
    }
    put = OmegaConf.register_new_resolver
    if "replace" in inspect.signature(OmegaConf.register_resolver).parameters:  # from OmegaConf 2.4 on, with Hydra 1.4
        put = OmegaConf.register_resolver
    for name, resolver in resolvers.items():
        put(name, resolver, replace=True)  # pyright: ignore[reportCallIssue]
    register_schema()
    # Launcher files of ours stand before the plugins' entries of the same name; Hydra 1.3 checks them against those,
    # which is welcome, and warns that later versions will not.
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against", category=UserWarning)


def _run_id(*, _root_: DictConfig) -> str:
    """The name of the composed run; `refused` for settings that cannot be run, whose error is shown elsewhere."""
    try:
        return run_id(as_dict(typed(_root_)))
    except ConfigError:
        return "refused"


def _sweep_name(*, _root_: DictConfig) -> str:
    """`sweep_name`, or the file of sweeps/ that was chosen, or `multirun` for a sweep written on the command line."""
    named = OmegaConf.select(_root_, "sweep_name")
    if named is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", str(named), re.ASCII):
        raise ConfigError(
            f"sweep_name={named} is not a plain name: use letters, digits, '_', '-' and '.' alone, no folders"
        )
    return str(named or OmegaConf.select(_root_, "hydra.runtime.choices.sweeps") or "multirun")


def _published(key: str, *, _root_: DictConfig) -> float:
    """The seed that goes with task.permutation, or the learning rate, of the published run on this task."""
    name = str(OmegaConf.select(_root_, "task.name"))
    runs = published()["runs"]
    if name not in runs:
        raise ConfigError(f"task={name} has no published run: choose one of {', '.join(runs)}")
    offset = OmegaConf.select(_root_, "task.permutation") if key == "seed" else 0
    return runs[name][key] + offset


def points(config: DictConfig) -> list[list[str]] | None:
    """The overrides of every run that a sweep will make; None if its sweeper chooses them as it goes.

    Inside `hydra.main` or `hydra.initialize`, whose loader lists the files that `glob` matches.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if not str(config.hydra.sweeper._target_).endswith("BasicSweeper"):
        return None
    swept = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides([*swept, *config.hydra.overrides.task])
    return [list(point) for batch in BasicSweeper.split_arguments(overrides, None) for point in batch]


def count_points(config: DictConfig) -> int | None:
    """How many runs a sweep will make; None if its sweeper chooses them as it goes."""
    chosen = points(config)
    return OmegaConf.select(config, "hydra.sweeper.n_trials") if chosen is None else len(chosen)


def explain(error: Exception) -> str | None:
    """What is wrong with the command line, in a few lines that name the key and the remedy.

    Returns:
        None if the error is not about the command line or the config.
    """
    from hydra.errors import HydraException, OverrideParseException

    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read: write KEY=VALUE, special characters in quotes: \"KEY='<a> (b)'\""
    if is_of_a_launcher(error):
        return _of_tasks(str(error))
    if not isinstance(error, HydraException | OmegaConfBaseException):
        unwritable = f"the results cannot be written: {error}; name another folder with paths.outputs=FOLDER"
        return unwritable if isinstance(error, OSError) else None
    text = "\n".join(filter(None, [str(error), str(error.__cause__ or "")]))
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1]) or _lines(text, 1)
    if match := re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text):
        return _unknown_option(match[1], match[2], text)
    if match := re.search(r"Ambiguous value for argument '([^=]+)=([^']*)'", text):
        key, values = match.groups()
        return f"{key}={values} names several values: add -m to sweep over them, or write {key}=[{values}] for a list"
    if match := re.search(r"Error merging override (\S+)", text):
        cause = _lines(str(error.__cause__), 1)
        several = "; a sweep takes several values: -m KEY=A,B, or iclgd.sweep in Python" * ("type 'list'" in cause)
        return f"{match[1]}: {cause}{several}"
    return _lines(text, 3)


def is_of_a_launcher(error: Exception) -> bool:
    """Whether an error is about the tasks of a cluster."""
    return type(error).__module__.startswith("submitit.")


def _of_tasks(text: str) -> str:
    refusal = re.search(r"error: .*(?:array|limit|Limit).*", text)
    if refusal:
        return (
            f"the cluster refuses so many tasks at once ({refusal[0].strip()}): set "
            "hydra.sweeper.max_batch_size=N for job arrays of N runs, one after the other; "
            "`scontrol show config` has MaxArraySize"
        )
    return (
        f"{_lines(text, 1)}\nWhat the tasks printed is in .submitit in the sweep's folder; "
        "the same command resumes the sweep"
    )


def _unknown_key(key: str) -> str | None:
    try:
        typed(OmegaConf.from_dotlist([f"{key}=0"]))
    except ConfigError as error:
        return str(error) if str(error).startswith("unknown key") else None
    return None


def _unknown_option(group: str, name: str, text: str) -> str:
    offered = re.search(r"Available options in '[^']+':\n((?:\t.*\n?)+)", text)
    names = offered[1].split() if offered else []
    near = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    if group == "model":
        hint += f"a folder or hub id is model=hf model.name={name}; "
    return f"{group}={name} does not exist: {hint}choose one of {', '.join(names) or f'the files of conf/{group}'}"


def _lines(text: str, count: int) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    dropped = ("full_key:", "object_type=", "reference_type=", "See https://")
    return "\n".join([line for line in lines if not line.startswith(dropped)][:count])
