"""Strangers' models are loaded whole, or refused by name; what their configs demand is not obeyed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs import config
from hostile_models import CASES, WEIGHTS, foreign_token, write_model
from iclgd import experiment
from iclgd.config import ConfigError, ModelConfig, RuntimeConfig
from iclgd.models import loading
from iclgd.models.files import model_inputs
from iclgd.models.loading import load
from iclgd.runs.execute import Ending, execute
from iclgd.runs.folder import RunFolder, State
from limits import bounded

RUNTIME = RuntimeConfig(device="cpu")
TOKENS = torch.arange(5, 14)[None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def expected(whole) -> torch.Tensor:
    return logits(load(ModelConfig(name=str(whole)), RUNTIME))


@pytest.fixture(autouse=True)
def nothing_held():
    loading._LAST.clear()


def logits(model) -> torch.Tensor:
    return model.anatomy.unembed(model.network.model(input_ids=TOKENS).last_hidden_state)


def copied(whole: Path, place: Path) -> Path:
    """The whole model, and beside it a folder with weights that would give other numbers."""
    shutil.copytree(whole, place / "model")
    shutil.copytree(whole, place / "outside")
    other = {name: tensor * 2 for name, tensor in load_file(whole / WEIGHTS).items()}
    save_file(other, place / "outside" / WEIGHTS, {"format": "pt"})
    return place / "model"


@pytest.mark.parametrize("name", CASES)
def test_a_strangers_model_is_loaded_whole_or_refused_by_name(name, whole, expected, tmp_path):
    case, folder = CASES[name], copied(whole, tmp_path / "theirs")
    case.damage(folder)
    model = ModelConfig(name=str(folder), file=case.file)
    with bounded():
        if case.refused is None:
            assert torch.equal(logits(load(model, RUNTIME)), expected)
        else:
            with pytest.raises(ConfigError) as refused:
                load(model, RUNTIME)
            said = str(refused.value)
            assert re.search(case.refused, said) and str(folder) in said, said
            assert "\n" not in said and len(said) < 1500


def test_the_files_of_a_sharded_model_are_all_named(whole, tmp_path):
    folder = copied(whole, tmp_path)
    assert WEIGHTS in model_inputs(ModelConfig(name=str(folder)))
    CASES["shards in a folder"].damage(folder)
    model = load(ModelConfig(name=str(folder)), RUNTIME)
    assert {"deep/part-0.safetensors", "deep/part-1.safetensors"} <= set(model.identity["sha256"])


def test_a_damaged_model_never_ends_in_done(whole, tmp_path):
    for name in ("a weight is missing", "more layers than weights", "another family", "NaN in a weight"):
        folder = copied(whole, tmp_path / name)
        CASES[name].damage(folder)
        run = tmp_path / "runs" / name
        settings = ("model=hf", f"model.name='{folder}'", "task=reviews", "task.queries=2", "task.shots=2")
        outcome = execute(config(*settings, "tracking=none", "runtime.cache=off"), run, experiment.run)
        assert outcome.ending is Ending.refused and str(folder) in outcome.message
        assert RunFolder(run).state() is State.failed


def test_token_ids_beyond_the_vocabulary_are_refused_by_name(whole, tmp_path):
    folder = copied(whole, tmp_path)
    foreign_token(folder)
    settings = ("model=hf", f"model.name='{folder}'", "task=reviews", "task.queries=2", "task.shots=2")
    changes = ("task.labels=[terrible,good]", "tracking=none", "runtime.cache=off")
    outcome = execute(config(*settings, *changes), tmp_path / "run", experiment.run)
    assert outcome.ending is Ending.refused
    assert re.search(r"makes token 384 of ' terrible', but the model knows tokens 0 to 383", outcome.message)
