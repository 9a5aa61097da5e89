"""The bundled sentences: balanced, of one form, and no two of them alike."""

from __future__ import annotations

from collections import Counter

import pytest

from configs import config
from iclgd.common import paths
from iclgd.tasks.draw import draw
from iclgd.tasks.sources import read_file
from task_cases import PAIR_TASKS
from toy.language import TASKS
from toy.plane import TASKS as PLANES

# task: rows a split, labels, columns
BUNDLED = {
    "reviews": (120, 2, {"text", "label"}),
    "headlines": (120, 4, {"text", "label"}),
    "entailment": (60, 3, {"premise", "hypothesis", "label"}),
}


def rows_of(name: str, split: str) -> list[dict]:
    return [dict(row) for _, row in read_file(paths.bundled_data_folder() / name / f"{split}.jsonl").rows]


@pytest.mark.parametrize("name", BUNDLED)
def test_splits_are_balanced_and_no_two_examples_have_one_text(name: str):
    size, labels, columns = BUNDLED[name]
    texts = []
    for split in ("train", "test"):
        rows = rows_of(name, split)
        assert Counter(row["label"] for row in rows) == dict.fromkeys(range(labels), size // labels)
        assert all(set(row) == columns for row in rows)
        texts += [" | ".join(row[column] for column in sorted(columns - {"label"})) for row in rows]
    assert len({text.lower() for text in texts}) == len(texts)
    assert all(text == " ".join(text.split()) and text.isprintable() and 4 <= len(text.split()) <= 60 for text in texts)


@pytest.mark.parametrize("name", PAIR_TASKS)
def test_pairs_are_many_all_different_and_right(name: str):
    train, test = rows_of(name, "train"), rows_of(name, "test")
    rows = [*train, *test]
    assert min(len(train), len(test)) >= 60 and len(rows) >= 120 and len({row["input"] for row in rows}) == len(rows)
    answers = {row["output"] for row in rows}
    for row in rows:
        assert set(row) == {"input", "output"}
        assert all(text == " ".join(text.split()) and text.isprintable() for text in row.values())
        words = row["input"].split(", ")
        if name.endswith("of_five"):
            assert len(set(words)) == 5 and row["output"] in words
            assert row["output"] == words[0] if name == "first_of_five" else len(answers.intersection(words)) == 1
        if name == "capitalize":
            assert row["output"] == row["input"].capitalize() != row["input"]
    assert not draw(config(f"task={name}", "finetune=mean_shift", "task.queries=60")).notes


def test_every_bundled_folder_is_checked():
    there = {path.name for path in paths.bundled_data_folder().iterdir() if path.is_dir()}
    assert there == {*BUNDLED, *TASKS, *PLANES, *PAIR_TASKS}
