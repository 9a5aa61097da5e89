"""What happens between the command line and the experiment, and how the command ends."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from iclgd.cli import early, hydra_setup, rerun, summary
from iclgd.cli.invocation import VARIABLE, Invocation
from iclgd.cli.summary import FAILED, REFUSED
from iclgd.common import paths, ranks
from iclgd.config import Config, ConfigError, typed
from iclgd.runs.execute import Ending, Outcome, execute
from iclgd.runs.folder import RunFolder
from iclgd.runs.process import Terminated, end_children, terminable
from iclgd.runs.progress import sweep_progress, terminal
from iclgd.runs.schema import State
from iclgd.runs.together import announced, follow

log = logging.getLogger(__name__)

hydra_setup.register()  # here, because a worker's first sight of the project is the import of `job`

INTERRUPTED, TERMINATED = 130, 143


class NoObjective(RuntimeError):
    """A run has no value for a sweeper to optimise."""


@dataclasses.dataclass
class Command:
    """One command: `run` fills it, callbacks and jobs of the same process report to it."""

    code: int = 0  # the exit code: 0, 1 if a run failed, 2 if settings were refused, 130 or 143 after a signal
    message: str = ""  # why it was refused, or could not go on
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)  # how the run of a single run ended
    invocation: Invocation | None = None  # the record of a sweep
    tracking: DictConfig | None = None  # how this command's sweep is tracked
    figures: bool = False  # whether figures are drawn at its end
    display: ExitStack = dataclasses.field(default_factory=ExitStack)  # what is drawn on the terminal meanwhile

    def results(self) -> list[Outcome]:
        """How each run ended, wherever it was computed."""
        return self.outcomes if self.invocation is None else self.invocation.outcomes()


_command = Command()


class Watch(Callback):
    """Hydra tells it when a run or a sweep begins."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a run that cannot be before anything is made for it."""
        try:
            typed(config)
        except ConfigError as error:
            sys.exit(_refuse(str(error)))
        _command.figures = config.runtime.figures
        if ranks.own() == 0:
            _command.display.enter_context(terminal())

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the record of a sweep, and hand its place to every job as an override, which any launcher carries."""
        total = hydra_setup.count_points(config)
        if os.environ.get("WANDB_SWEEP_ID"):
            said = "an agent of W&B's sweeps makes one run at a time: leave -m and sweeps= out of its command"
            sys.exit(_refuse(said))
        if ranks.count() > 1 and not str(config.hydra.launcher._target_).endswith("BasicLauncher"):
            sys.exit(_refuse("under torchrun all runs are made by its processes together: leave hydra/launcher=basic"))
        if ranks.count() > 1 and hydra_setup.points(config) is None:
            sys.exit(_refuse("under torchrun the runs of a sweep must be known beforehand: name their values with -m"))
        if ranks.own() > 0:
            return
        try:
            invocation = Invocation.begin(Path(config.hydra.sweep.dir), total)
        except OSError as error:
            sys.exit(_refuse(_unwritable(error)))
        with open_dict(config.hydra):
            place = hydra_setup.quoted(str(invocation.folder))
            config.hydra.overrides.hydra.append(f"+hydra.job.env_set.{VARIABLE}={place}")
        _command.invocation = invocation
        _command.tracking, _command.figures = config.tracking, config.runtime.figures
        _command.display.enter_context(terminal())
        _command.display.enter_context(sweep_progress(total, invocation.count))


def job(composed: DictConfig) -> float:
    """One run of the command line, in whatever process a launcher chose.

    Returns:
        The mean of the score that runtime.objective names; NaN if none is named.

    Raises:
        NoObjective: an optimising sweeper waits for a value and there is none.
        KeyboardInterrupt: a signal stopped the command.
    """
    settings, invocation = cast(DictConfig, HydraConfig.get()), Invocation.current()
    if ranks.own() > 0:
        follow(lambda: placed(typed(composed), settings), _experiment)
        return math.nan
    path, number = Path(settings.runtime.output_dir), int(OmegaConf.select(settings, "job.num") or 0)
    record = functools.partial(_record, invocation, number, path)
    record(None)
    try:
        with announced(_experiment) as experiment:
            config = placed(typed(composed), settings)
            if RunFolder(path).state() is not State.done:  # a finished run stays so when its data have gone
                early.refuse(config)
            outcome = execute(config, path, experiment, _prepare)
        if outcome.ending is Ending.skipped:
            from iclgd import tracking

            tracking.send_finished(config, path)
    except ConfigError as error:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        outcome = Outcome(Ending.refused, path, str(error))
    except OSError as error:  # not even the run's own folder can be written
        outcome = Outcome(Ending.failed, path, _unwritable(error))
    except KeyboardInterrupt as stop:
        record(Outcome(Ending.interrupted, path))
        if isinstance(stop, Terminated) and invocation is not None and not invocation.is_own():
            return math.nan  # a worker is ended alone, as a cluster does: the others go on
        raise
    record(outcome)
    if ranks.count() > 1 and outcome.ending is Ending.failed:
        sys.exit(FAILED)  # the other processes may wait for this one: torchrun ends them
    if math.isnan(outcome.objective) and "optuna" in str(settings.sweeper._target_):
        raise NoObjective(f"run {path.name} gave no value to optimise. {outcome.message}")
    return outcome.objective


def _record(invocation: Invocation | None, number: int, path: Path, outcome: Outcome | None) -> None:
    if invocation is not None:
        try:
            invocation.mark(number, outcome, path)
        except OSError as error:
            log.error("how run %s ended cannot be told to the command: %s", path.name, error)
    elif outcome is not None:
        _command.outcomes.append(outcome)


def _experiment(*arguments: Any) -> Any:
    from iclgd import experiment

    return experiment.run(*arguments)


def _prepare(config: Config) -> Any:
    from iclgd.evidence.preparation import prepare

    return prepare(config)


def placed(config: Config, settings: DictConfig) -> Config:
    """The config with its place on the machine: workers of one machine share its cores, and take its GPUs in turn."""
    workers = OmegaConf.select(settings, "launcher.n_jobs")
    if not workers:
        return config
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    runtime = config.runtime
    if runtime.threads is None:
        runtime = dataclasses.replace(runtime, threads=max(1, cores // (workers if workers > 0 else cores)))
    if runtime.device in ("auto", "cuda"):
        import torch

        if torch.cuda.is_available():
            runtime = dataclasses.replace(runtime, device=f"cuda:{settings.job.num % torch.cuda.device_count()}")
    return dataclasses.replace(config, runtime=runtime)


def run(arguments: Sequence[str], tell: bool = True) -> Command:
    """Run a command line.

    `tell` prints what was done, and the tables.
    """
    global _command
    _command = command = Command()
    if ranks.own() > 0:  # the first process says it all
        tell = False
        logging.disable(logging.CRITICAL)
    hydra_setup.register()
    with ExitStack() as stack:
        if arguments and arguments[0] == rerun.OPTION:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="iclgd-rerun-")))
            try:
                arguments = rerun.composed_from(arguments, place)
            except ConfigError as error:
                _refuse(str(error))
                return command
        _run(arguments)
    return _ended(command, tell)


def _run(arguments: Sequence[str]) -> None:
    command = _command
    main = hydra.main(version_base="1.3", config_path=str(paths.config_folder()), config_name="config")(job)
    wants_all = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        with _command_line(arguments), terminable():
            try:
                main()
            finally:
                command.display.close()
                if ranks.count() > 1:
                    ranks.disconnect()
    except KeyboardInterrupt as stop:
        command.code = TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
        end_children()
    except Exception as error:
        if wants_all:
            raise
        _explain(error)
    except SystemExit as end:
        command.code = end.code if isinstance(end.code, int) else FAILED


def _ended(command: Command, tell: bool) -> Command:
    if command.invocation is not None:
        command.invocation.mark_cut_off()
    results = command.results()
    if command.code == 0 or (command.code == FAILED and results):
        command.code = max(command.code, summary.code(results))
    folders = list(dict.fromkeys(o.folder for o in results if o.ending in (Ending.done, Ending.skipped)))
    figures = summary.figures(folders, command.invocation is not None) if folders and command.figures else []
    if command.invocation is not None and any(outcome.ending is Ending.done for outcome in results):
        summary.log_sweep(command.tracking, folders, figures)
    if tell and results:
        summary.summarise(results)
    return command


def _explain(error: Exception) -> None:
    message = hydra_setup.explain(error) or (_unwritable(error) if isinstance(error, OSError) else None)
    if message is not None:
        _refuse(message)
    else:
        _refuse(f"{type(error).__name__}: {error} (HYDRA_FULL_ERROR=1 shows where)", FAILED)


def _refuse(message: str, code: int = REFUSED) -> int:
    _command.message, _command.code = message, code
    sys.stderr.write(f"iclgd: {message}\n")
    return code


def _unwritable(error: OSError) -> str:
    return f"the results cannot be written: {error}; name another folder with paths.outputs=FOLDER"


@contextmanager
def _command_line(arguments: Sequence[str]) -> Iterator[None]:
    """Hydra reads sys.argv, and raises what it would else print only if an environment variable says so."""
    before, mode = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["iclgd", *hydra_setup.ordered(arguments)], "1"
    try:
        yield
    finally:
        sys.argv = before
        if mode is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = mode
