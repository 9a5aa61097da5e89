"""What a command would do, without doing it: its runs, which of them are done, and about how long the rest takes."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from iclgd.cli import hydra_setup
from iclgd.common import paths
from iclgd.common.printable import printable
from iclgd.config import Config, ConfigError, as_dict, typed
from iclgd.runs.folder import RunFolder
from iclgd.runs.inputs import run_id
from iclgd.runs.progress import duration
from iclgd.runs.schema import DamagedRun, State, read

# What makes runs take about as long as each other, from the most alike to the least.
_KINDS = (
    ("model.name", "task.name", "task.shots", "task.queries", "finetune.name", "finetune.epochs"),
    ("model.name", "task.name", "task.shots"),
    ("model.name",),
)


@dataclass(frozen=True)
class Planned:
    """A run that a command would make."""

    overrides: tuple[str, ...]  # what sets it apart, as on the command line
    folder: Path  # where it goes
    state: State | None  # what is there already, None if nothing is
    refused: str = ""  # why it cannot be run; empty if it can
    seconds: float = math.nan  # about how long it takes, from finished runs of its kind; NaN if there are none
    config: Config | None = None  # its settings; None if they cannot be read


def planned(arguments: Sequence[str]) -> list[Planned]:
    """The runs of a command line.

    Raises:
        ConfigError: the sweep's points are chosen as it goes.
    """
    from hydra._internal.utils import get_args_parser

    chosen = get_args_parser().parse_args(hydra_setup.ordered(arguments))
    overrides = list(chosen.overrides)
    if chosen.config_dir:
        folder = Path(chosen.config_dir).resolve()
        overrides.append(f"hydra.searchpath=['file://{paths.project_root()}','file://{folder}']")
    hydra_setup.register()
    with initialize_config_dir(str(paths.config_folder()), version_base="1.3"):
        base = _composed([o for o in overrides if not chosen.multirun or not _sweeps_over(o)])
        sweep = chosen.multirun or str(OmegaConf.select(base, "hydra.mode")).endswith("MULTIRUN")
        if not sweep:
            return _timed([_one((), base, Path(base.hydra.run.dir))])
        OmegaConf.update(base, "hydra.overrides.task", [o for o in overrides if not o.startswith("hydra")])
        points = hydra_setup.points(base)
        if points is None:
            raise ConfigError("the sweeper chooses its runs as it goes: they cannot be listed beforehand")
        own = [o for o in overrides if o.startswith("hydra")]
        common = set(points[0]).intersection(*points[1:]) if len(points) > 1 else set()
        runs = []
        for point in points:
            composed, apart = _composed([*own, *point]), tuple(override for override in point if override not in common)
            runs.append(_one(apart, composed, Path(composed.hydra.sweep.dir) / composed.hydra.sweep.subdir))
        return _timed(runs)


def _sweeps_over(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(override).is_sweep_override()


def _composed(overrides: Sequence[str]) -> DictConfig:
    return compose("config", list(overrides), return_hydra_config=True)


def _one(overrides: tuple[str, ...], composed: DictConfig, folder: Path) -> tuple[Planned, Mapping[str, Any]]:
    try:
        config = typed(composed)
    except ConfigError as error:
        return Planned(overrides, folder, None, refused=str(error)), {}
    settings = as_dict(config)
    return Planned(overrides, folder.with_name(run_id(settings)), RunFolder(folder).state(), config=config), settings


def _timed(runs: Sequence[tuple[Planned, Mapping[str, Any]]]) -> list[Planned]:
    took = list(_finished({run.folder.parents[1] for run, _ in runs}))
    result = []
    for run, settings in runs:
        seconds = math.nan
        for kind in _KINDS if settings else ():
            alike = [s for other, s in took if all(_select(other, key) == _select(settings, key) for key in kind)]
            if alike:
                seconds = mean(alike)
                break
        result.append(replace(run, seconds=seconds))
    return result


def _finished(outputs: Iterable[Path]) -> Iterable[tuple[Mapping[str, Any], float]]:
    for folder in outputs:
        for status in folder.glob("*/*/status.json"):
            run = RunFolder(status.parent)
            known = run.status()
            if known is not None and known.state is State.done and known.seconds:
                with suppress(OSError, DamagedRun):
                    yield read(status.parent / "config.yaml"), known.seconds


def _select(settings: Mapping[str, Any], key: str) -> Any:
    for step in key.split("."):
        settings = settings.get(step, {}) if isinstance(settings, Mapping) else {}
    return settings


def show(arguments: Sequence[str]) -> int:
    """Print the plan of a command line; returns an exit code: 2 if a run, or all of it, would be refused."""
    try:
        runs = planned(arguments)
    except Exception as error:
        message = hydra_setup.explain(error)
        if message is None:
            raise
        sys.stderr.write(f"iclgd: {message}\n")
        return 2
    for run in runs:
        state = "refused" if run.refused else str(run.state or "to do")
        sys.stdout.write(
            f"{state:<12} {run.folder.name}  {' '.join(run.overrides)}{'  ' + run.refused}".rstrip() + "\n"
        )
    todo = [run for run in runs if run.state is not State.done and not run.refused]
    known = [run.seconds for run in todo if not math.isnan(run.seconds)]
    time = "no run of this kind tells how long"
    if known:
        time = f"about {duration(mean(known) * len(todo))}, one after the other"
    sys.stdout.writelines(f"{line}\n" for line in _needs([run.config for run in todo if run.config is not None]))
    done = sum(run.state is State.done for run in runs)
    sys.stdout.write(f"{len(runs)} runs: {done} done, {len(todo)} to do" + (f" ({time})" if todo else "") + "\n")
    return 2 if any(run.refused for run in runs) else 0


def _needs(configs: Sequence[Config]) -> Iterator[str]:
    """A line for each model and place: the largest need of memory among its runs, and the minutes of all."""
    if not configs:
        return
    from iclgd.evidence.memory import estimate  # imports PyTorch, which takes seconds

    models: dict[str, dict[str, list[Config]]] = {}
    for config in configs:
        runtime, tuned, task = config.runtime, config.finetune, config.task
        place = f"{config.model.name}, runtime.placement={runtime.placement}, runtime.dtype={runtime.dtype}"
        size = (tuned.procedure, tuned.objective, tuned.trainable, tuned.layers, tuned.epochs, tuned.optimizer)
        kind = str((size, task.shots, task.queries, config.model, runtime))
        models.setdefault(place, {}).setdefault(kind, []).append(config)
    for place, kinds in models.items():
        try:
            found = [(estimate(alike[0]), len(alike)) for alike in kinds.values()]
        except (ConfigError, OSError) as error:
            yield f"{place}: no estimate, {printable(str(error), 300)}"
            continue
        largest = max((each for each, _ in found), key=lambda each: max(each.devices.values()))
        minutes = sum(each.minutes * count for each, count in found)
        yield "; ".join([f"{place}: {replace(largest, minutes=minutes)}", *largest.missing])
