"""Open answers: pairs are read from any file, split by a fixed rule, and scored among other answers of the task."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from configs import config as config_of
from encoding_cases import TOKENIZER, ids_of
from iclgd.common import paths
from iclgd.config import ConfigError
from iclgd.tasks.draw import draw
from iclgd.tasks.encoding import encode
from iclgd.tasks.examples import DataError
from task_cases import PAIR_TASKS, write_jsonl

PAIRS = [{"input": f"number {i}", "output": f"{chr(97 + i % 26)}nswer {i}"} for i in range(60)]


def pairs_config(file: Path, *overrides: str):
    return config_of("task=pairs", f"task.file={file}", "finetune=gd", "metric=[accuracy]", *overrides)


def write(file: Path, rows: list[dict]) -> Path:
    if file.suffix == ".json":
        file.write_text(json.dumps(rows))
    elif file.suffix == ".jsonl":
        write_jsonl(file, rows)
    elif file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return file


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_one_file_of_any_kind_gives_halves_that_no_seed_changes(suffix: str, tmp_path: Path):
    file = write(tmp_path / f"numbers{suffix}", PAIRS)
    drawn = [draw(pairs_config(file, f"seed={seed}", "task.shots=30")) for seed in (0, 1)]
    assert drawn[0].queries == drawn[1].queries and drawn[0].demonstrations != drawn[1].demonstrations
    shown = {example.text for example in drawn[0].demonstrations}
    assert shown == {example.text for example in drawn[1].demonstrations}
    asked = {example.text for example in drawn[0].queries}
    assert (len(shown), len(asked), len(shown | asked)) == (30, 30, 60)
    assert {f"Q: {row['input']}\nA:" for row in PAIRS} == shown | asked
    by_folder = config_of("task=pairs", "task.name=numbers", f"paths.data_dir={tmp_path}", "task.shots=30")
    assert [e.text for e in draw(by_folder).queries] == [e.text for e in drawn[0].queries]


def test_a_folder_has_its_own_splits(tmp_path: Path):
    write_jsonl(tmp_path / "numbers" / "train.jsonl", PAIRS[:20])
    write(tmp_path / "numbers" / "validation.json", PAIRS[20:])
    drawn = draw(config_of("task=pairs", "task.name=numbers", f"paths.data_dir={tmp_path}"))
    assert {e.text for e in drawn.queries} == {f"Q: {row['input']}\nA:" for row in PAIRS[20:]}


@pytest.mark.parametrize("choices", [2, 5, 8])
def test_options_are_the_answer_and_others_with_first_tokens_of_their_own(choices: int, tmp_path: Path):
    config = pairs_config(write(tmp_path / "p.json", PAIRS), f"task.choices={choices}", "model.bos=null")
    drawn = draw(config)
    prompts = encode(drawn, config, TOKENIZER, None)
    right = {f"Q: {row['input']}\nA:": ids_of(" " + row["output"]) for row in PAIRS}
    answers = set(right.values())
    for item in (*prompts.queries, *prompts.demonstrations):
        text = item.text if not item.label_length else item.text.partition("\nA:")[0] + "\nA:"
        assert item.options is not None and len(item.options) == choices
        assert item.options[item.label] == right[text] and set(item.options) <= answers
        assert len({option[0] for option in item.options}) == choices
    assert prompts.demonstrations[0].text == f"{drawn.demonstrations[0].text} {drawn.demonstrations[0].answer}"
    assert len({item.label for item in prompts.queries}) > choices // 2  # the right one may stand anywhere
    again = encode(
        draw(pairs_config(tmp_path / "p.json", f"task.choices={choices}", "seed=5")), config, TOKENIZER, None
    )
    assert again.queries == prompts.queries


def test_answers_that_are_words_of_the_text_are_among_the_options():
    config = config_of("task=first_of_five", "metric=[accuracy]", "model.bos=null")
    answers = {example.answer for example in draw(config).queries}
    for example in draw(config).queries:
        words = set(example.text.removeprefix("Q: ").removesuffix("\nA:").split(", "))
        assert words & answers <= set(example.options[:6])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input": "x"}, r"row 3: no column 'output' \(columns there: input\)"),
        ({"output": "x"}, r"row 3: no column 'input' \(columns there: output\)"),
        ({"input": " ", "output": "x"}, r"row 3: column 'input' is blank"),
        ({"input": "x", "output": ""}, r"row 3: the answer '' is blank"),
        ({"input": "x", "output": ["y"]}, r"row 3: the answer \['y'\] is blank, or neither text nor a number"),
        (["x"], r"row 3: a JSON list, not an object with columns"),
    ],
)
def test_a_bad_pair_is_refused_by_file_and_row(row, message: str, tmp_path: Path):
    file = write(tmp_path / "p.json", [*PAIRS[:3], row, *PAIRS[3:]])
    with pytest.raises(DataError, match=rf"p\.json, {message}"):
        draw(pairs_config(file))


def test_a_file_with_too_few_pairs_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="has 1 rows: two or more are needed"):
        draw(pairs_config(write(tmp_path / "p.json", PAIRS[:1])))


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"task\.file=no\.json is not a file that ends in \.jsonl, \.json"):
        draw(pairs_config(Path("no.json")))


def test_no_demonstration_equals_a_query_and_repeats_are_noted(tmp_path: Path):
    drawn = draw(pairs_config(write(tmp_path / "p.json", [*PAIRS, *PAIRS[:7]]), "task.shots=30"))
    texts = [example.text for example in (*drawn.demonstrations, *drawn.queries)]
    assert len(texts) == len(set(texts))
    assert drawn.notes[0].startswith("7 rows have the text of an earlier row and are left out: ")
    assert "p.json, row " in drawn.notes[0]


def test_too_few_other_answers_are_refused(tmp_path: Path):
    same = [{"input": f"{i}", "output": "abcd"[i % 4]} for i in range(20)]
    with pytest.raises(DataError, match=r"has 4 different answers, fewer than task\.choices=5: lower it"):
        draw(pairs_config(write(tmp_path / "p.json", same)))
    alike = [{"input": f"{i}", "output": f"zz{i}"} for i in range(20)]
    config = pairs_config(write(tmp_path / "p.json", alike))
    with pytest.raises(DataError, match=r"only 0 other answers begin with a token of their own .* needs 4: lower it"):
        encode(draw(config), config, TOKENIZER, None)


@pytest.mark.parametrize("name", PAIR_TASKS)
def test_bundled_pairs_are_many_all_different_and_in_disjoint_splits(name: str):
    splits = {}
    for split in ("train", "test"):
        lines = (paths.bundled_data_folder() / name / f"{split}.jsonl").read_text("utf-8").splitlines()
        splits[split] = [json.loads(line) for line in lines]
        assert len(lines) >= 60 and all(set(row) == {"input", "output"} for row in splits[split])
    rows = [*splits["train"], *splits["test"]]
    assert len(rows) >= 120 and len({row["input"] for row in rows}) == len(rows)
    for row in rows:
        assert all(text == " ".join(text.split()) and text.isprintable() for text in row.values())
        words = row["input"].split(", ")
        if name == "first_of_five":
            assert len(set(words)) == 5 and row["output"] == words[0]
        elif name == "animal_of_five":
            assert len(set(words)) == 5 and row["output"] in words
        elif name == "capitalize":
            assert row["output"] == row["input"].capitalize() != row["input"]
    if name == "animal_of_five":
        animals = {row["output"] for row in rows}
        assert all(len(animals.intersection(row["input"].split(", "))) == 1 for row in rows)
    assert not draw(config_of(f"task={name}", "finetune=mean_shift", "task.queries=60")).notes
