"""The toy models and their rows: what `model=toy` and `model=toy_plane` promise, and that the generator makes them."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs import config
from iclgd.common import paths
from iclgd.config import RuntimeConfig
from iclgd.models.loading import load
from toy import language, plane, training
from toy.__main__ import ROWS, main, write_rows

FILES = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


def test_committed_rows_are_what_the_script_writes(tmp_path: Path):
    write_rows(tmp_path, seed=0)
    assert {folder.name for folder in tmp_path.iterdir()} == {*language.TASKS, *plane.TASKS}
    for file in tmp_path.glob("*/*.jsonl"):
        task, split = file.parent.name, file.stem
        assert file.read_text() == (paths.bundled_data_folder() / task / file.name).read_text()
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        if task in plane.TASKS:
            assert len(rows) == {"train": 81, "test": 100}[split]
            assert 0.4 <= sum(row["label"] for row in rows) / len(rows) <= 0.6
            assert {row[axis] % 2 for row in rows for axis in "xy"} == {split == "train"}, "no query is a demonstration"
        else:
            assert len(rows) == ROWS[split] and Counter(row["label"] for row in rows) == {0: 48, 1: 48}
            assert len({row["text"] for row in rows}) == len(rows)
            topics = [language.TOPICS[language.TASKS[task][row["label"]]] for row in rows]
            assert all(set(row["text"].split()) <= set(topic) for row, topic in zip(rows, topics, strict=True))


def test_committed_weights_and_vocabulary_are_those_of_the_generator():
    folder = paths.toy_model_folder()
    assert {path.name for path in folder.iterdir()} == FILES
    weights, network = load_file(folder / "model.safetensors"), training.train(curriculum=())[0]
    assert sum(tensor.numel() for tensor in weights.values()) == 169_024
    assert {tensor.shape for tensor in network.state_dict().values()} >= {each.shape for each in weights.values()}
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == language.tokenizer().get_vocab()


@pytest.mark.parametrize("shots", [4, 16])
def test_it_learns_in_context_and_knows_nothing_without(shots: int):
    model = load(config("model=toy").model, RuntimeConfig(device="cpu"))
    assert training.accuracy(model.network, model.tokenizer, shots - 1, contexts=128) > 0.95
    assert abs(training.accuracy(model.network, model.tokenizer, 0, contexts=400) - 0.5) < 0.12


def test_the_model_of_the_plane_learns_borders_in_context_and_knows_none_without():
    model = load(config("model=toy_plane").model, RuntimeConfig(device="cpu"))
    assert model.tokenizer.get_vocab() == plane.tokenizer().get_vocab()
    accuracies = [plane.accuracy(model.network, shots) for shots in (0, 8, 32)]
    assert abs(accuracies[0] - 0.5) < 0.1 and accuracies[1] > 0.75 and accuracies[2] > 0.85


@pytest.mark.parametrize("train", [plane.train, training.train])
def test_training_goes_down_and_the_same_way_again(train):
    stages = ((8, 8, 30),) if train is plane.train else (training.Stage(4, 16, 20),)
    losses: list[float] = []
    network, _ = train(stages, after_step=lambda loss, *_: losses.append(loss))
    again, _ = train(stages)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    assert losses[-1] < 0.8 * losses[0]
    if train is training.train:
        assert losses[0] == pytest.approx(math.log(len(language.VOCABULARY)), rel=0.05), "it begins at chance"


@pytest.mark.soak
def test_the_script_makes_the_committed_model(tmp_path: Path):
    main(["--out", str(tmp_path)])
    folders = (tmp_path / "models" / "toy", paths.toy_model_folder())
    new, committed = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in folders)
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    for shots in (4, 8, 15):
        accuracy = training.accuracy(new, tokenizer, shots)
        assert accuracy > 0.95
        assert accuracy == pytest.approx(training.accuracy(committed, tokenizer, shots), abs=0.03)
    assert abs(training.accuracy(new, tokenizer, 0) - 0.5) < 0.12
