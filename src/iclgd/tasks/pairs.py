"""Tasks of pairs: an input and an open answer, which is scored among other answers of the same task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from iclgd.common import seeding
from iclgd.config import TaskConfig
from iclgd.tasks.examples import DataError, Example, Examples, Pool
from iclgd.tasks.sources import Split, read_splits
from iclgd.tasks.templates import Expression, brief, is_text_or_number
from iclgd.tasks.wording import Wording

_CANDIDATES = 100  # other answers that each example brings; tokens decide which of them are its options


def paired_rows(task: TaskConfig, data_dir: str | None) -> Pool:
    """All pairs of a task, checked and put into words. A row with the text of an earlier one is left out, with a note.

    Raises:
        ConfigError: a template that cannot be used.
        DataError: rows that are missing or cannot be used, by file and row, or fewer answers than options.
    """
    wording = Wording(task)
    train, evaluation = read_splits(task, data_dir)
    texts: set[str] = set()
    repeats: list[str] = []
    first = _pairs(train, task, wording, texts, repeats)
    second = first if evaluation is train else _pairs(evaluation, task, wording, texts, repeats)
    answers = sorted({pair.answer for pair in (*first, *second)})
    if len(answers) < task.choices:
        raise DataError(
            f"{train.origin} has {len(answers)} different answers, fewer than task.choices={task.choices}: lower it"
        )
    notes = [f"{len(repeats)} rows have the text of an earlier row and are left out: {repeats[0]}"] if repeats else []
    return Pool(
        train=Examples(train.origin, len(first), partial(_with_candidates, first, answers, task)),
        evaluation=Examples(evaluation.origin, len(second), partial(_with_candidates, second, answers, task)),
        same=evaluation is train,
        label_words=(),
        description=task.description,
        separator=task.separator,
        notes=tuple(notes),
    )


def _pairs(split: Split, task: TaskConfig, wording: Wording, texts: set[str], repeats: list[str]) -> list[Example]:
    """The pairs of a split whose text is not among `texts`, which grow; each with its answer as the only option."""
    output = Expression(str(task.answer_column), "task.answer_column")
    pairs = []
    for index, row in enumerate(split.rows):
        where = split.where(index)
        text, answer = wording.template.fill(row, where), output.of(row, where)
        for column in sorted(wording.template.columns):
            if not str(row.get(column, "absent")).strip():
                raise DataError(f"{where}: column {column!r} is blank")
        if not is_text_or_number(answer) or not str(answer).strip():
            raise DataError(f"{where}: the answer {brief(answer)} is blank, or neither text nor a number")
        if text in texts:
            repeats.append(where)
            continue
        texts.add(text)
        pairs.append(Example(text, (str(answer),), 0, where, wording.template.tail, wording.delimiter))
    return pairs


def _with_candidates(pairs: Sequence[Example], answers: Sequence[str], task: TaskConfig, index: int) -> Example:
    """A pair with other answers beside its own, in an order that depends on its text and `task.query_seed` alone.

    Answers that are words of the text come first: where the answer has to be chosen from the text, others would be no
    temptation.
    """
    pair = pairs[index]
    stream = seeding.numpy_stream(f"options of {pair.text}", task.query_seed)
    drawn = (answers[i] for i in stream.permutation(len(answers)))
    words = set(re.findall(r"\w+", pair.text))
    others = sorted((answer for answer in drawn if answer != pair.answer), key=lambda answer: answer not in words)
    place = int(stream.integers(task.choices))
    options = (*others[:place], pair.answer, *others[place:_CANDIDATES])
    return replace(pair, options=options, label=place, choices=task.choices)


def with_distinct_options(example: Example, first_tokens: Sequence[int]) -> Example:
    """The example with its answer and the first other candidates, `choices` in all, no two with one first token.

    Args:
        example: of a task of pairs.
        first_tokens: of each of its options.

    Raises:
        DataError: too few of its options have a first token of their own.
    """
    count = example.choices or len(example.options)
    taken, others = {first_tokens[example.label]}, []
    for option, token in zip(example.options, first_tokens, strict=True):
        if token not in taken and len(others) < count - 1:
            taken.add(token)
            others.append(option)
    if len(others) < count - 1:
        raise DataError(
            f"{example.where}: only {len(others)} other answers begin with a token of their own in this model's "
            f"tokenizer, but task.choices={count} needs {count - 1}: lower it"
        )
    place = example.label % count
    return replace(example, options=(*others[:place], example.answer, *others[place:]), label=place, choices=None)
