"""What is drawn and digested before a run: its rows, once, and its inputs. Nothing here loads a model or PyTorch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from iclgd.config import Config, ConfigError
from iclgd.config.bounds import parse_layers
from iclgd.config.enumerations import Sees, TrainingData
from iclgd.config.variants import STATIC, reference_config, variant
from iclgd.models.files import layers_of, model_inputs
from iclgd.runs.inputs import Inputs, digest, list_inputs
from iclgd.tasks import Drawn, draw
from iclgd.tasks.draw import inputs_of, read_pool
from iclgd.tasks.examples import Example

_PLACE = re.compile(r", (?:line|row) \d+$")


@dataclass(frozen=True)
class Prepared:
    """What a run shows, as text, and all that its numbers depend on."""

    inputs: Inputs
    drawn: Drawn
    reference: Drawn | None = None  # the planted truth's own rows; None where ICL itself is the reference
    compared: Drawn | None = None  # those of the variant that `metric.compare_with` names


def prepare(config: Config) -> Prepared:
    """Draw a run's rows, and digest all that it depends on.

    Raises:
        ConfigError: data or a model that is not there or cannot be used.
        OSError: a file cannot be read, or the hub cannot be reached.
    """
    refuse_missing_layers(config)
    pool = read_pool(config)
    drawn, others = draw(config, pool=pool), dict[str, Config]()
    compared = reference = None
    rows = dict(_rows(config, drawn))
    if config.metric.compare_with is not None:
        other = variant(config, config.metric.compare_with)
        others[f"variant {config.metric.compare_with}"] = other
        own_rows = other.finetune.data is not TrainingData.demonstrations
        compared = draw(other, pool=pool) if own_rows or other.finetune.sees is Sees.calibration else drawn
        rows |= dict(_rows(other, compared))
    if "static_changes" in inputs_of(config):
        others[f"variant {STATIC}"] = variant(config, STATIC)
    planted = reference_config(config)
    if planted is not config:
        others[f"reference {config.reference.name}"] = planted
        reference = draw(planted, planted.reference.draw, pool)
        rows |= dict(_rows(planted, reference, f", sample {planted.reference.draw}" if planted.reference.draw else ""))
    model = {f"model {name}": value for name, value in model_inputs(config.model).items()}
    wording = {name: getattr(drawn, name) for name in ("label_words", "description", "separator")}
    handed = {
        **{name: digest([_content(example) for example in examples]) for name, examples in rows.items()},
        f"wording of {config.task.name}": digest(wording),
        **model,
    }
    words = {name: f"the rows of {_short(_origin(examples))} ({name})" for name, examples in rows.items()}
    words |= {name: f"the model's {name.removeprefix('model ')}" for name in model}
    words["model commit"] = f"the commit of {config.model.name}"
    inputs = list_inputs(config, _dtype(config), _device(config), others, handed, words)
    return Prepared(inputs, drawn, reference, compared)


def refuse_missing_layers(config: Config) -> None:
    """Refuse layers that a model at hand does not have.

    Raises:
        ConfigError: naming the layers that it has.
    """
    layers, count = parse_layers(config.finetune.layers), layers_of(config.model)
    if layers is not None and count is not None and layers[-1] >= count:
        raise ConfigError(f"finetune.layers names layer {layers[-1]}, but the model's layers are 0 to {count - 1}")


def _rows(config: Config, drawn: Drawn, further: str = "") -> Iterator[tuple[str, Sequence[Example]]]:
    task, finetune = config.task, config.finetune
    yield f"demonstrations of {task.name}/{task.train_split}{further}", drawn.demonstrations
    yield f"queries of {task.name}/{task.eval_split}", drawn.queries
    if drawn.training is not None:
        yield f"training rows of {finetune.other_task or task.name}, {finetune.data}{further}", drawn.training
    if drawn.calibration:
        yield f"calibration rows of {task.name}/{task.train_split}{further}", drawn.calibration


def _content(example: Example) -> dict[str, object]:
    return {name: value for name, value in asdict(example).items() if name != "where"}


def _origin(rows: Sequence[Example]) -> str:
    """The file, or the hub's split, that rows come from."""
    return _PLACE.sub("", rows[0].where)


def _short(origin: str) -> str:
    return "/".join(Path(origin).parts[-2:]) if Path(origin).is_file() else origin


def _device(config: Config) -> str:
    """The kind of device that a run computes on."""
    if config.runtime.device != "auto":
        return config.runtime.device.partition(":")[0]
    import torch  # for start-up time: a run that names its device is skipped without it

    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(config: Config) -> str:
    """The precision that a run computes in."""
    if config.runtime.dtype not in ("auto", "model"):
        return config.runtime.dtype
    from iclgd.models.loading import resolve_dtype  # for start-up time

    return str(resolve_dtype(config.runtime.dtype, config.model)).removeprefix("torch.")
