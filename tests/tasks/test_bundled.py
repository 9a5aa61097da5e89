"""The bundled sentences: balanced, of one form, and no two of them alike."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from iclgd.common import paths
from iclgd.tasks.sources import read_jsonl
from task_cases import PAIR_TASKS
from toy.language import TASKS
from toy.plane import TASKS as PLANES

# task: rows a split, labels, columns
BUNDLED = {
    "reviews": (120, 2, {"text", "label"}),
    "headlines": (120, 4, {"text", "label"}),
    "entailment": (60, 3, {"premise", "hypothesis", "label"}),
}


def rows(name: str, split: str) -> list[dict]:
    return [dict(row) for row in read_jsonl(paths.bundled_data_folder() / name / f"{split}.jsonl").rows]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


@pytest.mark.parametrize("name", BUNDLED)
def test_sizes_columns_and_balance(name: str):
    size, labels, columns = BUNDLED[name]
    for split in ("train", "test"):
        read = rows(name, split)
        assert Counter(row["label"] for row in read) == dict.fromkeys(range(labels), size // labels)
        assert all(set(row) == columns for row in read)


def test_every_bundled_folder_is_checked():
    there = {path.name for path in paths.bundled_data_folder().iterdir() if path.is_dir()}
    assert there == {*BUNDLED, *TASKS, *PLANES, *PAIR_TASKS}


@pytest.mark.parametrize("name", BUNDLED)
def test_texts_are_plain_sentences_of_a_sensible_length(name: str):
    for row in (*rows(name, "train"), *rows(name, "test")):
        for column in BUNDLED[name][2] - {"label"}:
            text = row[column]
            assert text == " ".join(text.split()) and text.isprintable()
            assert 4 <= len(words(text)) <= 40, text
            assert not set(text) & set("{}<>\\"), text


@pytest.mark.parametrize("name", BUNDLED)
def test_no_two_examples_have_one_text(name: str):
    read = [*rows(name, "train"), *rows(name, "test")]
    texts = [row["text"] if "text" in row else f"{row['premise']} {row['hypothesis']}" for row in read]
    assert len({text.lower() for text in texts}) == len(texts)
