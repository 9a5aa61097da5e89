"""An estimate of memory and time counts what a model has, from its config.json alone."""

import dataclasses
import re

import pytest
import torch
from transformers import AutoConfig

from command_line import ROOT
from configs import config
from iclgd.config import ConfigError, RuntimeConfig
from iclgd.config.enumerations import Placement
from iclgd.evidence import memory
from iclgd.evidence.memory import Machine, estimate_of, refuse_too_large
from tiny_models import CONFIGS, tiny_network

MACHINE = Machine("cuda", (10.0,), 20.0, 100.0, 1e12)
SMALL = config("model=toy", "task=toy", "runtime.dtype=float32", "finetune=gd", "task.queries=10", "task.shots=4")


def estimated(family, run=SMALL, machine=MACHINE):
    return estimate_of(AutoConfig.for_model(family, **CONFIGS[family]), run, machine)


def with_runtime(**changes):
    return dataclasses.replace(SMALL, runtime=dataclasses.replace(SMALL.runtime, **changes))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_weights_and_what_is_trained_are_counted(family):
    network = tiny_network(family)
    found = estimated(family)
    assert found.weights == sum(parameter.numel() for parameter in network.parameters()) * 4 / 1e9
    names = {"llama": ("k_proj", "v_proj"), "gpt2": ("c_attn",), "bloom": ("query_key_value",)}[family]
    trained = sum(p.numel() for name, p in network.named_parameters() if any(f"{n}." in name for n in names))
    assert found.trained == pytest.approx(trained * (4 + 4 + 4) / 1e9)  # what it was, its gradient, its change


def test_half_weights_take_half_the_memory_and_float32_copies_of_what_is_trained():
    whole, half = estimated("llama"), estimated("llama", with_runtime(dtype="float32_from_bfloat16"))
    assert half.weights == whole.weights / 2
    assert half.trained == pytest.approx(whole.trained * 4 / 3)


def test_a_model_that_does_not_fit_is_refused_with_what_would_help():
    small = dataclasses.replace(MACHINE, memory=(estimated("llama").weights / 2,))
    with pytest.raises(ConfigError, match=r"cuda:0 has 0\.0 GB free, but .* runtime\.placement=auto"):
        refuse_too_large(estimated("llama", machine=small))
    refuse_too_large(estimated("llama"))


def test_layers_are_dealt_out_in_turn_and_the_rest_waits_elsewhere():
    run = with_runtime(placement=config("runtime.placement=auto").runtime.placement)
    one = estimated("llama", run)
    each = one.activations / 0.9 + one.weights / 4  # room for about a quarter of weights and training beside a pass
    several = estimated("llama", run, dataclasses.replace(MACHINE, memory=(each, each)))
    assert set(several.devices) <= {"cuda:0", "cuda:1", "cpu", "disk"} and len(several.devices) >= 2
    total = sum(several.devices.values()) - 2 * several.activations
    assert total == pytest.approx(several.weights + several.trained)


def test_small_sizes_are_written_without_exponents():
    found = memory.Estimate(9e-5, 0.001, 0.0, {"cpu": 2.04}, 0.04, 1e-12, 0.00099)
    assert str(found) == (
        "estimate: cpu 2.0 GB (weights <0.001, training 0.001, activations 0), recordings 0.04 GB, cache <0.001 GB, "
        "about <0.001 min"
    )


def test_more_queries_and_layers_take_longer():
    longer = dataclasses.replace(SMALL, task=dataclasses.replace(SMALL.task, queries=1000))
    assert estimated("llama", longer).minutes > estimated("llama").minutes > 0
    assert estimated("llama", longer).records == pytest.approx(100 * estimated("llama").records)


def test_no_weight_is_made(monkeypatch):
    made = []
    original = torch.nn.Parameter.__new__

    def watch(cls, data=None, requires_grad=True):
        made.append(data)
        return original(cls, data, requires_grad)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", watch)
    estimated("llama")
    assert made and all(data.is_meta for data in made)


SHAPES = {  # width, blocks, feed-forward width, heads, key and value heads, vocabulary
    "1.3B": (2048, 24, 5504, 16, 16, 32000),
    "7B": (4096, 32, 11008, 32, 32, 32000),
    "13B": (5120, 40, 13824, 40, 40, 32000),
    "34B": (8192, 48, 22016, 64, 8, 32000),
    "70B": (8192, 80, 28672, 64, 8, 128256),
}
ROWS = [
    tuple(cell.strip() for cell in line.strip("|\n").split("|"))
    for line in (ROOT / "docs" / "many_gpus.md").read_text().splitlines()
    if re.match(r"\| [\d.]+B ", line)
]


@pytest.mark.parametrize("size", SHAPES)
def test_the_table_of_models_and_gpus_follows_from_the_estimate(size, monkeypatch):
    names = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    shape = dict(zip((*names, "vocab_size"), SHAPES[size], strict=True))
    settings = AutoConfig.for_model("llama", **shape, tie_word_embeddings=False)
    network, rows = memory._network(settings), [row for row in ROWS if row[0] == size]
    monkeypatch.setattr(memory, "_network", lambda _: network)  # one for all rows
    assert len(rows) >= 2
    for row in rows:
        found = [of_the_table(settings, variant, *row[1:4]) for variant in ("gd", "lcgd")]
        on = found[0].devices
        fullest = max(size for device, size in on.items() if device.startswith("cuda"))
        waiting = [f"{device} {size:.0f}" for device, size in on.items() if not device.startswith("cuda")]
        fits = "no" if fullest > 78 else "with offload" if waiting else "yes"
        minutes = [f"{each.minutes:.1f}" for each in found]
        assert list(row[4:]) == [", ".join([f"{fullest:.0f}", *waiting]), fits, *minutes], row


def of_the_table(settings, variant, gpus, placement, dtype):
    run = config("model=toy", "task=sst2", f"finetune={variant}", "task.shots=32", "task.queries=2000")
    run = dataclasses.replace(run, runtime=RuntimeConfig(placement=Placement(placement), dtype=dtype))
    return estimate_of(settings, run, Machine("cuda", (78.0,) * int(gpus), 200.0, 1000.0, 40e12))


def test_every_size_of_the_table_is_recomputed():
    assert {row[0] for row in ROWS} == set(SHAPES) and len(ROWS) == 14
