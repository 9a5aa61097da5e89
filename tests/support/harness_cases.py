"""Two small tasks as lm-evaluation-harness describes them: like CB, and endings of sentences."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from iclgd.common import paths
from task_cases import write_jsonl

ENDINGS = [
    ("She put the kettle on the stove and waited until the water", "boiled.", "sang a song about the sea and left."),
    ("He dropped the glass, and on the stone floor it", "broke into a hundred pieces.", "grew."),
    ("The dog heard its name and", "ran to the door.", "opened a bank account in the city."),
    ("After three weeks without rain, the garden was", "dry.", "married."),
    ("They pushed the boat off the beach and", "rowed out to the island.", "ate it with butter and salt."),
    ("The baker took the loaves out of the", "oven.", "newspaper, one after the other."),
    ("It was so dark in the cellar that he lit a", "candle.", "river."),
    ("When the bell rang, the children", "ran out into the yard.", "froze to ice in the pan."),
    ("She had forgotten her umbrella, and by the time she got home she was", "wet.", "a town in the north."),
    ("The cat sat in front of the mouse hole and", "waited.", "typed a long letter to the mayor."),
    ("He had eaten nothing all day and was", "hungry.", "purple and made of wood."),
    ("The train was late, so they", "missed their connection.", "poured it into a cup."),
    ("Because the battery was empty, the torch", "would not light.", "laughed."),
    ("She read the last page and closed the", "book.", "ocean with both of her hands."),
    ("In winter the lake freezes, and people go there to", "skate.", "swim in the warm water under palm trees."),
    ("The tailor measured the cloth and cut it with his", "scissors.", "neighbour."),
]


def _bundled(task: str, split: str, count: int) -> list[dict]:
    lines = (paths.bundled_data_folder() / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def _endings() -> list[dict]:
    return [{"ctx": c, "ends": [a, b] if i % 2 else [b, a], "gold": 1 - i % 2} for i, (c, a, b) in enumerate(ENDINGS)]


TASKS = {
    "claims": {
        "description": "Decide what follows from each passage.\n\n",
        "doc_to_text": "{{premise}}\nQuestion: {{hypothesis}}. True, False, or Neither?\nAnswer: ",
        "target_delimiter": "",
        "doc_to_choice": ["True", "False", "Neither"],
        "doc_to_target": "label",
    },
    "endings": {
        "doc_to_text": "ctx",
        "doc_to_choice": "{{ends}}",
        "doc_to_target": "{{gold}}",
        "fewshot_delimiter": "\n\n\n",
    },
}


def write_harness_tasks(folder: Path) -> dict[str, Path]:
    """The yaml of each task by name, with its rows beside it."""
    rows = {
        "claims": (_bundled("entailment", "train", 8), _bundled("entailment", "test", 8)),
        "endings": (_endings()[:8], _endings()[8:16]),
    }
    written = {}
    for name, (train, test) in rows.items():
        files = {
            "train": str(write_jsonl(folder / name / "train.jsonl", train)),
            "test": str(write_jsonl(folder / name / "test.jsonl", test)),
        }
        metrics = [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ]
        content = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "output_type": "multiple_choice",
            "training_split": "train",
            "test_split": "test",
            "metric_list": metrics,
            **TASKS[name],
        }
        written[name] = folder / f"{name}.yaml"
        written[name].write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return written
