"""What is drawn and digested before a run: its rows, once, and its inputs. Nothing here loads a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from iclgd.config import Config, ConfigError, MissingInput, as_dict
from iclgd.config.bounds import imported, parse_layers
from iclgd.config.enumerations import Sees, TrainingData
from iclgd.config.variants import STATIC, reference_config, variant
from iclgd.models.files import dtype_name, layers_of, model_inputs
from iclgd.runs.inputs import LOOKS, OWN_CODE, Inputs, digest, run_id
from iclgd.runs.provenance import computing_versions, measuring_code, user_code
from iclgd.tasks.draw import Drawn, draw, inputs_of, shared_pool
from iclgd.tasks.examples import Example, Pool

_LINE = re.compile(r", (?:line|row) \d+$")


@dataclass
class Session:
    """What the runs of one command share within a process."""

    pools: dict[str, Pool] = field(default_factory=dict)
    # what the last finetuning left, by its key: a sweep compares the same one with one truth after another
    learned: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """What a run shows, as text, and all that its numbers depend on."""

    inputs: Inputs
    drawn: Drawn
    reference: Drawn | None = None  # the planted truth's own rows; None where ICL itself is the reference
    compared: Drawn | None = None  # those of the variant that `metric.compare_with` names
    session: Session = field(default_factory=Session)


def prepare(config: Config, session: Session | None = None) -> Prepared:
    """Draw a run's rows, and digest all that its numbers depend on.

    Raises:
        MissingInput: data or a model that is not there.
        ConfigError: data or a model that cannot be used.
    """
    refuse_missing_layers(config)
    session = session or Session()
    pool = shared_pool(config, session.pools)
    drawn, reference, compared = draw(config, pool=pool), None, None
    others: dict[str, Config] = {}  # by part, the run with another variant that numbers come from
    rows = dict(_rows(config, drawn))
    if config.metric.compare_with is not None:
        other = variant(config, config.metric.compare_with)
        own_rows = other.finetune.data is not TrainingData.demonstrations
        compared = draw(other, pool=pool) if own_rows or other.finetune.sees is Sees.calibration else drawn
        rows |= dict(_rows(other, compared))
        others[f"variant {config.metric.compare_with}"] = other
    if "static_changes" in inputs_of(config):
        others[f"variant {STATIC}"] = variant(config, STATIC)
    planted = reference_config(config)
    if planted is not config:
        reference = draw(planted, planted.reference.draw, pool)
        rows |= dict(_rows(planted, reference, planted.reference.draw))
        others[f"reference {config.reference.name}"] = planted
    files = _model(config)
    wording = {name: getattr(drawn, name) for name in ("label_words", "description", "separator")}
    parts = {
        **_settings(config, others),
        **{name: digest([_content(example) for example in examples]) for name, examples in rows.items()},
        f"wording of {config.task.name}": digest(wording),
        **files,
        OWN_CODE: measuring_code(),
        **user_code(_functions(config, others)),
    }
    words = {
        **{name: f"the rows of {_origin(examples)} ({name})" for name, examples in rows.items()},
        **{name: f"the model's {name.removeprefix('model ')}" for name in files},
        **{name: f"conf/finetune/{other.finetune.name}.yaml" for name, other in others.items()},
        OWN_CODE: "this package's measuring code",
        "model commit": f"the commit of {config.model.name}",
    }
    return Prepared(Inputs(parts, words), drawn, reference, compared, session)


def refuse_missing_layers(config: Config) -> None:
    """Refuse layers that a model at hand does not have.

    Raises:
        ConfigError: naming the layers that it has.
    """
    layers, count = parse_layers(config.finetune.layers), layers_of(config.model)
    if layers is not None and count is not None and layers[-1] >= count:
        raise ConfigError(f"finetune.layers names layer {layers[-1]}, but the model's layers are 0 to {count - 1}")


def _settings(config: Config, others: Mapping[str, Config]) -> dict[str, str]:
    """Parts that follow from settings and versions."""
    scores = config.metric.scores.items()
    finetunes = {name: as_dict(other)["finetune"].items() for name, other in others.items()}
    return {
        "settings": run_id(as_dict(config)),
        "dtype": dtype_name(config.runtime.dtype, config.model),
        "device": _device(config),
        **{f"version of {name}": version for name, version in computing_versions().items()},
        # intervals follow from these, but a run is not named by them
        "limits and shares of scores": digest({name: [score.limits, score.share] for name, score in scores}),
        **{name: digest({k: v for k, v in items if k not in LOOKS["finetune"]}) for name, items in finetunes.items()},
    }


def _device(config: Config) -> str:
    """The kind of device that a run computes on."""
    if config.runtime.device != "auto":
        return config.runtime.device.partition(":")[0]
    import torch  # for start-up time: rows are refused without it

    return "cuda" if torch.cuda.is_available() else "cpu"


def _rows(config: Config, drawn: Drawn, sample: int = 0) -> Iterator[tuple[str, Sequence[Example]]]:
    task, finetune, further = config.task, config.finetune, f", sample {sample}" if sample else ""
    yield f"demonstrations of {task.name}/{task.train_split}{further}", drawn.demonstrations
    yield f"queries of {task.evaluate or f'{task.name}/{task.eval_split}'}", drawn.queries
    if drawn.training is not None:
        yield f"training rows of {finetune.other_task or task.name}, {finetune.data}{further}", drawn.training
    if drawn.calibration:
        yield f"calibration rows of {task.name}/{task.train_split}{further}", drawn.calibration


def _content(example: Example) -> dict[str, Any]:
    return {name: value for name, value in asdict(example).items() if name != "where"}


def _origin(rows: Sequence[Example]) -> str:
    """The file, or the hub's split, that rows come from."""
    origin = _LINE.sub("", rows[0].where)
    return "/".join(Path(origin).parts[-2:]) if Path(origin).is_file() else origin


def _model(config: Config) -> dict[str, str]:
    """Digests of the model's files, or its commit on the hub."""
    try:
        return {f"model {name}": value for name, value in model_inputs(config.model).items()}
    except OSError as error:
        raise MissingInput(f"model.name={config.model.name} cannot be read: {error}") from error


def _functions(config: Config, others: Mapping[str, Config]) -> list[str]:
    """The dotted paths of functions: scores, mechanisms and objectives.

    Raises:
        ConfigError: a mechanism or an objective cannot be imported.
    """
    settings: list[Any] = [score.function for score in config.metric.scores.values()]
    for finetune in (config.finetune, *(other.finetune for other in others.values())):
        for key in ("mechanism", "objective", "norm_of"):
            if "." in (path := getattr(finetune, key) or ""):
                imported(path, f"finetune.{key}")
            settings.append(path)
    return sorted({value for value in settings if isinstance(value, str) and "." in value})
