"""Tasks of lm-evaluation-harness, with its own rows, wording, choices, delimiters and splits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from iclgd.config import ConfigError, TaskConfig
from iclgd.tasks.examples import DataError, Example, Examples, Pool
from iclgd.tasks.templates import brief


def harness_task(task: TaskConfig, data_dir: str | None) -> Pool:
    """A multiple-choice task of lm-evaluation-harness as it would put it.

    Its description, texts, choices, delimiters and splits hold, and its own data set: `data_dir` plays no part.
    Demonstrations are drawn here, by `seed`, and not by its own sampler.

    Raises:
        ConfigError: lm_eval is not installed, there is no such task, or it is of a kind that one query with several
            options cannot put.
        DataError: its rows cannot be had, or one that is drawn cannot be put into words.
    """
    name = str(task.lm_eval)
    harness = _loaded(name)
    config, shots = harness.config, harness.fewshot_cfg
    _refuse_other_kinds(name, harness)
    train_split = shots.split or config.training_split or config.validation_split or config.test_split
    eval_split = config.test_split or config.validation_split
    in_context = (shots.doc_to_text, shots.doc_to_choice, shots.doc_to_target, shots.target_delimiter)
    usual = (config.doc_to_text, config.doc_to_choice, config.doc_to_target, config.target_delimiter)
    own_samples = shots.split is None and shots.samples is not None
    return Pool(
        train=_examples(name, harness, harness.fewshot_docs(), "samples" if own_samples else train_split, in_context),
        evaluation=_examples(name, harness, harness.eval_docs, eval_split, usual),
        same=train_split == eval_split and not own_samples,
        label_words=_label_words(config.doc_to_choice) if shots.doc_to_choice == config.doc_to_choice else (),
        description=config.description or "",
        separator=shots.fewshot_delimiter if task.separator is None else task.separator,
    )


def _loaded(name: str) -> Any:
    try:
        from lm_eval.tasks import TaskManager  # an extra, and slow to import
    except ImportError as error:
        raise ConfigError("task=lm_eval needs lm-evaluation-harness: pip install 'iclgd[lm-eval]'") from error
    path = Path(name).expanduser()
    file = path if path.suffix in (".yaml", ".yml") else _shipped_yaml(name)
    try:
        loaded = TaskManager(include_defaults=file is None).load(str(file.resolve()) if file else name)
    except Exception as error:  # what data sets, templates and a task's own code raise; a KeyError where there is none
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(f"task.lm_eval={name} cannot be loaded ({type(error).__name__}: {reason})") from error
    if loaded.get("groups") or len(loaded["tasks"]) != 1:
        members = ", ".join(sorted(loaded["tasks"])[:8])
        raise ConfigError(f"task.lm_eval={name} is a group of tasks: name one of its members, such as {members}")
    return next(iter(loaded["tasks"].values()))


def _shipped_yaml(name: str) -> Path | None:
    """The harness's file of a task. A look into all of them takes 0.2 s, where its own index takes 8 s."""
    import lm_eval.tasks

    line = re.compile(rf"^[\"']?task[\"']?: *[\"']?{re.escape(name)}[\"']? *$".encode(), re.MULTILINE)
    files = Path(lm_eval.tasks.__file__).parent.rglob("*.yaml")
    return next((file for file in files if line.search(file.read_bytes())), None)


def _refuse_other_kinds(name: str, harness: Any) -> None:
    reasons = {
        f"its output_type is {harness.OUTPUT_TYPE}, not multiple_choice": harness.OUTPUT_TYPE != "multiple_choice",
        "each of its choices has a text of its own": harness.multiple_input,
        "a row may have several right choices": harness.multiple_target,
        "it starts answers with a gen_prefix": harness.config.gen_prefix or harness.fewshot_cfg.gen_prefix,
        "it shows images or sound": harness.config.doc_to_image or harness.config.doc_to_audio,
        "its description differs from row to row": "{{" in (harness.config.description or ""),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"task.lm_eval={name} cannot be measured: {reason}")


def _label_words(choices: Any) -> tuple[str, ...]:
    """Choices that are the same for all rows."""
    if isinstance(choices, dict):
        choices = list(choices.values())
    return tuple(map(str, choices)) if isinstance(choices, list) else ()


def _examples(name: str, harness: Any, docs: Any, split: str, wording: tuple[Any, Any, Any, str]) -> Examples:
    docs = docs if hasattr(docs, "__getitem__") else list(docs)
    to_text, to_choice, to_target, delimiter = wording
    templated = isinstance(to_text, str) and "}}" in to_text  # else it is a column's name or a function
    tail = to_text.rpartition("}}")[2].rpartition("%}")[2] if templated else ""
    origin = f"{name}, split {split}"

    def example(index: int) -> Example:
        doc, where = docs[index], f"{origin}, row {index}"
        try:
            text = harness.doc_to_text(doc, to_text)
            options = tuple(map(str, harness.doc_to_choice(doc, to_choice)))
            target = harness.doc_to_target(doc, to_target)
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
