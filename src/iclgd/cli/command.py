"""The command `iclgd` between its arguments and the experiment: Hydra's main function, its jobs, and how they end."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from iclgd.cli import arguments as command_line
from iclgd.cli import hydra_setup, summary
from iclgd.cli.sweep_record import VARIABLE, SweepRecord
from iclgd.common import paths
from iclgd.config import Config, ConfigError, typed
from iclgd.runs.execute import Ending, Outcome, Terminated, end_children, execute, terminable
from iclgd.runs.files import read

log = logging.getLogger(__name__)

hydra_setup.register()  # here, because the first module of the project that a worker imports is the one of `job`

FAILED, REFUSED, INTERRUPTED, TERMINATED = 1, 2, 130, 143  # exit codes


@dataclasses.dataclass
class Command:
    """One command: its callback and its jobs write down what happens, `run` acts on it at the end."""

    code: int = 0  # the exit code
    message: str = ""  # why it was refused, or could not go on
    config: DictConfig | None = None  # of the single run, or of the sweep without what is swept over
    sweep: SweepRecord | None = None  # how the runs of a sweep ended
    single: list[Outcome] = dataclasses.field(default_factory=list)  # how the run of a single run ended
    session: Any = None  # what runs of this process leave to the next ones

    def outcomes(self) -> list[Outcome]:
        """How each run ended, wherever it was computed."""
        return self.single if self.sweep is None else self.sweep.outcomes()

    def refuse(self, message: str, code: int = REFUSED) -> int:
        """Say why the command does not go on; returns the exit code."""
        self.message, self.code = message, code
        sys.stderr.write(f"iclgd: {message}\n")
        return code


# Hydra makes `Watch` from its path in config.yaml and hands `job` nothing but a config, so both look here for the
# command of their process. A launcher's worker finds None, and the sweep's record by the environment variable VARIABLE.
CURRENT: ContextVar[Command | None] = ContextVar("command", default=None)


class NoObjective(RuntimeError):
    """A run has no value for a sweeper to optimise."""


class Watch(Callback):
    """Hydra calls it when a run or a sweep begins."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a run that cannot be before anything is made for it."""
        command = cast(Command, CURRENT.get())
        command.config = config
        try:
            typed(config)
        except ConfigError as error:
            sys.exit(command.refuse(str(error)))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the record of a sweep, and name it to every job in an override, which any launcher carries."""
        command = cast(Command, CURRENT.get())
        command.config = config
        if "SlurmLauncher" in str(config.hydra.launcher._target_) and shutil.which("srun") is None:
            why = (
                "hydra/launcher=submitit_slurm needs Slurm's srun, which is not on this machine: "
                "start the sweep on a login node, or try it here with hydra/launcher=submitit_local"
            )
            sys.exit(command.refuse(why))
        total = hydra_setup.count_points(config)
        if os.environ.get("WANDB_SWEEP_ID"):
            why = "an agent of W&B's sweeps makes one run at a time: leave -m and sweeps= out of its command"
            sys.exit(command.refuse(why))
        try:
            command.sweep = SweepRecord.begin(Path(config.hydra.sweep.dir), total)
        except (OSError, OmegaConfBaseException) as error:  # OmegaConf refuses sweep_name, which Hydra only warns of
            sys.exit(command.refuse(str(hydra_setup.explain(error))))
        with open_dict(config.hydra):
            record = command_line.quoted(str(command.sweep.folder))
            config.hydra.overrides.hydra.append(f"+hydra.job.env_set.{VARIABLE}={record}")
        log.info("sweep: composing %s runs", total or "its")


def job(composed: DictConfig) -> float:
    """One run of the command line, in whatever process a launcher chose.

    Returns:
        The mean of the score that runtime.objective names; NaN if none is named.

    Raises:
        NoObjective: an optimising sweeper waits for a value and there is none.
        KeyboardInterrupt: a signal stopped the command.
    """
    settings, command, sweep = cast(DictConfig, HydraConfig.get()), CURRENT.get(), SweepRecord.current()
    path, number = Path(settings.runtime.output_dir), int(OmegaConf.select(settings, "job.num") or 0)
    name = path.name if sweep is None else f"{path.name} ({number + 1} of {sweep.total() or '?'})"
    outcome = Outcome(Ending.interrupted, path)  # unless it comes to an end of its own
    if sweep is not None:
        sweep.write(number, outcome)  # a worker may be killed
    try:
        with terminable():
            run_config = of_worker(typed(composed), settings)
            outcome = execute(run_config, path, _experiment, _prepare, name, bar=command is not None)
            if outcome.is_finished:
                from iclgd import tracking  # here, as below, to start faster

                tracking.log_run(run_config, path, settings.overrides.task)
    except ConfigError as error:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        outcome = Outcome(Ending.refused, path, str(error))
    except OSError as error:  # not even the run's own folder can be written
        outcome = Outcome(Ending.failed, path, str(hydra_setup.explain(error)))
    except Terminated as stop:
        if command is not None:
            raise
        # A worker ends alone, as on a cluster: the others go on.
        outcome = Outcome(Ending.interrupted, path, str(stop))
    finally:
        if sweep is not None:
            sweep.write(number, outcome)
        elif command is not None:
            command.single.append(outcome)
    score, value = composed.runtime.objective, None
    if score is not None and outcome.is_finished:
        value = read(path / "scores.json").get(score, {}).get("mean")
    if value is None and "optuna" in str(settings.sweeper._target_):
        raise NoObjective(f"run {path.name} gave no value to optimise. {outcome.message}")
    return math.nan if value is None else value


def _experiment(*arguments: Any) -> Any:
    from iclgd import experiment  # imports PyTorch, which takes seconds

    return experiment.run(*arguments)


def _prepare(config: Config) -> Any:
    from iclgd.evidence.preparation import Session, prepare  # here, for it imports NumPy and pandas

    command = CURRENT.get() or Command()
    command.session = command.session or Session()
    return prepare(config, command.session)


def of_worker(config: Config, settings: DictConfig) -> Config:
    """The config with one thread and a GPU of its own, for each of joblib's workers."""
    runtime = config.runtime
    if not OmegaConf.select(settings, "launcher.n_jobs"):
        return config
    device, threads = runtime.device, runtime.threads or 1
    if device in ("auto", "cuda"):
        import torch  # takes seconds

        if torch.cuda.is_available():
            device = f"cuda:{settings.job.num % torch.cuda.device_count()}"
    return dataclasses.replace(config, runtime=dataclasses.replace(runtime, device=device, threads=threads))


def run(arguments: Sequence[str], quiet: bool = False) -> Command:
    """Run a command line; unless `quiet`, print what was done, and the tables."""
    command = Command()
    token = CURRENT.set(command)
    try:
        with tempfile.TemporaryDirectory(prefix="iclgd-rerun-") as folder:
            _run(command, arguments, Path(folder))
    finally:
        CURRENT.reset(token)
    outcomes = command.outcomes()
    unfinished = [outcome for outcome in outcomes if not outcome.is_finished]
    if command.code == 0 and unfinished:
        command.code = REFUSED if all(each.ending is Ending.refused for each in unfinished) else FAILED
    if outcomes and command.config is not None:
        summary.finish(command.config, outcomes, command.sweep is not None)
    if outcomes and not quiet:
        summary.show(outcomes, command.sweep.total() if command.sweep else None)
    return command


def _run(command: Command, arguments: Sequence[str], folder: Path) -> None:
    show_errors = os.environ.get("HYDRA_FULL_ERROR") == "1"
    main = hydra.main(version_base="1.3", config_path=str(paths.config_folder()), config_name="config")(job)
    hydra_setup.register()
    try:
        if arguments and arguments[0] == command_line.RERUN:
            arguments = command_line.rerun(arguments, folder)
        with _argv(command_line.for_hydra(arguments)), terminable():
            main()
    except KeyboardInterrupt as stop:
        command.code = TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
        end_children()
    except BrokenPipeError:
        raise
    except Exception as error:
        if show_errors:
            raise
        message = hydra_setup.explain(error)
        if message is not None:
            command.refuse(message, FAILED if hydra_setup.is_of_a_launcher(error) else REFUSED)
        else:
            command.refuse(f"{type(error).__name__}: {error} (HYDRA_FULL_ERROR=1 shows where)", FAILED)
    except SystemExit as end:
        command.code = end.code if isinstance(end.code, int) else FAILED


@contextmanager
def _argv(arguments: Sequence[str]) -> Iterator[None]:
    """Hydra reads sys.argv, and raises what it would else print only if an environment variable says so."""
    argv, variables = sys.argv, dict(os.environ)
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["iclgd", *arguments], "1"
    try:
        yield
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        os.environ.update(variables)
