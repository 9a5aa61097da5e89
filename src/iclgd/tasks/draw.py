"""The demonstrations and queries of a run, and their order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from iclgd.common import paths, seeding
from iclgd.config import Config, ConfigError, TaskConfig
from iclgd.config.enumerations import OnLeak, Sees, TaskSource, TrainingData
from iclgd.config.variants import group_of_file
from iclgd.tasks.examples import DataError, Example, Examples, Pool
from iclgd.tasks.harness import harness_task
from iclgd.tasks.wording import check_label_words, worded_rows

log = logging.getLogger(__name__)

# A new source is a value of TaskSource, and a function from a task and `paths.data_dir` to a pool of examples.
SOURCES: dict[TaskSource, Callable[[TaskConfig, str | None], Pool]] = {
    TaskSource.bundled: worded_rows,
    TaskSource.hub: worded_rows,
    TaskSource.lm_eval: harness_task,
}

# Keys of a task that choose among its examples, and change none. (`query_seed` also draws the options of pairs.)
_DRAWING = ("shots", "queries", "permutation", "labels_noise", "on_leak", "on_overflow", "rates")
_MOST_POOLS = 4


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
    notes: tuple[str, ...] = ()  # what a reader of the numbers should know about these rows, a sentence each


def read_pool(config: Config) -> Pool:
    """All examples of a run's task, every row of both splits checked; with `task.evaluate`, queries are of that task.

    Raises:
        ConfigError: a task that cannot be used.
        DataError: rows that are missing or cannot be used, by file and line.
    """
    pool = _pool(config.task, config.paths.data_dir)
    if config.task.evaluate is not None:
        task = task_named(config.task.evaluate, "task.evaluate", config)
        task = replace(task, choices=config.task.choices, query_seed=config.task.query_seed)
        other = _pool(task, config.paths.data_dir)
        pool = replace(pool, evaluation=other.evaluation, same=False, notes=(*pool.notes, *other.notes))
    return pool


def _pool(task: TaskConfig, data_dir: str | None) -> Pool:
    pool = SOURCES[task.source](task, data_dir)
    return _remapped(pool, task.remap) if task.remap else pool


def shared_pool(config: Config, pools: dict[str, Pool]) -> Pool:
    """As `read_pool`, once for all runs of a command: `pools` keeps those of the last few tasks."""
    task = {name: value for name, value in vars(config.task).items() if name not in _DRAWING}
    key = repr([task, config.paths.data_dir])
    if key not in pools:
        if len(pools) == _MOST_POOLS:
            del pools[next(iter(pools))]
        pools[key] = read_pool(config)
    return pools[key]


def _remapped(pool: Pool, remap: Mapping[str, str]) -> Pool:
    """The same examples with other label words."""
    unknown = sorted(remap.keys() - set(pool.label_words))
    if unknown:
        raise ConfigError(
            f"task.remap names {', '.join(unknown)}; the label words of this task are {list(pool.label_words)}"
        )
    words = tuple(str(remap.get(word, word)) for word in pool.label_words)
    check_label_words(words, "task.remap")

    def remapped(examples: Examples) -> Examples:
        return replace(examples, word=lambda index: replace(examples[index], options=words))

    return replace(pool, train=remapped(pool.train), evaluation=remapped(pool.evaluation), label_words=words)


def draw(config: Config, sample: int = 0, pool: Pool | None = None) -> Drawn:
    """Draw demonstrations and queries as the papers' code did.

    Demonstrations are the first `task.shots` rows of the train split shuffled with `seed`, then reordered by
    `task.permutation`. Queries are the first `task.queries` rows of the evaluation split shuffled with
    `task.query_seed`, and never a demonstration where both splits are the same.

    Args:
        config: the run.
        sample: 0, or which further sample of demonstrations to take; none shares a row with another or with queries.
        pool: the task's examples, where they were read before.

    Raises:
        ConfigError: more shots than rows, or a control that cannot be had.
        DataError: rows that are missing or cannot be used, by file and line.
    """
    pool = pool or read_pool(config)
    queries = _query_rows(pool, config)
    measured = set(queries) if pool.same else set()
    rows = _demonstration_rows(pool.train, config, sample, measured)
    demonstrations = _with_wrong_labels([pool.train[row] for row in rows], rows, config)
    asked = tuple(pool.evaluation[row] for row in queries)
    calibrated = config.finetune.sees is Sees.calibration or "static_changes" in inputs_of(config)
    calibration = _calibration_rows(pool.train, config, {*rows, *measured}) if calibrated else []
    return Drawn(
        demonstrations=demonstrations,
        queries=asked,
        label_words=pool.label_words,
        training=_training(demonstrations, config, sample),
        calibration=tuple(pool.train[row] for row in calibration),
        description=pool.description,
        separator=pool.separator,
        notes=(*pool.notes, *_notes(demonstrations, asked, config, pool.blank)),
    )


def _with_wrong_labels(examples: Sequence[Example], rows: Sequence[int], config: Config) -> tuple[Example, ...]:
    """The examples, of which a share of `task.labels_noise`, rounded, has the label of another of their options.

    Which ones depends on their rows and the seed, not on their order; those of a smaller share are among those of a
    larger one.
    """
    streams = [seeding.numpy_stream(f"wrong label of row {row}", config.seed) for row in rows]
    order = sorted(range(len(rows)), key=[stream.random() for stream in streams].__getitem__)
    wrong = set(order[: round(config.task.labels_noise * len(rows))])
    return tuple(
        _mislabelled(example, streams[index]) if index in wrong else example for index, example in enumerate(examples)
    )


def _mislabelled(example: Example, stream: np.random.Generator) -> Example:
    """The example with the label of another of its options, each as likely."""
    return replace(example, label=seeding.another(example.label, len(example.options), stream))


def inputs_of(config: Config) -> set[str]:
    """What the run's scores name as inputs."""
    return {path for score in config.metric.scores.values() for path in score.inputs.values()}


def _demonstration_rows(
    train: Examples, config: Config, sample: int = 0, measured: Set[int] = frozenset()
) -> list[int]:
    shots = config.task.shots
    if shots > len(train):
        raise ConfigError(f"task.shots={shots} is more than the {len(train)} rows of {train.origin}: lower it")
    order = seeding.shuffled(len(train), config.seed)
    rest = [row for row in order[shots:] if row not in measured]
    rows = rest[(sample - 1) * shots : sample * shots] if sample else order[:shots]
    if len(rows) < shots:
        raise ConfigError(
            f"reference.draw={sample} needs {shots} rows of {train.origin} that nothing else uses, and it has "
            f"{len(rows)}: lower it, task.shots or task.queries"
        )
    return [rows[index] for index in seeding.permuted(shots, config.seed, config.task.permutation)]


def _query_rows(pool: Pool, config: Config) -> list[int]:
    first = _demonstration_rows(pool.train, config)
    shown = set(first) if pool.same else set()
    rows = [row for row in seeding.shuffled(len(pool.evaluation), config.task.query_seed) if row not in shown]
    if config.task.on_leak is OnLeak.drop:
        texts = {pool.train[row].text for row in first}
        rows = [row for row in rows if pool.evaluation[row].text not in texts]
    if not rows:
        raise DataError(f"{pool.evaluation.origin} has no row left for a query: lower task.shots")
    return rows[: config.task.queries]


def _notes(
    demonstrations: Sequence[Example], queries: Sequence[Example], config: Config, blank: str | None
) -> Iterator[str]:
    """What may mislead in these rows, by amount."""
    shots, texts = len(demonstrations), {example.text for example in demonstrations}
    leaked = sum(query.text in texts for query in queries)
    if leaked:
        said = f"{leaked} of {len(queries)} queries have the text of a demonstration"
        if config.task.on_leak is OnLeak.error:
            raise DataError(f"{said}: set task.on_leak=drop or keep")
        yield f"{said}: task.on_leak=drop leaves them out"
    wrong = round(config.task.labels_noise * shots)
    if wrong:
        yield f"{wrong} of {shots} demonstrations have a wrong label: task.labels_noise={config.task.labels_noise}"
    labels = {example.answer for example in demonstrations}
    if shots > 1 and len(labels) == 1 and len({example.options for example in demonstrations}) == 1:
        yield f"all {shots} demonstrations have the label {labels.pop()!r}"
    if len(texts) < shots:
        yield f"{shots - len(texts)} of {shots} demonstrations have the text of another one"
    empty = sum(blank is not None and each.text.split() == blank.split() for each in (*demonstrations, *queries))
    if empty:
        yield f"{empty} of {shots + len(queries)} demonstrations and queries are empty but for the template"
    doubled = sum(_is_doubled(example) for example in (*demonstrations, *queries))
    if doubled:
        yield f"{doubled} of {shots + len(queries)} demonstrations and queries have two spaces before an answer"


def _is_doubled(example: Example) -> bool:
    edges = [example.text[-1:], *(option[:1] for option in example.options)]
    return example.delimiter.isspace() and any(edge.isspace() for edge in edges)


def _calibration_rows(train: Examples, config: Config, used: Set[int]) -> list[int]:
    """Rows from the end of the order whose beginning is drawn for demonstrations."""
    rows = [row for row in reversed(seeding.shuffled(len(train), config.seed)) if row not in used]
    if not rows:
        raise ConfigError(
            f"finetune={config.finetune.name} is fitted to rows of {train.origin} that are neither demonstrations nor "
            "queries, and none is left: lower task.shots or task.queries"
        )
    return rows[: config.finetune.calibration]


def _training(demonstrations: tuple[Example, ...], config: Config, sample: int) -> tuple[Example, ...] | None:
    if config.finetune.data is TrainingData.label_shuffled:
        return label_shuffled(demonstrations, config.seed)
    if config.finetune.data is TrainingData.other_task:
        other = task_named(config.finetune.other_task, "finetune.other_task", config)
        train = _pool(other, config.paths.data_dir).train
        return tuple(train[row] for row in _demonstration_rows(train, config, sample))
    return None


def label_shuffled(demonstrations: tuple[Example, ...], seed: int) -> tuple[Example, ...]:
    """The same texts in the same order with labels that are wrong wherever they can be.

    Task labels are handed around among the demonstrations, so that each occurs as often as before; no demonstration
    keeps its own unless one label is more than half of them. Multiple choice takes another of the example's options.
    """
    stream = seeding.numpy_stream("label_shuffled", seed)
    if len({example.options for example in demonstrations}) > 1:
        return tuple(_mislabelled(example, stream) for example in demonstrations)
    # Neighbours of one label, turned by the size of the largest such group, meet another label.
    labels = [example.label for example in demonstrations]
    groups = stream.permutation(sorted(set(labels))).tolist()
    order = sorted(stream.permutation(len(labels)).tolist(), key=lambda index: groups.index(labels[index]))
    turn = max(labels.count(label) for label in groups)
    wrong = {index: labels[order[(rank + turn) % len(order)]] for rank, index in enumerate(order)}
    same = sum(wrong[index] == label for index, label in enumerate(labels))
    if same:
        log.warning("finetune.data=label_shuffled leaves %d of %d demonstrations their label", same, len(labels))
    return tuple(replace(example, label=wrong[index]) for index, example in enumerate(demonstrations))


def task_named(name: str | None, key: str, config: Config) -> TaskConfig:
    """Another task than the run's: that of a file in conf/task, or of a yaml anywhere.

    Raises:
        ConfigError: there is no such task, or it is the one that is measured; the message names `key`.
    """
    files = paths.config_files("task")
    own = Path(str(name)).expanduser()
    file = own if own.suffix == ".yaml" and own.is_file() else files.get(str(name))
    if file is None:
        raise ConfigError(
            f"{key}={name} is not the name of a task: give one of {', '.join(files)}, or the path of a task's yaml"
        )
    task = group_of_file(config, "task", TaskConfig, file)
    if task.name == config.task.name:
        raise ConfigError(f"{key}={name} is the task that is measured: name another one")
    return task
