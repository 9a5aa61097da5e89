"""Rows as the hub lays them out, for every task file, and configs built without Hydra."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from iclgd.common.records import Item, PromptSet
from iclgd.config.schema import (
    Config,
    FinetuneConfig,
    MetricConfig,
    ModelConfig,
    ProtocolConfig,
    ScoreConfig,
    TaskConfig,
)


def _choices(*texts: str, names: str = "ABCDE") -> dict[str, list[str]]:
    return {"text": list(texts), "label": list(names[: len(texts)])}


# task: rows with the columns of its hub data set
HUB_ROWS: dict[str, list[dict[str, Any]]] = {
    "sst2": [{"idx": 0, "sentence": "a dull film", "label": 0}, {"idx": 1, "sentence": "a bright film", "label": 1}],
    "sst5": [{"text": f"film number {i}", "label": i, "label_text": "x"} for i in range(5)],
    "mr": [{"text": "too long", "label": 0}, {"text": "too short", "label": 1}],
    "subj": [{"text": "he leaves home", "label": 0, "label_text": "objective"}, {"text": "a gem", "label": 1}],
    "agnews": [{"text": f"story {i}", "label": i} for i in range(4)],
    "cb": [{"premise": f"It rained on day {i}.", "hypothesis": "it rained", "idx": i, "label": i} for i in range(3)],
    "trec": [{"text": f"What is {i} ?", "coarse_label": i, "fine_label": 40 + i} for i in range(6)],
    "rte": [{"sentence1": "It rains.", "sentence2": f"It is wet {i}.", "label": i, "idx": i} for i in range(2)],
    "boolq": [{"question": f"is it {i}", "passage": "It is one.", "idx": i, "label": i} for i in range(2)],
    "dbpedia_14": [{"label": i, "title": f"Thing {i}", "content": f"Thing {i} is a thing."} for i in range(14)],
    "imdb": [{"text": "A long<br />review", "label": 0}, {"text": "A short review", "label": 1}],
    "wic": [
        {
            "word": "bank", "sentence1": "The bank rose.", "sentence2": f"A bank of snow {i}.", "idx": i, "label": i,
            "start1": 4, "start2": 2, "end1": 8, "end2": 6,
        }
        for i in range(2)
    ],
    "qnli": [{"question": "Who?", "sentence": f"She did {i}.", "label": i, "idx": i} for i in range(2)],
    "tweet_emotion": [{"text": f"@user day {i}", "label": i} for i in range(4)],
    "copa": [
        {
            "premise": f"Lamp {i} broke.", "choice1": "It fell.", "choice2": "It rained.",
            "question": ["cause", "effect"][i], "idx": i, "label": i,
        }
        for i in range(2)
    ],
    "piqa": [{"goal": f"Dry a cup {i}", "sol1": "use a towel", "sol2": "use a stone", "label": i} for i in range(2)],
    "openbookqa": [
        {"id": "7-1", "question_stem": "Ice is", "choices": _choices("cold", "hot", "red", "loud"), "answerKey": "A"},
        {"id": "7-2", "question_stem": "Fire is", "choices": _choices("cold", "wet", "red", "hot"), "answerKey": "D"},
    ],
    "arc_easy": [
        {"id": "M1", "question": "Ice melts to", "choices": _choices("water", "air", "sand", "oil"), "answerKey": "A"},
        {
            "id": "M2", "question": "Bees make", "answerKey": "2",
            "choices": _choices("milk", "honey", "silk", names="1234"),
        },
    ],
    "arc_challenge": [
        {"id": "C1", "question": "A year has", "choices": _choices("12 days", "12 months"), "answerKey": "B"},
        {"id": "C2", "question": "A day has", "choices": _choices("24 h", "1 h", "2 h", "3 h", "4"), "answerKey": "A"},
    ],
    "hellaswag": [
        {
            "ind": 4, "activity_label": "Baking", "ctx_a": "She mixes.", "ctx_b": "she", "ctx": f"She mixes {i}. she",
            "endings": ["bakes.", "swims.", "drives.", "sings."], "source_id": "x", "split": "train",
            "split_type": "indomain", "label": str(i),
        }
        for i in range(4)
    ],
    "winogrande": [
        {"sentence": f"Ann sold Eve a car as _ moved {i}.", "option1": "Ann", "option2": "Eve", "answer": str(i + 1)}
        for i in range(2)
    ],
}  # fmt: skip

PAIR_TASKS = ("capitals", "first_of_five", "capitalize", "animal_of_five", "plurals", "english_french")


def write_jsonl(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_task(folder: Path, rows: list[dict[str, Any]], name: str = "things", **splits: list[dict[str, Any]]) -> Path:
    """A data folder whose task `name` has these rows in both splits, unless `splits` says otherwise."""
    for split in ("train", "validation"):
        write_jsonl(folder / name / f"{split}.jsonl", splits.get(split, rows))
    return folder


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"text": f"thing number {index}", "label": index % 2} for index in range(count)]


def make_config(data_dir: Path | None = None, finetune: dict[str, Any] | None = None, **task: Any) -> Config:
    """A config of a two-label task named `things`."""
    wording: dict[str, Any] = {"templates": ["Thing: {{ text }} Kind:"], "labels": ["Negative", "Positive"], "shots": 2}
    if task.get("options") or task.get("options_column"):
        wording["labels"] = []
    config = Config(
        model=ModelConfig(name="none", bos="<|endoftext|>"),
        task=TaskConfig(**{"name": "things", **wording, **task}),
        finetune=FinetuneConfig(name="gd", lr=1e-3, **(finetune or {})),
        protocol=ProtocolConfig(name="deutch2024"),
        metric=MetricConfig(scores={"sim_aou": ScoreConfig(function="sim_aou", label="SimAOU")}),
    )
    config.paths.data_dir = None if data_dir is None else str(data_dir)
    return config


def from_json(content: Mapping[str, Any]) -> PromptSet:
    """The prompts that `as_json` wrote, put together again by a reader of prompts.json."""
    labels = tuple(tuple(ids) for ids in content["label_token_ids"])
    demonstrations = tuple(_read(item, labels, True) for item in content["demonstrations"])
    training = content.get("training")
    return PromptSet(
        bos=tuple(content["bos"]),
        separator=tuple(content["separator"]),
        demonstrations=demonstrations,
        queries=tuple(_read(item, labels, False) for item in content["queries"]),
        label_words=tuple(content["label_words"]),
        label_token_ids=labels,
        in_context=tuple(content.get("in_context", range(len(demonstrations)))),
        training=None if training is None else tuple(_read(item, labels, True) for item in training),
    )


def _read(content: Mapping[str, Any], labels: tuple[tuple[int, ...], ...], answered: bool) -> Item:
    own = content.get("options")
    options = None if own is None else tuple(tuple(option) for option in own)
    label = content["label"]
    length = len((labels if options is None else options)[label]) if answered else 0
    return Item(content["text"], tuple(content["token_ids"]), label, length, options)
