"""Rows as the hub lays them out, for every task file, and configs built without Hydra."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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


def _labelled(count: int, label: str = "label", **columns: str) -> list[dict[str, Any]]:
    """A row for each label, with its number where a column has {}."""
    return [{**{name: text.format(i) for name, text in columns.items()}, label: i} for i in range(count)]


# task: rows with the columns of its hub data set
HUB_ROWS: dict[str, list[dict[str, Any]]] = {
    "sst2": _labelled(2, idx="{}", sentence="a film number {}"),
    "sst5": _labelled(5, text="film number {}", label_text="x"),
    "mr": _labelled(2, text="too long {}"),
    "subj": _labelled(2, text="he leaves home {}", label_text="objective"),
    "agnews": _labelled(4, text="story {}"),
    "cb": _labelled(3, premise="It rained on day {}.", hypothesis="it rained", idx="{}"),
    "trec": _labelled(6, "coarse_label", text="What is {} ?", fine_label="4{}"),
    "rte": _labelled(2, sentence1="It rains.", sentence2="It is wet {}.", idx="{}"),
    "boolq": _labelled(2, question="is it {}", passage="It is one.", idx="{}"),
    "dbpedia_14": _labelled(14, title="Thing {}", content="Thing {} is a thing."),
    "imdb": _labelled(2, text="A long<br />review {}"),
    "wic": _labelled(2, word="bank", sentence1="The bank rose.", sentence2="A bank of snow {}.", start1="4", end1="8"),
    "qnli": _labelled(2, question="Who?", sentence="She did {}.", idx="{}"),
    "tweet_emotion": _labelled(4, text="@user day {}"),
    "piqa": _labelled(2, goal="Dry a cup {}", sol1="use a towel", sol2="use a stone"),
    "copa": [
        {
            "premise": f"Lamp {i} broke.", "choice1": "It fell.", "choice2": "It rained.",
            "question": ["cause", "effect"][i], "idx": i, "label": i,
        }
        for i in range(2)
    ],
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
