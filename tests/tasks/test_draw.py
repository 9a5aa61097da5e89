"""Which demonstrations and queries a seed, a permutation and a control draw; every task file on rows like the hub's."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import config as config_of
from iclgd.common import paths, seeding
from iclgd.config import as_dict
from iclgd.config.enumerations import Sees, TaskSource, TrainingData
from iclgd.runs.inputs import run_id
from iclgd.tasks.draw import draw, label_shuffled, shared_pool
from iclgd.tasks.examples import DataError, Example
from task_cases import HUB_ROWS, make_config, rows_of, write_jsonl, write_task

TASK_FILES = sorted(
    file.stem for file in (paths.config_folder() / "task").glob("*.yaml") if file.stem not in ("lm_eval", "pairs")
)
PAPER = {  # the table of MEASUREMENT.md: template, label words, published rate
    "sst2": ("Sentence: {{ sentence }} Label:", ["Negative", "Positive"], 5e-4),
    "sst5": ("Sentence: {{ text }} Label:", ["terrible", "bad", "neutral", "good", "great"], 1.6e-4),
    "mr": ("Review: {{ text }} Sentiment:", ["Negative", "Positive"], 3e-3),
    "subj": ("Input: {{ text }} Type:", ["objective", "subjective"], 3e-3),
    "agnews": (
        "Classify the news articles into the categories of World, Sports, Business, and Technology. "
        "Article: {{ text }} Answer:",
        ["World", "Sports", "Business", "Technology"],
        0.2,
    ),
    "cb": (
        "{{ premise }} Question: {{ hypothesis }}. True, False, or Neither? Answer:",
        ["True", "False", "Neither"],
        0.08,
    ),
}


@pytest.mark.parametrize("name", TASK_FILES)
def test_every_task_file_words_rows_like_the_hubs(name: str, tmp_path: Path):
    config = config_of(f"task={name}", "task.shots=1")
    task = config.task
    assert task.name == name
    if task.source is TaskSource.hub:
        for split in (task.train_split, task.eval_split):
            write_jsonl(tmp_path / "lines" / name / f"{split}.jsonl", HUB_ROWS[name])
            (tmp_path / "table" / name).mkdir(parents=True, exist_ok=True)
            table = pyarrow.Table.from_pylist(HUB_ROWS[name])
            pyarrow.parquet.write_table(table, tmp_path / "table" / name / f"{split}.parquet")
    for template in range(len(task.templates)):
        task.template = template
        config.paths.data_dir = str(tmp_path / "lines") if task.source is TaskSource.hub else None
        drawn = draw(config)
        config.paths.data_dir = str(tmp_path / "table") if task.source is TaskSource.hub else None
        from_table = draw(config)
        assert [(e.text, e.options, e.label) for e in from_table.queries] == [
            (e.text, e.options, e.label) for e in drawn.queries
        ]
        for example in (*drawn.demonstrations, *drawn.queries):
            assert example.text and not set(example.text) & set("{}") and example.text == example.text.strip()
            assert drawn.label_words in ((), example.options)
    if task.source is TaskSource.hub and task.labels:
        assert {example.label for example in drawn.queries} == set(range(len(HUB_ROWS[name])))


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_tasks_are_as_published(name: str):
    config = config_of(f"task={name}")
    template, labels, rate = PAPER[name]
    assert (config.task.templates[0], config.task.labels) == (template, labels)
    assert config.task.rates == {"gd": rate, "lcgd": rate}
    assert (config.task.shots, config.task.queries, config.task.query_seed) == (32, 2000, 1)
    assert config.task.eval_split == ("test" if name in ("subj", "agnews") else "validation")


@pytest.mark.real_data
@pytest.mark.parametrize("name", PAPER)
def test_local_copies_of_the_papers_data_sets_are_drawn(name: str):
    folder = Path(os.environ["ICLGD_DATA_DIR"])
    config = config_of(f"task={name}", f"paths.data_dir={folder}")
    drawn = draw(config)
    rows = sum(1 for _ in (folder / name / f"{config.task.eval_split}.jsonl").open())
    assert (len(drawn.demonstrations), len(drawn.queries)) == (32, min(rows, 2000))
    assert {example.label for example in drawn.queries} == set(range(len(drawn.label_words)))


ANSWERS = {  # by letter, number and name
    "arc_easy": {"water", "honey"},
    "winogrande": {"Ann", "Eve"},
    "openbookqa": {"cold", "hot"},
    "copa": {"It fell.", "It rained."},
    "piqa": {"use a towel", "use a stone"},
}


@pytest.mark.parametrize(("name", "answers"), ANSWERS.items())
def test_multiple_choice_reads_answers(name: str, answers: set[str], tmp_path: Path):
    for split in ("train", "validation"):
        write_jsonl(tmp_path / name / f"{split}.jsonl", HUB_ROWS[name])
    drawn = draw(config_of(f"task={name}", "task.shots=2", f"paths.data_dir={tmp_path}"))
    assert drawn.label_words == () and {example.answer for example in drawn.demonstrations} == answers


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_order_is_that_of_the_datasets_library(seed: int):
    rows = datasets.Dataset.from_list([{"index": index} for index in range(97)])
    assert seeding.shuffled(97, seed) == rows.shuffle(seed=seed)["index"][:]


def test_demonstrations_and_queries_are_the_first_of_the_shuffled_splits(tmp_path: Path):
    data = write_task(tmp_path, rows_of(40), validation=[{"text": f"query {i}", "label": 0} for i in range(30)])
    config = make_config(data, shots=5, queries=7)
    config.seed = 3
    drawn = draw(config)
    assert [e.text for e in drawn.demonstrations] == [
        f"Thing: thing number {index} Kind:" for index in seeding.shuffled(40, 3)[:5]
    ]
    assert [e.text for e in drawn.queries] == [f"Thing: query {i} Kind:" for i in seeding.shuffled(30, 1)[:7]]
    assert drawn.demonstrations[0].where.endswith(f"train.jsonl, line {seeding.shuffled(40, 3)[0] + 1}")
    assert draw(make_config(data, shots=5)).queries == draw(make_config(data, shots=9)).queries
    assert len(draw(make_config(data, queries=2000)).queries) == 30


@pytest.mark.parametrize(
    ("rows", "seed", "permutation", "drawn"),
    [
        (67349, 0, 0, [39409, 38944, 53526, 30712]),
        (67349, 3, 2, [28586, 31362, 40020, 50268]),
        (250, 42, 1, [50, 46, 120, 54]),
    ],
)
def test_published_seeds_draw_the_rows_that_they_always_drew(
    tmp_path: Path, rows: int, seed: int, permutation: int, drawn: list[int]
):
    data = write_task(tmp_path, [], train=rows_of(rows), validation=rows_of(872))
    config = make_config(data, shots=4, queries=6, permutation=permutation)
    config.seed = seed
    found = draw(config)
    assert [int(example.text.split()[3]) for example in found.demonstrations] == drawn
    assert [int(example.text.split()[3]) for example in found.queries] == [859, 619, 662, 605, 153, 488]


def test_one_split_for_both_never_asks_about_a_demonstration_nor_fits_to_a_query(tmp_path: Path):
    config = make_config(write_task(tmp_path, rows_of(20)), {"sees": Sees.calibration}, shots=8, eval_split="train")
    config.task.queries = 5
    drawn = draw(config)
    shown = {*drawn.queries, *drawn.demonstrations, *drawn.calibration}
    assert len(shown) == 20 == 5 + 8 + len(drawn.calibration)
    config.task.shots = 20
    with pytest.raises(DataError, match=r"train\.jsonl has no row left for a query: lower task\.shots"):
        draw(config)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(0, 5))
def test_shuffled_labels_are_the_same_ones_and_wrong_wherever_they_can_be(labels: list[int], seed: int):
    examples = tuple(Example(f"text {i}", ("a", "b", "c", "d"), label, "") for i, label in enumerate(labels))
    shuffled = label_shuffled(examples, seed)
    assert shuffled == label_shuffled(examples, seed)
    assert [e.text for e in shuffled] == [e.text for e in examples]
    assert Counter(e.label for e in shuffled) == Counter(labels)
    most = max(Counter(labels).values())
    assert sum(new.label == old for new, old in zip(shuffled, labels, strict=True)) == max(0, 2 * most - len(labels))


def test_label_shuffled_trains_on_wrong_options_where_there_are_such_and_warns(tmp_path: Path, caplog):
    shuffled = {"data": TrainingData.label_shuffled}
    data = write_task(tmp_path, [{"text": f"t {i}", "label": 0} for i in range(5)])
    draw(make_config(data, finetune=shuffled, shots=3))
    assert "label_shuffled leaves 3 of 3 demonstrations their label" in caplog.text
    rows = [{"text": f"q {i}", "all": [f"{i} a", f"{i} b", f"{i} c"], "label": i % 3} for i in range(12)]
    config = make_config(write_task(tmp_path, rows, name="choices"), finetune=shuffled, options_column="all")
    config.task.name, config.task.shots = "choices", 12
    drawn = draw(config)
    assert drawn.training is not None
    assert all(new.label != old.label for new, old in zip(drawn.training, drawn.demonstrations, strict=True))


def test_other_task_trains_on_as_many_of_its_demonstrations(tmp_path: Path):
    other = {"data": TrainingData.other_task, "other_task": "headlines"}
    drawn = draw(make_config(write_task(tmp_path, rows_of(40)), finetune=other, shots=6))
    assert drawn.training is not None and len(drawn.training) == 6
    assert drawn.training[0].tail == " Topic:" and drawn.queries[0].tail == " Kind:"
    assert drawn.training[0].options == ("Politics", "Sports", "Science", "Food")
    assert drawn.label_words == ("Negative", "Positive")
    file = tmp_path / "mine.yaml"
    file.write_text((paths.config_folder() / "task" / "headlines.yaml").read_text())
    own = {"data": TrainingData.other_task, "other_task": str(file)}
    assert draw(make_config(tmp_path, finetune=own, shots=6)).training == drawn.training


@pytest.mark.parametrize(
    "override", ["task.shots=4", "task.queries=5", "task.query_seed=2", "task.permutation=1", "task.labels_noise=0.5"]
)
def test_examples_that_another_run_read_are_those_of_the_run(override):
    pools = {}
    shared_pool(config_of("task=capitals", "metric=[accuracy]"), pools)
    changed = config_of("task=capitals", "metric=[accuracy]", override)
    assert draw(changed, pool=shared_pool(changed, pools)) == draw(changed)


def test_words_that_yaml_reads_as_no_text_can_be_remapped():
    words = config_of("task=entailment", "metric=[accuracy]", "task.remap={True: foo, False: bar, Neither: baz}")
    assert words.task.remap == {"True": "foo", "False": "bar", "Neither": "baz"} and run_id(as_dict(words))
