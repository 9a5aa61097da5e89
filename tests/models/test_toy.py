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

from command_line import iclgd
from configs import config
from iclgd.common import paths
from iclgd.config import RuntimeConfig
from iclgd.config.enumerations import Weights
from iclgd.models.loading import load
from toy import language, plane, training
from toy.__main__ import ROWS, main, write_rows

FILES = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


def test_committed_rows_are_what_the_script_writes(tmp_path: Path):
    write_rows(tmp_path, seed=0)
    for task, topics in language.TASKS.items():
        texts = []
        for split in ROWS:
            written = (tmp_path / task / f"{split}.jsonl").read_text()
            assert written == (paths.bundled_data_folder() / task / f"{split}.jsonl").read_text()
            rows = [json.loads(line) for line in written.splitlines()]
            assert len(rows) == ROWS[split] and Counter(row["label"] for row in rows) == {0: 48, 1: 48}
            texts += [row["text"] for row in rows]
            for row in rows:
                assert set(row["text"].split()) <= set(language.TOPICS[topics[row["label"]]])
        assert len(set(texts)) == len(texts)


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


def test_points_of_a_plane_have_one_side_each_and_no_query_is_a_demonstration(tmp_path: Path):
    write_rows(tmp_path, seed=0)
    for task in plane.TASKS:
        splits = {}
        for split in ("train", "test"):
            written = (tmp_path / task / f"{split}.jsonl").read_text()
            assert written == (paths.bundled_data_folder() / task / f"{split}.jsonl").read_text()
            splits[split] = [json.loads(line) for line in written.splitlines()]
            share = sum(row["label"] for row in splits[split]) / len(splits[split])
            assert 0.4 <= share <= 0.6
        assert [len(rows) for rows in splits.values()] == [81, 100]
        assert {row["x"] % 2 for row in splits["train"]} == {1} and {row["y"] % 2 for row in splits["test"]} == {0}


def test_the_model_of_the_plane_learns_borders_in_context_and_knows_none_without():
    model = load(config("model=toy_plane").model, RuntimeConfig(device="cpu"))
    assert model.tokenizer.get_vocab() == plane.tokenizer().get_vocab()
    accuracies = [plane.accuracy(model.network, shots) for shots in (0, 8, 32)]
    assert abs(accuracies[0] - 0.5) < 0.1 and accuracies[1] > 0.75 and accuracies[2] > 0.85


def test_training_of_the_plane_goes_down_and_the_same_way_again():
    losses: list[float] = []
    network, _ = plane.train(((8, 8, 30),), after_step=losses.append)
    again, _ = plane.train(((8, 8, 30),))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    assert losses[-1] < 0.5 * losses[0]


def test_an_untrained_model_of_its_shape_cannot():
    untrained = config("model=toy")
    untrained.model.weights = Weights.random
    model = load(untrained.model, RuntimeConfig(device="cpu"))
    assert training.accuracy(model.network, model.tokenizer, 8, contexts=128) < 0.7


def test_training_begins_at_chance_and_the_same_way_again():
    seen: list[tuple[float, float]] = []
    short = (training.Stage(4, 16, 20),)
    network, _ = training.train(short, seed=0, after_step=lambda *losses: seen.append(losses))
    again, _ = training.train(short, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    assert seen[0] == pytest.approx([math.log(len(language.VOCABULARY))] * 2, rel=0.05)
    assert seen[-1][0] < 0.8 * seen[0][0]


def test_the_script_writes_rows_and_a_model_that_loads(tmp_path: Path, monkeypatch, caplog):
    train = training.train
    monkeypatch.setattr(
        training, "train", lambda seed, after_step: train((training.Stage(1, 2, 100),), seed, after_step)
    )
    monkeypatch.setattr(training, "accuracy", lambda network, tokenizer, shots: shots / 100)
    short = plane.train
    monkeypatch.setattr(plane, "train", lambda seed: short(((4, 2, 1),), seed))
    monkeypatch.setattr(plane, "accuracy", lambda network, shots: shots / 100)
    caplog.set_level("INFO", "toy")
    main(["--out", str(tmp_path)])
    assert caplog.messages[0].startswith("step  100") and "after 15 demonstrations: 0.150" in caplog.text
    for name in ("toy", "toy_plane"):
        assert {path.name for path in (tmp_path / "models" / name).iterdir()} == FILES
    assert {path.name for path in (tmp_path / "tasks" / "bundled").iterdir()} == {*language.TASKS, *plane.TASKS}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "toy").num_parameters() == 169_024


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


def test_an_ordinary_run_on_the_command_line(tmp_path: Path):
    ended = iclgd(tmp_path, "model=toy", "task=toy", "tracking=none", "runtime.device=cpu", fake=False)
    assert ended.returncode == 0, ended.stderr
    (folder,) = (tmp_path / "outputs" / "single").iterdir()
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["accuracy/zsl"]["mean"] == 0.5 and scores["accuracy/icl"]["mean"] > 0.95
    assert scores["accuracy/icl"]["n"] == 96
