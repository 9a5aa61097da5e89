"""iclgd from Python: runs and sweeps as from the command line, with typed results and pandas frames in return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.cli.arguments import quoted
from iclgd.cli.command import REFUSED, Command
from iclgd.cli.command import run as run_command
from iclgd.config import ConfigError
from iclgd.results.averages import Layers
from iclgd.results.frame import Results
from iclgd.results.reading import FinishedRun, read_run, read_runs
from iclgd.runs.execute import Ending

if TYPE_CHECKING:
    import torch

    from iclgd.report.chart import Figure


class RunFailed(RuntimeError):
    """A run that failed; the message says why and in which folder its traceback is."""


def run(
    *overrides: str, model: str | torch.nn.Module | None = None, tokenizer: Any = None, **settings: Any
) -> FinishedRun:
    """Compute one run, or read it if it is done: `iclgd.run("task=reviews", seed=1, finetune__lr=1e-3)`.

    A model that you have loaded is measured as a copy, and stays as it is: `iclgd.run(model=MODEL, tokenizer=TOKENIZER,
    task="reviews")`. The run belongs to the content of its weights, config and tokenizer: the same again is not
    computed twice, and changed weights make another run. `model__name="step 100"` is its name in tables.

    Args:
        *overrides: as on the command line.
        model: a file of conf/model, or a causal language model of transformers in memory, also in a PeftModel, whose
            active adapters count as merged.
        tokenizer: of the model in memory.
        **settings: as on the command line, by name, with two underscores for a dot.

    Raises:
        ConfigError: settings or a model that cannot be run.
        RunFailed: the run failed.
    """
    chosen = (f"{key.replace('__', '.')}={_value(value)}" for key, value in settings.items())
    command = _run([*overrides, *chosen], model, tokenizer)
    outcome = command.outcomes()[0]
    if outcome.ending is Ending.refused:
        raise ConfigError(outcome.message)
    if command.code:
        raise RunFailed(f"{outcome.message}; see {outcome.folder}/run.log")
    return read_run(outcome.folder)


def sweep(
    *overrides: str,
    model: str | Sequence[str] | torch.nn.Module | None = None,
    tokenizer: Any = None,
    **settings: Any,
) -> Results:
    """Make every run of a sweep: `iclgd.sweep(finetune=["gd", "lcgd"], seed=[0, 1])` or `iclgd.sweep("sweeps=shots")`.

    Args:
        *overrides: as on the command line.
        model: files of conf/model, or one model in memory, as for `run`; it is swept with hydra/launcher=basic.
        tokenizer: of the model in memory.
        **settings: as for `run`; a list is swept over.

    Returns:
        The finished runs; `left_out` has those that failed or were refused, with the reason.

    Raises:
        ConfigError: settings or a model that cannot be run.
    """
    swept = (f"{key.replace('__', '.')}={_several(value)}" for key, value in settings.items())
    outcomes = _run(["--multirun", *overrides, *swept], model, tokenizer).outcomes()
    results = load(*(outcome.folder for outcome in outcomes if outcome.folder.is_dir()))
    refused = tuple((o.folder, o.message) for o in outcomes if not o.folder.is_dir())
    return Results(results.runs, results.left_out + refused)


def load(*folders: str | Path, layers: str = "common") -> Results:
    """The finished runs in or below folders.

    Args:
        *folders: of runs or sweeps.
        layers: what means over layers are taken over: the layers in which every compared setting has a value (common),
            those that each run trained (trained), or all that have a value (all).

    Raises:
        ReportError: there is no such folder.
    """
    return Results(*read_runs(map(Path, folders)), Layers(layers))


def figures(results: Results | FinishedRun) -> Mapping[str, Figure]:
    """Every figure by its name: `iclgd.figures(results)["layers/sim_aou"].save(Path("sim_aou.pdf"))`."""
    from iclgd.report.figures import figures as figures_of  # here, for Altair takes a second

    results = Results((results,)) if isinstance(results, FinishedRun) else results
    return {figure.name: figure for figure in figures_of(results)}


def _run(arguments: list[str], model: Any, tokenizer: Any) -> Command:
    with _model_overrides(model, tokenizer) as model_settings:
        command = run_command([*model_settings, *arguments], quiet=True)
    if command.code in (130, 143):
        raise KeyboardInterrupt
    if command.code and not command.outcomes():
        raise (ConfigError if command.code == REFUSED else RunFailed)(command.message)
    return command


@contextmanager
def _model_overrides(model: Any, tokenizer: Any) -> Iterator[list[str]]:
    """The overrides that mean a model, named or in memory; they come first, so that others can change what they say."""
    if model is None or isinstance(model, str | list | tuple):
        if tokenizer is not None:
            raise ConfigError("tokenizer= goes with a model in memory: a model that is named brings its own")
        yield [] if model is None else [f"model={_several(model)}"]
        return
    from iclgd.models.in_memory import holding

    with holding(model, tokenizer) as settings:
        yield ["model=hf", *(f"model.{key}={_value(value)}" for key, value in settings.items())]


def _several(value: Any) -> str:
    """A value, or several that are swept over, as Hydra's command line reads them."""
    return ",".join(map(_value, value)) if isinstance(value, list | tuple) else _value(value)


def _value(value: Any) -> str:
    """A value as Hydra's command line reads it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, str | Path) and not str(value).replace("_", "").isalnum():
        return quoted(str(value))
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
