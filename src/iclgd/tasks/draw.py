"""The demonstrations and queries of a run, and their order."""

from __future__ import annotations

import logging
from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import OmegaConf

from iclgd.common import paths, seeding
from iclgd.config import Config, ConfigError, FinetuneConfig, TaskConfig
from iclgd.config.enumerations import Procedure, TrainingData
from iclgd.tasks.sources import DataError
from iclgd.tasks.wording import Example, Examples, worded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawn:
    """All that a run shows, as text."""

    demonstrations: tuple[Example, ...]
    queries: tuple[Example, ...]
    # by label id; empty for multiple choice, where each example brings its options
    label_words: tuple[str, ...]
    # what finetuning sees where that is not the demonstrations (controls)
    training: tuple[Example, ...] | None = None
    # rows of the train split, neither demonstrations nor queries, if something is fitted to them
    calibration: tuple[Example, ...] = ()
    description: str = ""  # what stands once before everything else
    separator: str | None = None  # what stands between demonstrations; None where the model says so


def draw(config: Config, sample: int = 0) -> Drawn:
    """Draw demonstrations and queries as the papers' code did.

    Demonstrations are the first `task.shots` rows of the train split shuffled with `seed`, then reordered by
    `task.permutation`. Queries are the first `task.queries` rows of the evaluation split shuffled with
    `task.query_seed`, and never a demonstration where both splits are the same. Every row of both splits is checked.

    Args:
        config: the run.
        sample: 0, or which further sample of demonstrations to take; none shares a row with another or with queries.

    Raises:
        ConfigError: more shots than rows, or a control that cannot be had.
        DataError: rows that are not there or cannot be used, by file and line.
    """
    pool = worded(config.task, config.paths.data_dir)
    chosen = _chosen(pool.train, config)
    taken = set(chosen) if pool.same else set()
    shuffled = seeding.shuffled(len(pool.evaluation), config.task.query_seed)
    queries = [index for index in shuffled if index not in taken][: config.task.queries]
    if not queries:
        raise DataError(f"{pool.evaluation.origin} has no row left for a query: lower task.shots")
    asked = set(queries) if pool.same else set()
    chosen = _chosen(pool.train, config, sample, asked)
    demonstrations = tuple(pool.train[index] for index in chosen)
    calibrated = config.finetune.procedure is Procedure.static_patch or "static_changes" in inputs_of(config)
    calibration = _spare(pool.train, config, {*chosen, *asked}) if calibrated else []
    return Drawn(
        demonstrations=demonstrations,
        queries=tuple(pool.evaluation[index] for index in queries),
        label_words=pool.label_words,
        training=_training(demonstrations, config, sample),
        calibration=tuple(pool.train[index] for index in calibration),
        description=pool.description,
        separator=pool.separator,
    )


def inputs_of(config: Config) -> set[str]:
    """What the run's scores name as inputs."""
    return {path for score in config.metric.scores.values() for path in score.inputs.values()}


def _spare(train: Examples, config: Config, taken: Set[int]) -> list[int]:
    """Rows for calibration, from the end of the order whose beginning is drawn for demonstrations."""
    spare = [index for index in reversed(seeding.shuffled(len(train), config.seed)) if index not in taken]
    if not spare:
        raise ConfigError(
            f"finetune=static_patch is fitted to rows of {train.origin} that are neither demonstrations nor queries, "
            "and none is left: lower task.shots or task.queries"
        )
    return spare[: config.finetune.calibration]


def _chosen(train: Examples, config: Config, sample: int = 0, asked: Set[int] = frozenset()) -> list[int]:
    shots = config.task.shots
    if shots > len(train):
        raise ConfigError(f"task.shots={shots} is more than the {len(train)} rows of {train.origin}: lower it")
    order = seeding.shuffled(len(train), config.seed)
    rest = [index for index in order[shots:] if index not in asked]
    drawn = rest[(sample - 1) * shots : sample * shots] if sample else order[:shots]
    if len(drawn) < shots:
        raise ConfigError(
            f"reference.draw={sample} needs {shots} rows of {train.origin} that nothing else uses, and it has "
            f"{len(drawn)}: lower it, task.shots or task.queries"
        )
    return [drawn[index] for index in seeding.permuted(shots, config.seed, config.task.permutation)]


def _training(demonstrations: tuple[Example, ...], config: Config, sample: int) -> tuple[Example, ...] | None:
    if config.finetune.data is TrainingData.label_shuffled:
        return label_shuffled(demonstrations, config.seed)
    if config.finetune.data is TrainingData.other_task:
        train = worded(_other_task(config.finetune, config.task), config.paths.data_dir).train
        return tuple(train[index] for index in _chosen(train, config, sample))
    return None


def label_shuffled(demonstrations: tuple[Example, ...], seed: int) -> tuple[Example, ...]:
    """The same texts in the same order with labels that are wrong wherever they can be.

    Task labels are handed around among the demonstrations, so that each occurs as often as before; no demonstration
    keeps its own unless one label is more than half of them. Multiple choice takes another of the example's options.
    """
    stream = seeding.numpy_stream("label_shuffled", seed)
    labels = [example.label for example in demonstrations]
    if len({example.options for example in demonstrations}) > 1:
        wrong = [
            (example.label + 1 + int(stream.integers(len(example.options) - 1))) % len(example.options)
            for example in demonstrations
        ]
    else:  # neighbours of one label, turned by the size of the largest such group, meet another label
        groups = stream.permutation(sorted(set(labels))).tolist()
        order = sorted(stream.permutation(len(labels)).tolist(), key=lambda index: groups.index(labels[index]))
        turn = max(labels.count(label) for label in groups)
        wrong = list(labels)
        for place, index in enumerate(order):
            wrong[index] = labels[order[(place + turn) % len(order)]]
    kept = sum(new == old for new, old in zip(wrong, labels, strict=True))
    if kept:
        log.warning("finetune.data=label_shuffled leaves %d of %d demonstrations their label", kept, len(labels))
    return tuple(replace(example, label=label) for example, label in zip(demonstrations, wrong, strict=True))


def _other_task(finetune: FinetuneConfig, measured: TaskConfig) -> TaskConfig:
    named, known = str(finetune.other_task), paths.config_files("task")
    own = Path(named).expanduser()
    file = own if own.suffix == ".yaml" and own.is_file() else known.get(named)
    if file is None:
        raise ConfigError(
            f"finetune.data=other_task needs the name of a task in finetune.other_task, got {named}: "
            f"one of {', '.join(known)}, or the path of a task's yaml"
        )
    task = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TaskConfig), OmegaConf.load(file)))
    assert isinstance(task, TaskConfig)
    if task.name == measured.name:
        raise ConfigError(f"finetune.other_task={named} is the task that is measured: name another one")
    return task
