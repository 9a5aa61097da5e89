"""What no machine could run is refused by name before anything is loaded."""

from __future__ import annotations

import re
from typing import Any

from iclgd.config import enumerations

_LARGEST_FLOAT32 = 3.4028235e38
_LARGEST_SEED = 2**32 - 1  # NumPy's legacy generator, which draws the papers' orders, takes no larger one
_LARGEST_LAYER = 100_000
_BOUNDS: dict[str, tuple[float, float]] = {  # what no machine could do, or no generator takes, is not begun
    "seed": (0, _LARGEST_SEED),
    "model.weights_seed": (0, _LARGEST_SEED),
    "task.query_seed": (0, _LARGEST_SEED),
    "task.shots": (1, 1_000_000),
    "task.queries": (1, 1_000_000_000),
    "task.permutation": (0, 100_000),
    "finetune.epochs": (1, 1_000_000),
    "finetune.rank": (1, 1_000_000),
    "finetune.calibration": (1, 1_000_000),
    "finetune.noise": (0, 1e30),
    "reference.permutation": (0, 100_000),
    "reference.draw": (0, _LARGEST_SEED),
    "reference.noise": (0, 1e30),
    "metric.every": (0, 1_000_000_000),
    "metric.orders": (1, 10_000),
    "runtime.jitter": (0, 10_000),
    "runtime.threads": (1, 10_000),
    "runtime.batch_tokens": (1, 1_000_000_000),
    "runtime.cache_gb": (0, 1_000_000),
}


class ConfigError(ValueError):
    """A setting that cannot be run; the message names the key, what it got, and the remedy."""


def refuse_impossible(config: Any) -> None:
    """Refuse settings that no machine could run."""
    for key, (least, most) in _BOUNDS.items():
        value = getattr(getattr(config, key.rpartition(".")[0], config), key.rpartition(".")[2])
        if value is not None and not least <= value <= most:
            raise ConfigError(f"{key}={value} is out of bounds: give {least:,} to {most:,}")
    for name, rate in config.task.rates.items():
        _check_rate(f"task.rates.{name}", rate)
    for name, score in config.metric.scores.items():
        ends = score.limits
        if ends is not None and not (len(ends) == 2 and ends[0] < ends[1]):
            raise ConfigError(f"metric.scores.{name}.limits={ends} is no range: give [LEAST, LARGEST]")
        if not 2 <= score.digits <= 9:
            raise ConfigError(f"metric.scores.{name}.digits={score.digits} is out of bounds: give 2 to 9")
    _check_rate("finetune.lr", config.finetune.lr)
    if config.finetune.noise and config.finetune.procedure is not enumerations.Procedure.train:
        raise ConfigError(
            f"finetune.noise is for variants that train, and {config.finetune.name} does not: set it to 0"
        )
    for key in ("lr", "lr_factor"):
        value = getattr(config.reference, key)
        if value is not None:
            _check_rate(f"reference.{key}", value)
    if not config.finetune.ridge > 0:
        raise ConfigError(f"finetune.ridge={config.finetune.ridge} leaves the fit open: give more than 0")
    if not config.metric.scores:
        raise ConfigError("metric=[] measures nothing: name files of conf/metric, such as metric=[sim_aou]")
    objective, scores = config.runtime.objective, sorted(config.metric.scores)
    if objective is not None and objective not in scores:
        raise ConfigError(f"runtime.objective={objective} is not measured: name one of {scores}")
    in_memory, placement = config.model.source is enumerations.ModelSource.memory, config.runtime.placement
    if in_memory and placement is not enumerations.Placement.single:
        raise ConfigError(f"runtime.placement={placement} is for models on disk: save the model and name its folder")
    parse_layers(config.finetune.layers)
    _check_trainable(config.finetune.trainable)
    _check_optimizer(config.finetune.optimizer)
    _check_wording(config.task)


def _check_rate(key: str, value: float) -> None:
    if not 0 < value <= _LARGEST_FLOAT32:
        raise ConfigError(f"{key}={value} cannot train: give a positive rate that fits float32")


def _check_wording(task: Any) -> None:
    if task.source is enumerations.TaskSource.lm_eval:
        if not task.lm_eval:
            raise ConfigError("task=lm_eval needs task.lm_eval=NAME, a task of lm-evaluation-harness, or its yaml")
        return
    if not 0 <= task.template < len(task.templates):
        raise ConfigError(
            f"task.template={task.template} does not exist: {task.name} has templates 0 to {len(task.templates) - 1}"
        )
    labels, chosen = task.labels, task.options or task.options_column
    if bool(labels) == bool(chosen):
        raise ConfigError(
            f"task {task.name} needs either task.labels (words by label id) or, for multiple choice, "
            "task.options or task.options_column; it has " + ("both" if labels else "neither")
        )
    repeated = sorted({word for word in labels if labels.count(word) > 1})
    if repeated:
        raise ConfigError(f"task.labels names {', '.join(repeated)} twice: every label needs a word of its own")


def _check_trainable(chosen: Any) -> None:
    for choice in chosen if isinstance(chosen, list) else [chosen]:
        try:
            re.compile(choice)
        except (re.error, TypeError) as error:
            raise ConfigError(
                f"finetune.trainable={chosen!r} cannot be read ({error}): write one of "
                f"{', '.join(enumerations.Trainable)}, a regular expression for names of parameters, or a list of these"
            ) from error
    if chosen == []:
        raise ConfigError("finetune.trainable=[] trains nothing: name something, or use finetune=none")


def _check_optimizer(spec: Any) -> None:
    if spec in ("sgd", "adam"):
        return
    if not isinstance(spec, dict) or not isinstance(spec.get("_target_"), str):
        raise ConfigError(
            f"finetune.optimizer={spec!r} is no optimiser: write sgd, adam, or a class with its arguments, such as "
            "{_target_: torch.optim.AdamW, weight_decay: 0.1}"
        )
    if {"params", "lr"} & spec.keys():
        raise ConfigError("finetune.optimizer takes neither params nor lr: the rate is finetune.lr")


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
    parts = list(spec) if isinstance(spec, list | tuple) else str(spec).split(",")
    chosen: set[int] = set()
    for part in parts:
        first, dash, last = str(part).strip().partition("-")
        last = last if dash else first
        plain = all(number.isdecimal() and len(number) < 10 for number in (first, last))
        if not plain or not int(first) <= int(last) <= _LARGEST_LAYER:
            raise ConfigError(f"finetune.layers={spec!r} cannot be read: {remedy}")
        chosen.update(range(int(first), int(last) + 1))
    if not chosen:
        raise ConfigError(f"finetune.layers={spec!r} names no layer: {remedy}")
    return tuple(sorted(chosen))
