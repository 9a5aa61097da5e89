"""The toy model: what it reads, what it can do, that its script makes it, and that it makes runs short."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from command_line import iclgd
from configs import config
from iclgd.cli.command import run
from iclgd.common import paths
from iclgd.common.seeding import numpy_stream
from iclgd.config import RuntimeConfig
from iclgd.config.enumerations import Weights
from iclgd.models.loading import load
from toy import language, training
from toy.__main__ import ROWS, main, write_rows

BUNDLED = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


def read(folder: Path, task: str, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / task / f"{split}.jsonl").read_text().splitlines()]


def test_topics_share_no_word_and_the_vocabulary_has_each_once():
    words = [word for topic in language.TOPICS.values() for word in topic]
    assert all(len(topic) == 16 for topic in language.TOPICS.values())
    assert len(set(language.VOCABULARY)) == len(language.VOCABULARY) == 4 + 4 + len(words)
    tokenizer = language.tokenizer()
    assert tokenizer("<bos> otter lynx -> A <sep> zebra", add_special_tokens=False)["input_ids"] == [
        language.VOCABULARY.index(word) for word in ("<bos>", "otter", "lynx", "->", "A", "<sep>", "<unk>")
    ]


def test_a_label_means_what_its_context_says_and_nothing_else():
    stream, meanings, commoner = numpy_stream("test", 0), Counter(), Counter()
    for _ in range(600):
        found = language.context(6, stream)
        parts = found.text.removeprefix("<bos> ").split(" <sep> ")
        assert len(parts) == 6 and parts[-1].endswith(f"-> {found.answer}")
        here = {}
        for part in parts:
            item, label = part.split(" -> ")
            topics = {name for word in item.split() for name, words in language.TOPICS.items() if word in words}
            assert len(topics) == 1 and len(set(item.split())) == len(item.split()) in (2, 3, 4)
            assert here.setdefault(label, topics) == topics and label in found.options
        for label, topics in here.items():
            meanings[label, *topics] += 1
        commoner.update(found.options)
    for label in language.LABEL_WORDS:
        counts = [meanings[label, topic] for topic in language.TOPICS]
        usual = sum(counts) / len(counts)
        assert all(abs(count - usual) < 4 * math.sqrt(usual) for count in counts), (label, counts)
    assert commoner["A"] > commoner["B"] > commoner["C"] > commoner["D"]


def test_the_longest_context_fits_the_window():
    longest = 1 + 16 * (max(language.WORDS_OF_AN_ITEM) + 3) + max(language.WORDS_OF_AN_ITEM) + 2
    assert longest <= language.WINDOW


def test_losses_are_the_labels_and_everything_else_without_padding():
    tokenizer, width = language.tokenizer(), len(language.VOCABULARY)
    token_ids, real = training.encoded(["<bos> otter lynx -> A", "<bos> axe saw rake -> B <sep> axe -> B"], tokenizer)
    assert token_ids.shape == (2, 10) and real.sum(1).tolist() == [5, 10]
    logits = torch.randn(2, 10, width, generator=torch.Generator().manual_seed(0))

    network = training.train(curriculum=())[0]
    network.forward = lambda **_: SimpleNamespace(logits=logits)
    losses = logits.log_softmax(-1)
    label_at, word_at = [(0, 4), (1, 5), (1, 9)], [(0, 1), (0, 2), (0, 3), *((1, t) for t in (1, 2, 3, 4, 6, 7, 8))]
    expected = [
        -torch.stack([losses[row, at - 1, token_ids[row, at]] for row, at in where]).mean()
        for where in (label_at, word_at)
    ]
    torch.testing.assert_close(list(training.losses(network, token_ids, real)), expected)


def test_committed_rows_are_what_the_script_writes(tmp_path: Path):
    write_rows(tmp_path, seed=0)
    for task, topics in language.TASKS.items():
        splits = {split: read(tmp_path, task, split) for split in ROWS}
        for split, rows in splits.items():
            committed = (paths.bundled_data_folder() / task / f"{split}.jsonl").read_text()
            assert committed == (tmp_path / task / f"{split}.jsonl").read_text()
            assert len(rows) == ROWS[split] and Counter(row["label"] for row in rows) == {0: 48, 1: 48}
            for row in rows:
                assert set(row["text"].split()) <= set(language.TOPICS[topics[row["label"]]])
        texts = [row["text"] for rows in splits.values() for row in rows]
        assert len(set(texts)) == len(texts)


def test_committed_files_are_small_and_safe():
    folder = paths.toy_model_folder()
    assert {path.name for path in folder.iterdir()} == BUNDLED
    assert (folder / "model.safetensors").stat().st_size < 4_000_000
    weights = load_file(folder / "model.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) == 169_024
    committed, made = AutoTokenizer.from_pretrained(folder).get_vocab(), language.tokenizer().get_vocab()
    assert committed == made
    assert {tensor.shape for tensor in training.train(curriculum=())[0].state_dict().values()} >= {
        tensor.shape for tensor in weights.values()
    }


@pytest.mark.parametrize("shots", [4, 8, 16])
def test_it_learns_in_context_and_knows_nothing_without(shots: int):
    model = load(config("model=toy").model, RuntimeConfig(device="cpu"))
    assert training.accuracy(model.network, model.tokenizer, shots - 1, contexts=128) > 0.95
    assert abs(training.accuracy(model.network, model.tokenizer, 0, contexts=400) - 0.5) < 0.12


def test_an_untrained_model_of_its_shape_cannot():
    made = config("model=toy")
    made.model.weights = Weights.random
    model = load(made.model, RuntimeConfig(device="cpu"))
    assert training.accuracy(model.network, model.tokenizer, 8, contexts=128) < 0.7


def test_training_begins_well_and_the_same_way_again():
    """In the first steps it learns that after an arrow comes a label, and begins to learn topics."""
    seen: list[tuple[float, float]] = []
    short = (training.Stage(4, 16, 60),)
    network, _ = training.train(short, seed=0, after_step=lambda *losses: seen.append(losses))
    again, _ = training.train(short, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    chance = math.log(len(language.VOCABULARY))
    assert seen[0][0] == pytest.approx(chance, rel=0.05) and seen[0][1] == pytest.approx(chance, rel=0.05)
    assert seen[-1][0] < 1.6 and seen[-1][1] < 3.6


def test_the_script_says_how_training_goes_and_writes_a_model_that_loads(tmp_path: Path, monkeypatch, caplog):
    train = training.train
    short = lambda seed, after_step: train((training.Stage(1, 2, 100),), seed=seed, after_step=after_step)  # noqa: E731
    monkeypatch.setattr(training, "train", short)
    monkeypatch.setattr(training, "accuracy", lambda network, tokenizer, shots: shots / 100)
    caplog.set_level("INFO", "toy")
    main(["--out", str(tmp_path)])
    lines = [record.getMessage() for record in caplog.records if record.name == "toy"]
    assert [line[:10] for line in lines] == ["step  100 ", *["accuracy a"] * 6]
    assert lines[-1] == "accuracy after 15 demonstrations: 0.150"
    assert {path.name for path in (tmp_path / "toy" / "model").iterdir()} == BUNDLED


@pytest.mark.soak
def test_the_script_makes_the_committed_model(tmp_path: Path):
    main(["--out", str(tmp_path)])
    made, committed = (
        AutoModelForCausalLM.from_pretrained(folder).eval()
        for folder in (tmp_path / "toy" / "model", paths.toy_model_folder())
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "toy" / "model")
    for shots in (4, 8, 15):
        assert training.accuracy(made, tokenizer, shots) > 0.95
        assert training.accuracy(made, tokenizer, shots) == pytest.approx(
            training.accuracy(committed, tokenizer, shots), abs=0.03
        )
    assert abs(training.accuracy(made, tokenizer, 0) - 0.5) < 0.12
    assert {path.name for path in (tmp_path / "toy" / "model").iterdir()} == BUNDLED


def test_an_ordinary_run_on_the_command_line(tmp_path: Path):
    ended = iclgd(tmp_path, "model=toy", "task=toy", "tracking=none", "runtime.device=cpu", fake=False)
    assert ended.returncode == 0, ended.stderr
    (folder,) = (tmp_path / "outputs" / "single").iterdir()
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["accuracy/zsl"]["mean"] == 0.5 and scores["accuracy/icl"]["mean"] > 0.95
    assert scores["accuracy/icl"]["n"] == 96


def test_why_lcgd(tmp_path: Path, capsys):
    """Two variants with rates of their own and two that have none: eight points, of which two repeat others."""
    few = ("finetune=none,gd,lcgd_norm_matched,replay", "task.rates={gd:0.1,lcgd:0.1},{gd:0.3,lcgd:0.3}")
    less = (
        "model.weights=pretrained",
        "task.queries=8",
        "task.shots=4",
        "tracking=none",
        "runtime.device=cpu",
        "seed=0",
    )
    ended = run(["sweeps=why_lcgd", "model=toy", "task=toy", *few, *less, f"paths.outputs={tmp_path / 'outputs'}"])
    assert ended.code == 0 and "6 done, 2 skipped" in capsys.readouterr().out, ended.message
    found = {}
    for folder in (tmp_path / "outputs" / "why_lcgd").iterdir():
        if (folder / "scores.json").is_file():
            settings = yaml.safe_load((folder / "config.yaml").read_text())["finetune"]
            found[settings["name"], settings["lr"]] = json.loads((folder / "scores.json").read_text())
    assert set(found) == {("none", 1.0), ("replay", 1.0)} | {
        (name, rate) for name in ("gd", "lcgd_norm_matched") for rate in (0.1, 0.3)
    }
    assert found["replay", 1.0]["sim_aou"]["mean"] == pytest.approx(1, abs=1e-6)
    assert found["none", 1.0]["sim_aou"]["mean"] is None and found["none", 1.0]["sim_aou"]["undefined"] > 0
    noise = {entry["sim_aou_reordered"]["mean"] for entry in found.values()}
    assert len(noise) == 1 and 0.3 < noise.pop() < 1
