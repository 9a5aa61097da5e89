"""The bundled sentences: balanced, of one form, and no two of them alike."""

from __future__ import annotations

import difflib
import re
from collections import Counter

import numpy as np
import pytest

from iclgd.common import paths
from iclgd.tasks.sources import read_jsonl
from task_cases import PAIR_TASKS
from toy.language import TASKS

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


def word_3_grams(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return set(zip(found, found[1:], found[2:], strict=False))


def alike(texts: list[str]) -> list[tuple[str, str]]:
    """Pairs that share three tenths of their word 3-grams, or three quarters of their characters in order."""
    grams = [word_3_grams(text) for text in texts]
    lowered = [text.lower() for text in texts]
    letters = np.array([[text.count(letter) for letter in sorted(set("".join(lowered)))] for text in lowered])
    found = []
    for one in range(len(texts)):
        common = np.minimum(letters[one], letters).sum(axis=1)  # no order of the letters can match more than these
        possible = 2 * common >= 0.75 * (letters[one].sum() + letters.sum(axis=1))
        matcher = difflib.SequenceMatcher(None, "", lowered[one], autojunk=False)
        for other in range(one + 1, len(texts)):
            shared, both = len(grams[one] & grams[other]), len(grams[one] | grams[other])
            close = False
            if possible[other]:
                matcher.set_seq1(lowered[other])
                close = matcher.ratio() >= 0.75
            if shared >= 0.3 * both > 0 or close:
                found.append((texts[one], texts[other]))
    return found


@pytest.mark.parametrize("name", BUNDLED)
def test_sizes_columns_and_balance(name: str):
    size, labels, columns = BUNDLED[name]
    for split in ("train", "test"):
        read = rows(name, split)
        assert Counter(row["label"] for row in read) == dict.fromkeys(range(labels), size // labels)
        assert all(set(row) == columns for row in read)


def test_every_bundled_folder_is_checked():
    there = {path.name for path in paths.bundled_data_folder().iterdir() if path.is_dir()}
    assert there == {*BUNDLED, *TASKS, *PAIR_TASKS}


@pytest.mark.parametrize("name", BUNDLED)
def test_texts_are_plain_sentences_of_a_sensible_length(name: str):
    for row in (*rows(name, "train"), *rows(name, "test")):
        for column in BUNDLED[name][2] - {"label"}:
            text = row[column]
            assert text == " ".join(text.split()) and text.isprintable()
            assert 4 <= len(words(text)) <= 40, text
            assert not set(text) & set("{}<>\\"), text


@pytest.mark.parametrize("name", BUNDLED)
def test_no_two_examples_are_alike(name: str):
    read = [*rows(name, "train"), *rows(name, "test")]
    texts = [row["text"] if "text" in row else f"{row['premise']} {row['hypothesis']}" for row in read]
    assert len({text.lower() for text in texts}) == len(texts)
    assert alike(texts) == []
    if name == "entailment":
        assert alike([row["premise"] for row in read]) == []


def test_likeness_is_seen_where_it_is():
    first = "The kettle broke after two days and the shop would not take it back."
    reworded = "The kettle broke after three days and the shop would not take it back!"
    reordered = "After two days the kettle broke, and the shop would not take it back."
    other = "A bright, well-run museum with helpful guides."
    assert alike([first, reworded, other]) == [(first, reworded)]
    assert alike([first, reordered, other]) == [(first, reordered)]


@pytest.mark.parametrize("name", BUNDLED)
def test_no_template_stands_behind_the_sentences(name: str):
    read = [*rows(name, "train"), *rows(name, "test")]
    openings = Counter(tuple(words(row.get("text") or row["premise"])[:3]) for row in read)
    assert openings.most_common(1)[0][1] <= len(read) // 50
    ends = Counter(tuple(words(row.get("text") or row["hypothesis"])[-3:]) for row in read)
    assert ends.most_common(1)[0][1] <= len(read) // 50
