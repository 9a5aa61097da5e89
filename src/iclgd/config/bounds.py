"""Refuses impossible settings by name, before anything is loaded, and imports dotted paths."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator
from typing import Any

from iclgd.config.enumerations import Mechanism, ModelSource, Objective, Placement, TaskSource, Trainable, Weights

_LARGEST_FLOAT32 = 3.4028235e38
_LARGEST_SEED = 2**32 - 1  # NumPy's legacy generator, which draws the papers' orders, takes no larger one
_LARGEST_LAYER = 100_000
_BOUNDS: dict[str, tuple[float, float]] = {
    "seed": (0, _LARGEST_SEED),
    "model.weights_seed": (0, _LARGEST_SEED),
    "task.query_seed": (0, _LARGEST_SEED),
    "task.shots": (1, 1_000_000),
    "task.queries": (1, 1_000_000_000),
    "task.choices": (2, 100),
    "task.labels_noise": (0, 1),
    "task.permutation": (0, 100_000),
    "finetune.epochs": (0, 1_000_000),
    "finetune.rank": (1, 1_000_000),
    "finetune.calibration": (1, 1_000_000),
    "finetune.ridge": (1e-30, 1e30),
    "reference.permutation": (0, 100_000),
    "reference.draw": (0, _LARGEST_SEED),
    "metric.orders": (1, 10_000),
    "runtime.threads": (1, 10_000),
    "runtime.batch_tokens": (1, 1_000_000_000),
    "runtime.cache_gb": (0, 1_000_000),
}
MAPPINGS = {  # keys that take any mapping, with an example
    "model.chat_arguments": "{enable_thinking: false}",
    "model.anatomy": "{added: self_attn.o_proj}",
    "task.remap": "{Negative: foo, Positive: bar}",
}


class ConfigError(ValueError):
    """A setting that cannot be run; the message names the key, what it got, and the remedy."""


class MissingInput(ConfigError):
    """Data or a model that is not there, or not any more."""


def refuse_impossible(config: Any) -> None:
    """Refuse settings that no machine could run, and choices that exclude each other."""
    for mistakes in (_out_of_bounds(config), _in_scores(config), _in_task(config.task), _in_finetune(config.finetune)):
        for mistake in mistakes:
            raise ConfigError(mistake)
    is_read = config.model.source is not ModelSource.memory and config.model.weights is Weights.pretrained
    if config.runtime.placement is not Placement.single and not is_read:
        raise ConfigError(
            f"runtime.placement={config.runtime.placement} is for models on disk with model.weights=pretrained, which "
            "are dealt out as they are read: save the model and name its folder"
        )
    parse_layers(config.finetune.layers)


def _value(config: Any, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), config)


def _out_of_bounds(config: Any) -> Iterator[str]:
    for key, (least, most) in _BOUNDS.items():
        value = _value(config, key)
        if value is not None and not least <= value <= most:
            yield f"{key}={value} is out of bounds: give {least:,} to {most:,}"
    for key, example in MAPPINGS.items():
        value = _value(config, key)
        if value is not None and not isinstance(value, dict):
            yield f"{key}={value!r} is not a mapping: write {example}"
    rates = {key: _value(config, key) for key in ("finetune.lr", "reference.lr", "reference.lr_factor")}
    rates |= {f"task.rates.{name}": rate for name, rate in config.task.rates.items()}
    for key, rate in rates.items():
        if rate is not None and not 0 < rate <= _LARGEST_FLOAT32:
            yield f"{key}={rate} cannot train: give a positive rate that fits float32"


def _in_scores(config: Any) -> Iterator[str]:
    scores, objective = config.metric.scores, config.runtime.objective
    if not scores:
        yield "metric=[] measures nothing: name files of conf/metric, such as metric=[sim_aou]"
    for name, score in scores.items():
        limits = score.limits
        if limits is not None and not (len(limits) == 2 and limits[0] < limits[1]):
            yield f"metric.scores.{name}.limits={limits} is not a range: give [LEAST, LARGEST]"
    if objective is not None and objective not in scores:
        yield f"runtime.objective={objective} is not measured: name one of {sorted(scores)}"


def _in_task(task: Any) -> Iterator[str]:
    if task.remap is not None and task.evaluate is not None:
        yield (
            "task.remap is of one task's label words, and task.evaluate takes the queries from another task: leave out "
            "one of them"
        )
    if task.source is TaskSource.lm_eval:
        if not task.lm_eval:
            yield "task=lm_eval needs task.lm_eval=NAME, a task of lm-evaluation-harness, or its yaml"
        return
    if not 0 <= task.template < len(task.templates):
        yield f"task.template={task.template} does not exist: {task.name} has templates 0 to {len(task.templates) - 1}"
    kinds = [kind for kind in (task.labels, task.options or task.options_column, task.answer_column) if kind]
    if len(kinds) != 1:
        yield (
            f"task {task.name} needs one of task.labels (words by label id), task.options or task.options_column "
            f"(multiple choice) and task.answer_column (open answers); it has {len(kinds) or 'none'}"
        )


def _in_finetune(finetune: Any) -> Iterator[str]:
    for key, choices in (("mechanism", Mechanism), ("objective", Objective), ("norm_of", Objective)):
        name = getattr(finetune, key)
        if name is not None and name not in list(choices) and "." not in name:
            yield f"finetune.{key}={name} is not one of {', '.join(choices)}; one of yours is named module.function"
    trainable = finetune.trainable
    try:
        patterns = [re.compile(pattern) for pattern in (trainable if isinstance(trainable, list) else [trainable])]
    except (re.error, TypeError) as error:
        yield (
            f"finetune.trainable={trainable!r} cannot be read ({error}): write one of {', '.join(Trainable)}, a "
            "regular expression for names of parameters, or a list of these"
        )
    else:
        if not patterns:
            yield "finetune.trainable=[] trains nothing: name something, or use finetune=none"


def parse_layers(spec: Any) -> tuple[int, ...] | None:
    """The layers that `finetune.layers` names, sorted; None for `all`.

    Args:
        spec: `all`, one number, a list of numbers, or ranges such as `0-11` or `0-3,8`.

    Raises:
        ConfigError: the text cannot be read as layers.
    """
    if spec == "all":
        return None
    remedy = "write finetune.layers=all, a list such as [0,1,2] or a range such as 0-11"
    layers: set[int] = set()
    for part in spec if isinstance(spec, list | tuple) else str(spec).split(","):
        first, dash, last = str(part).strip().partition("-")
        last = last if dash else first
        numbers = all(number.isdecimal() and len(number) < 10 for number in (first, last))
        if not numbers or not int(first) <= int(last) <= _LARGEST_LAYER:
            raise ConfigError(f"finetune.layers={spec!r} cannot be read: {remedy}")
        layers.update(range(int(first), int(last) + 1))
    if not layers:
        raise ConfigError(f"finetune.layers={spec!r} names no layer: {remedy}")
    return tuple(sorted(layers))


def imported(path: str, key: str) -> Any:
    """The function at `package.module.NAME`.

    Raises:
        ConfigError: it cannot be imported; the message says where it was looked for.
    """
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ConfigError(
            f"{key}={path} cannot be imported ({error}): give module.NAME of an installed package or of a file in the "
            "current folder"
        ) from error
    if not callable(function):
        raise ConfigError(f"{key}={path} is a {type(function).__name__}: name a function")
    return function
