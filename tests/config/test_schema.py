"""Composed configs become typed ones, or the key that stands in the way is named."""

import dataclasses
import typing
from enum import EnumType

import pytest
from omegaconf import OmegaConf, open_dict

from configs import composed
from iclgd.config import Config, ConfigError, typed, variants

CHOICES = [
    (f"{group.name}.{key}", kind)
    for group in dataclasses.fields(Config)
    if dataclasses.is_dataclass(group_type := typing.get_type_hints(Config)[group.name])
    for key, kind in typing.get_type_hints(group_type).items()
    if isinstance(kind, EnumType)
]


@pytest.mark.parametrize(("key", "kind"), CHOICES)
def test_a_wrong_choice_names_the_key_and_the_choices(key, kind):
    values = OmegaConf.to_container(composed(["model=toy", "task=toy"]), resolve=True)
    group, name = key.split(".")
    values[group][name] = "sideways"
    with pytest.raises(ConfigError) as refused:
        typed(values)
    assert str(refused.value).startswith(f"{key}: ") and all(str(choice) in str(refused.value) for choice in kind)


def test_what_hydra_merged_and_plain_values_are_typed_alike():
    whole = composed(["finetune=gd", "finetune.layers=0-3", "+metric=alpha", "model=toy", "sweep_name=mine"], True)
    plain = OmegaConf.to_container(OmegaConf.masked_copy(whole, [key for key in whole if key != "hydra"]), resolve=True)
    assert typed(whole) == typed(plain)
    assert typed(whole).finetune.layers == "0-3" and "alpha" in typed(whole).metric.scores


@pytest.mark.parametrize(
    ("group", "key", "said"),
    [
        ("task", "shot", r"unknown key task\.shot: did you mean task\.shots"),
        ("task", "zzz", r"unknown key task\.zzz: the keys here are answer_column, choices"),
        (None, "typo", r"unknown key typo: the keys here are finetune, metric, model"),
    ],
)
def test_unknown_keys_are_refused_with_those_that_are_near(group, key, said):
    config = composed(["model=toy", "task=toy"])
    node = config if group is None else config[group]
    with open_dict(node):
        node[key] = 3
    with pytest.raises(ConfigError, match=said):
        typed(config)


def test_a_value_that_must_be_given_is_named():
    with pytest.raises(ConfigError, match=r"model\.name is not set: give model\.name="):
        typed(composed(["model=hf"]))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lr": 1.0, "epoch": 2}, "Key 'epoch' not in 'FinetuneConfig'"),
        ({"lr": 1.0, "epochs": "many"}, "Value 'many' of type 'str' could not be converted to Integer"),
        ({"lr": "${task.rate.gd}"}, "Interpolation key 'task.rate.gd' not found"),
        ({"epochs": 2}, "lr is not set: give"),
        ({"lr": -1.0}, "finetune.lr=-1.0 cannot train"),
    ],
)
def test_mistakes_in_another_variants_settings_are_named(values, said, tmp_path, monkeypatch):
    OmegaConf.save({"name": "mine", **values}, tmp_path / "mine.yaml")
    monkeypatch.setattr(variants, "config_files", lambda group: {"mine": tmp_path / "mine.yaml"})
    with pytest.raises(ConfigError) as refused:
        variants.variant(typed(composed(["model=toy", "task=toy"])), "mine")
    assert said in str(refused.value)
