"""Which demonstrations and which queries does a run see, and in which order?"""

from __future__ import annotations

import logging
from collections.abc import Set
from dataclasses import dataclass, replace

from omegaconf import OmegaConf

from iclgd import paths, seeding
from iclgd.choices import Procedure, TrainingData
from iclgd.config import Config, ConfigError, TaskConfig
from iclgd.tasks.sources import DataError, Split, read_split
from iclgd.tasks.wording import Example, check, label_words, tail_of, template_of, worded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawn:
    """All that a run shows, as text.

    Attributes:
        label_words: by label id; empty for multiple choice, where each example brings its options.
        tail: what stands right before every answer: the end of the template.
        training: what finetuning sees where that is not the demonstrations (controls).
        training_tail: the tail of its template.
        calibration: rows of the train split, neither demonstrations nor queries, if something is fitted to them.
    """

    demonstrations: tuple[Example, ...]
    queries: tuple[Example, ...]
    label_words: tuple[str, ...]
    tail: str
    training: tuple[Example, ...] | None = None
    training_tail: str = ""
    calibration: tuple[Example, ...] = ()


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
    task = config.task
    train = _checked(task, task.train_split, config.paths.data_dir)
    same = task.eval_split == task.train_split
    evaluation = train if same else _checked(task, task.eval_split, config.paths.data_dir)
    chosen = _chosen(task, train, config)
    taken = set(chosen) if same else set()
    order = [index for index in seeding.shuffled(len(evaluation.rows), task.query_seed) if index not in taken]
    if not order:
        raise DataError(f"{evaluation.origin} has no row left for a query: lower task.shots")
    asked = set(order[: task.queries]) if same else set()
    chosen = _chosen(task, train, config, sample, asked)
    demonstrations = tuple(worded(train, index, task) for index in chosen)
    training, training_task = _training(demonstrations, config, sample)
    calibration = _spare(train, config, {*chosen, *asked}) if _is_calibrated(config) else []
    return Drawn(
        demonstrations=demonstrations,
        queries=tuple(worded(evaluation, index, task) for index in order[: task.queries]),
        label_words=label_words(task),
        tail=tail_of(template_of(task)),
        training=training,
        training_tail="" if training is None else tail_of(template_of(training_task)),
        calibration=tuple(worded(train, index, task) for index in calibration),
    )


def _is_calibrated(config: Config) -> bool:
    paths_named = {path for score in config.metric.scores.values() for path in score.inputs.values()}
    return config.finetune.procedure is Procedure.static_patch or "static_changes" in paths_named


def _spare(train: Split, config: Config, taken: set[int]) -> list[int]:
    """Rows for calibration, from the end of the order whose beginning is drawn for demonstrations."""
    spare = [index for index in reversed(seeding.shuffled(len(train.rows), config.seed)) if index not in taken]
    if not spare:
        raise ConfigError(
            f"finetune=static_patch is fitted to rows of {train.origin} that are neither demonstrations nor queries, "
            "and none is left: lower task.shots or task.queries"
        )
    return spare[: config.finetune.calibration]


def _checked(task: TaskConfig, split: str, data_dir: str | None) -> Split:
    rows = read_split(task, split, data_dir)
    check(rows, task)
    return rows


def _chosen(
    task: TaskConfig, train: Split, config: Config, sample: int = 0, asked: Set[int] = frozenset()
) -> list[int]:
    shots = config.task.shots
    if shots > len(train.rows):
        raise ConfigError(f"task.shots={shots} is more than the {len(train.rows)} rows of {train.origin}: lower it")
    order = seeding.shuffled(len(train.rows), config.seed)
    rest = [index for index in order[shots:] if index not in asked]
    drawn = rest[(sample - 1) * shots : sample * shots] if sample else order[:shots]
    if len(drawn) < shots:
        raise ConfigError(
            f"reference.draw={sample} needs {shots} rows of {train.origin} that nothing else uses, and it has "
            f"{len(drawn)}: lower it, task.shots or task.queries"
        )
    return [drawn[index] for index in seeding.permuted(shots, config.seed, config.task.permutation)]


def _training(
    demonstrations: tuple[Example, ...], config: Config, sample: int
) -> tuple[tuple[Example, ...] | None, TaskConfig]:
    if config.finetune.data is TrainingData.label_shuffled:
        return label_shuffled(demonstrations, config.seed), config.task
    if config.finetune.data is TrainingData.other_task:
        other = _other_task(config.finetune.other_task)
        if other.name == config.task.name:
            raise ConfigError(
                f"finetune.other_task={config.finetune.other_task} is the task that is measured: name another one"
            )
        train = _checked(other, other.train_split, config.paths.data_dir)
        return tuple(worded(train, index, other) for index in _chosen(other, train, config, sample)), other
    return None, config.task


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


def _other_task(name: str | None) -> TaskConfig:
    folder = paths.config_folder() / "task"
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in known:
        raise ConfigError(
            f"finetune.data=other_task needs the name of a task in finetune.other_task, got {name}: "
            f"one of {', '.join(known)}"
        )
    merged = OmegaConf.merge(OmegaConf.structured(TaskConfig), OmegaConf.load(folder / f"{name}.yaml"))
    task = OmegaConf.to_object(merged)
    assert isinstance(task, TaskConfig)
    return task
