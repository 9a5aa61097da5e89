"""The plan of a command, `--dry-run`: its runs, which of them are done, and which would be refused."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from iclgd.cli import arguments as command_line
from iclgd.cli import hydra_setup
from iclgd.common import paths
from iclgd.config import ConfigError, as_dict, typed
from iclgd.evidence.preparation import refuse_missing_layers
from iclgd.runs.files import State
from iclgd.runs.folder import RunFolder
from iclgd.runs.inputs import run_id


@dataclass(frozen=True)
class PlannedRun:
    """A run that a command would make."""

    overrides: tuple[str, ...]  # what sets it apart, as on the command line
    folder: Path  # where it goes
    state: State | None  # the state of what is there already, None if nothing is
    refused: str = ""  # why it cannot be run; empty if it can


def plan(arguments: Sequence[str]) -> list[PlannedRun]:
    """The runs of a command line.

    Raises:
        ConfigError: the sweep's points are chosen as it goes.
    """
    from hydra._internal.utils import get_args_parser

    options = get_args_parser().parse_args(command_line.for_hydra(arguments))
    overrides = list(options.overrides)
    if options.config_dir:
        folder = Path(options.config_dir).resolve()
        overrides.append(f"hydra.searchpath=['file://{paths.project_root()}','file://{folder}']")
    hydra_setup.register()
    with initialize_config_dir(str(paths.config_folder()), version_base="1.3"):
        parsed = zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True)
        fixed = [text for text, override in parsed if not (options.multirun and override.is_sweep_override())]
        base = compose("config", fixed, return_hydra_config=True)
        if not options.multirun:
            return [_planned((), base, Path(base.hydra.run.dir))]
        hydras = [o for o in overrides if o.startswith("hydra")]
        OmegaConf.update(base, "hydra.overrides.task", [o for o in overrides if o not in hydras])
        points = hydra_setup.points(base)
        if points is None:
            raise ConfigError("the sweeper chooses its runs as it goes: they cannot be listed beforehand")
        sys.stderr.write(f"composing {len(points)} runs\n")
        common = set(points[0]).intersection(*points[1:]) if len(points) > 1 else set()
        runs = []
        for point in points:
            config = compose("config", [*hydras, *point], return_hydra_config=True)
            apart = tuple(override for override in point if override not in common)
            runs.append(_planned(apart, config, Path(config.hydra.sweep.dir) / "run"))
        return runs


def _planned(overrides: tuple[str, ...], composed: DictConfig, folder: Path) -> PlannedRun:
    try:
        config = typed(composed)
        refuse_missing_layers(config)
    except ConfigError as error:
        return PlannedRun(overrides, folder.with_name("refused"), None, refused=str(error))
    folder = folder.with_name(run_id(as_dict(config)))
    return PlannedRun(overrides, folder, RunFolder(folder).state())


def show(arguments: Sequence[str]) -> int:
    """Print the plan of a command line; returns an exit code: 2 if a run, or all of it, would be refused."""
    try:
        runs = plan(arguments)
    except Exception as error:
        message = hydra_setup.explain(error)
        if message is None:
            raise
        sys.stderr.write(f"iclgd: {message}\n")
        return 2
    for run in runs:
        state = "refused" if run.refused else str(run.state or "to do")
        line = f"{state:<12} {run.folder.name}  {' '.join(run.overrides)}  {run.refused}"
        sys.stdout.write(line.rstrip() + "\n")
    refused = sum(bool(run.refused) for run in runs)
    done = sum(run.state is State.done for run in runs)
    counts = f"{done} done, {len(runs) - done - refused} to do" + (f", {refused} refused" if refused else "")
    sys.stdout.write(f"{len(runs)} run{'s' if len(runs) != 1 else ''}: {counts}\n")
    return 2 if refused else 0
