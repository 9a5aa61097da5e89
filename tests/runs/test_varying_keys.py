"""The keys that tell runs apart, and what settings are called."""

from __future__ import annotations

import itertools

import pytest

from configs import config
from iclgd.config import as_dict
from iclgd.runs.varying_keys import as_text, heading, settings_of, varying_keys


def runs(**values):
    """The settings of every combination, with two underscores for a dot."""
    keys = [key.replace("__", ".") for key in values]
    return [dict(zip(keys, row, strict=True)) for row in itertools.product(*values.values())]


SCORE, K = "metric.scores.a.function", "metric.scores.a.params.k"


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        (runs(finetune__layers=["all", "0,1"], task__template=[0, 1]), ["finetune.layers", "task.template"]),
        (runs(seed=[0, 1], task__permutation=[0, 1], model__weights_seed=[0, 1]), []),
        (runs(task__query_seed=[1, 2], runtime__dtype=["float32"]), ["task.query_seed"]),
        # the rate that a variant brings is not named
        ([{"finetune.name": "gd", "finetune.lr": 1}, {"finetune.name": "lcgd", "finetune.lr": 2}], ["finetune.name"]),
        (runs(finetune__name=["gd", "lcgd"], finetune__lr=[1, 2]), ["finetune.name", "finetune.lr"]),
        # along a diagonal both are, unless one is brought
        ([{"task.shots": 4, "finetune.lr": 1}, {"task.shots": 8, "finetune.lr": 2}], ["task.shots", "finetune.lr"]),
        ([{"task.name": "a", "task.shots": 4}, {"task.name": "b", "task.shots": 8}], ["task.name"]),
        # a key that only some runs have is compared among those
        ([{SCORE: "f", K: 1}, {"metric.scores.b.function": "g"}], []),
        ([{SCORE: "f", K: 1}, {SCORE: "f"}], [K]),
        ([{"seed": 0}, {"seed": 0, "reference.name": "icl"}], []),
    ],
)
def test_the_keys_that_tell_settings_apart(settings, keys):
    assert varying_keys(settings) == keys


@pytest.mark.parametrize("key", ["task.remap", "model.chat_arguments", "model.anatomy"])
def test_a_mapping_is_one_setting(key):
    group, _, name = key.partition(".")
    configs = [as_dict(config("model=toy", "task=toy")) for _ in range(3)]
    configs[1][group][name], configs[2][group][name] = {"A": "B"}, {"A": "C"}
    assert varying_keys([settings_of(one) for one in configs]) == [key]
    configs[1][group][name], configs[2][group][name] = {1: "x", "a": "y"}, {"a": "y", 1: "x"}
    assert varying_keys([settings_of(one) for one in configs[1:]]) == []
    configs[1][group][name], configs[2][group][name] = {}, None
    assert varying_keys([settings_of(one) for one in configs]) == []


def test_texts_of_settings():
    assert [as_text(value) for value in (1e-4, None, True, "a", 3)] == ["0.0001", "none", "True", "a", "3"]
    assert heading("finetune.lr", ["finetune.lr", "task.shots"]) == "lr"
    assert heading("task.name", ["reference.name"]) == "task"
    assert heading("reference.name", ["finetune.name"]) == "reference" and heading("runtime.dtype", []) == "dtype"
    assert heading("a.k", ["a.k", "b.k"]) == "a.k"
