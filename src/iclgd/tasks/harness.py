"""Tasks of lm-evaluation-harness, with its own rows, wording, choices, delimiters and splits."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import yaml

from iclgd.common.digests import Stamp, is_settled, stamp_of
from iclgd.config import ConfigError, TaskConfig
from iclgd.tasks.sources import DataError
from iclgd.tasks.templates import brief
from iclgd.tasks.wording import Example, Examples, Worded

_YAML = (".yaml", ".yml")


def harness_task(task: TaskConfig) -> Worded:
    """A multiple-choice task of lm-evaluation-harness as it would put it.

    Its description, texts, choices, delimiters and splits hold; demonstrations are drawn here, by `seed`, and not by
    its own sampler. A row is worded, and checked, when it is drawn.

    Raises:
        ConfigError: lm_eval is not installed, there is no such task, or it is of a kind that one query with several
            options cannot put.
        DataError: its rows cannot be had.
    """
    name = str(task.lm_eval)
    found = _unchanged(name) if name.endswith(_YAML) else _once(name)  # a task by name is the package's own
    config, few = found.config, found.fewshot_cfg
    _refuse_other_kinds(name, found)
    trained_on = few.split or config.training_split or config.validation_split or config.test_split
    asked = config.test_split or config.validation_split
    shown = (few.doc_to_text, few.doc_to_choice, few.doc_to_target, few.target_delimiter)
    usual = (config.doc_to_text, config.doc_to_choice, config.doc_to_target, config.target_delimiter)
    own_samples = few.split is None and few.samples is not None
    return Worded(
        train=_examples(name, found, found.fewshot_docs(), "samples" if own_samples else trained_on, shown),
        evaluation=_examples(name, found, found.eval_docs, asked, usual),
        same=trained_on == asked and not own_samples,
        label_words=_label_words(config.doc_to_choice) if few.doc_to_choice == config.doc_to_choice else (),
        description=config.description or "",
        separator=few.fewshot_delimiter if task.separator is None else task.separator,
    )


def _loaded(name: str) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError("task=lm_eval needs lm-evaluation-harness: pip install 'iclgd[lm-eval]'") from error
    path = Path(name).expanduser()
    if path.suffix in _YAML:
        if not path.is_file():
            raise ConfigError(f"task.lm_eval={name} is no file: name a task's yaml, or a task")
        manager, key = TaskManager(include_defaults=False), str(path.resolve())
    else:
        manager, key = TaskManager(), name
    try:
        loaded = manager.load(key)
    except KeyError as error:
        raise ConfigError(f"task.lm_eval={name}: lm-evaluation-harness knows no such task ({brief(error)})") from error
    except Exception as error:  # what data sets, templates and a task's own code raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"task.lm_eval={name} cannot be loaded ({type(error).__name__}: {reason})") from error
    if loaded.get("groups") or len(loaded["tasks"]) != 1:
        members = ", ".join(sorted(loaded["tasks"])[:8])
        raise ConfigError(f"task.lm_eval={name} is a group of tasks: name one of its members, such as {members}")
    return next(iter(loaded["tasks"].values()))


_once = functools.lru_cache(maxsize=4)(_loaded)
_kept: dict[tuple[Path, Path], tuple[dict[Path, Stamp], Any]] = {}  # by working folder and yaml


def _unchanged(name: str) -> Any:
    """A yaml's task, loaded again unless the files that it was read from are known and as they were."""
    key, began = (Path.cwd(), Path(name).expanduser().resolve()), time.time_ns()
    stamps, found = _kept.pop(key, ({}, None))
    if not stamps or not all(path.is_file() and stamp_of(path) == stamp for path, stamp in stamps.items()):
        found = _loaded(name)
        stamps = {path: stamp_of(path) for path in _files(key[1], found.config)}
    if all(is_settled(stamp) and max(stamp[1:3]) < began for stamp in stamps.values()):
        _kept[key] = (stamps, found)
    return found


def _files(file: Path, config: Any) -> list[Path]:
    """The local files that a task was read from; none where they cannot be known, as where it has code of its own."""
    files = [file]
    for each in files:  # it grows by what these include
        text = each.read_text("utf-8")
        if "!function" in text:
            return []
        files += [
            path for name in _listed(yaml.safe_load(text).get("include")) if (path := each.parent / name) not in files
        ]
    given = config.dataset_kwargs or {}
    data = given.get("data_files")
    rows = [Path(path) for part in (data.values() if isinstance(data, dict) else [data]) for path in _listed(part)]
    elsewhere = "data_dir" in given or (not rows and Path(config.dataset_path or "").exists())
    return [] if elsewhere or not all(path.is_file() for path in rows) else files + rows


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _refuse_other_kinds(name: str, found: Any) -> None:
    reasons = {
        f"its output_type is {found.OUTPUT_TYPE}, not multiple_choice": found.OUTPUT_TYPE != "multiple_choice",
        "each of its choices has a text of its own": found.multiple_input,
        "a row may have several right choices": found.multiple_target,
        "it starts answers with a gen_prefix": found.config.gen_prefix or found.fewshot_cfg.gen_prefix,
        "it shows images or sound": found.config.doc_to_image or found.config.doc_to_audio,
        "its description differs from row to row": "{{" in (found.config.description or ""),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"task.lm_eval={name} cannot be measured: {reason}")


def _label_words(choices: Any) -> tuple[str, ...]:
    """Choices that are the same for all rows."""
    if isinstance(choices, dict):
        choices = list(choices.values())
    return tuple(map(str, choices)) if isinstance(choices, list) else ()


def _examples(name: str, found: Any, docs: Any, split: str, wording: tuple[Any, Any, Any, str]) -> Examples:
    docs = docs if hasattr(docs, "__getitem__") else list(docs)
    to_text, to_choice, to_target, delimiter = wording
    templated = isinstance(to_text, str) and "}}" in to_text  # else it is a column's name or a function
    tail = to_text.rpartition("}}")[2].rpartition("%}")[2] if templated else ""
    origin = f"{name}, split {split}"

    def example(index: int) -> Example:
        doc, where = docs[index], f"{origin}, row {index}"
        try:
            text = found.doc_to_text(doc, to_text)
            options = tuple(map(str, found.doc_to_choice(doc, to_choice)))
            target = found.doc_to_target(doc, to_target)
        except Exception as error:  # what a template or a task's own function raises on a row
            raise DataError(f"{where}: lm-evaluation-harness cannot word it ({error})") from error
        label = options.index(target) if target in options else target
        if not isinstance(text, str) or not isinstance(label, int) or not 0 <= label < len(options) >= 2:
            raise DataError(
                f"{where}: text {brief(text)}, choices {brief(options)} and target {brief(target)} do not fit"
            )
        bare = text.rstrip()  # the harness, too, counts the spaces before an answer as the answer's
        return Example(bare, options, int(label), where, tail.rstrip(), text[len(bare) :] + delimiter)

    return Examples(origin, len(docs), example)
