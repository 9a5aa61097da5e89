"""The bundled sentences: balanced, of one form, and no two of them alike."""

from __future__ import annotations

from collections import Counter

import pytest

from iclgd.common import paths
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


@pytest.mark.parametrize("name", BUNDLED)
def test_splits_are_balanced_and_no_two_examples_have_one_text(name: str):
    size, labels, columns = BUNDLED[name]
    texts = []
    for split in ("train", "test"):
        rows = [row for _, row in read_file(paths.bundled_data_folder() / name / f"{split}.jsonl").rows]
        assert Counter(row["label"] for row in rows) == dict.fromkeys(range(labels), size // labels)
        assert all(set(row) == columns for row in rows)
        texts += [" | ".join(row[column] for column in sorted(columns - {"label"})) for row in rows]
    assert len({text.lower() for text in texts}) == len(texts)
    assert all(text == " ".join(text.split()) and text.isprintable() and 4 <= len(text.split()) <= 60 for text in texts)


def test_every_bundled_folder_is_checked():
    there = {path.name for path in paths.bundled_data_folder().iterdir() if path.is_dir()}
    assert there == {*BUNDLED, *TASKS, *PLANES, *PAIR_TASKS}
