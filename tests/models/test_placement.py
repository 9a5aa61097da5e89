"""A model gives the same numbers on several devices as on one, and what cannot be placed is refused by name."""

from contextlib import nullcontext

import pytest
import torch
from placement.placement_cases import VARIANTS, everything, furthest, placed_model, plain
from placement.pretend_devices import MixedDevicesError, pretending
from placement.together import only_run, same_as_alone, torchrun
from transformers import AutoConfig

from configs import config
from iclgd.common import ranks
from iclgd.config import ConfigError, ModelConfig, RuntimeConfig
from iclgd.config.enumerations import Placement, Weights
from iclgd.mechanisms import finetuned, parity
from iclgd.models import loading, offload
from iclgd.models.anatomy import UnsupportedModelError
from iclgd.models.loading import assemble
from iclgd.models.placement import (
    check_processes,
    devices_of,
    dispatched,
    loading_arguments,
    placed,
    refuse_impossible,
    spread,
)
from learning_cases import prompts
from tiny_models import CONFIGS, tiny_network


@pytest.mark.parametrize("devices", [("cpu:0", "cpu:1"), ("cpu:0", "cpu"), ("cpu", "disk")])
def test_the_numbers_are_those_of_one_device(devices, tmp_path):
    """Blocks dealt out over devices, or waiting in CPU memory or on disk; every family is in tests/placement."""
    alone = everything(assemble(tiny_network("llama"), None), ("lcgd",))
    with pretending() if "cpu:0" in devices else nullcontext():
        model = placed_model("llama", tmp_path, *devices)
        assert any(map(offload._hook, model.network.modules())) == (devices[1] != "cpu:1")
        shared = plain(everything(model, ("lcgd",)))
    assert furthest(alone, shared)[0] < 1e-5


def test_tensors_of_two_devices_do_not_mix():
    with pretending():
        one, other = torch.ones(2).to("cpu:0"), torch.ones(2).to("cpu:1")
        for left, right in ((one, other), (one, torch.ones(2)), (torch.ones(2), other)):
            with pytest.raises(MixedDevicesError):
                left + right
        assert (one + other.to(one.device)).tolist() == (one + 1).tolist() == [2, 2]
        assert torch.zeros(1, device=other.device).device == torch.device("cpu:1")


def test_offloaded_weights_do_not_pile_up_for_the_backward_pass(tmp_path, monkeypatch):
    """Autograd keeps a way to read each frozen weight again, not the weight."""
    model, read = placed_model("llama", tmp_path, "disk"), []
    again = offload._view
    monkeypatch.setattr(offload, "_view", lambda module, *rest: read.append(module) or again(module, *rest))
    with finetuned(model, prompts(), VARIANTS["gd"]):
        pass
    frozen = {model.anatomy.part(layer, f"mlp.{name}_proj") for layer in (1, 2) for name in ("gate", "up", "down")}
    assert frozen <= set(read)


def settings(family):
    kind = "falcon" if family.startswith("falcon") else "opt" if family.startswith("opt") else family
    return AutoConfig.for_model(kind, **CONFIGS[family])


def refused(monkeypatch, family, count=2, runtime=None, **model):
    monkeypatch.setattr(ranks, "count", lambda: count)
    runtime = runtime or RuntimeConfig(placement=Placement.tensor_parallel)
    with pytest.raises(ConfigError) as error:
        refuse_impossible(ModelConfig(name="somebody/model", **model), runtime, settings(family))
    return str(error.value)


def test_what_cannot_be_split_is_refused_by_name(monkeypatch):
    for family in ("gpt2", "falcon"):
        assert f"cannot split the family '{family}': set runtime.placement=auto" in refused(monkeypatch, family)
    assert "cannot split 2 key and value heads evenly" in refused(monkeypatch, "llama", count=4)
    assert "does not go with model.weights=random" in refused(monkeypatch, "llama", weights=Weights.random)
    assert "does not go with a GGUF file" in refused(monkeypatch, "llama", file="x.gguf")
    half = RuntimeConfig(placement=Placement.tensor_parallel, dtype="float32_from_bfloat16")
    assert "does not go with runtime.dtype=float32_from_bfloat16" in refused(monkeypatch, "llama", runtime=half)


def test_placements_that_do_not_go_with_how_the_command_was_started_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"needs several processes: start them with\s+torchrun"):
        check_processes(RuntimeConfig(placement=Placement.tensor_parallel))
    for key, value in (("device_map", "balanced"), ("max_memory", {0: "1GB"}), ("offload_folder", "x")):
        with pytest.raises(ConfigError, match=rf"runtime\.{key} is for runtime\.placement=auto, not single"):
            check_processes(RuntimeConfig(**{key: value}))
    with pytest.raises(ConfigError, match=r"runtime\.device_map=all is not known: write one of auto, balanced"):
        check_processes(RuntimeConfig(placement=Placement.auto, device_map="all"))
    monkeypatch.setattr(ranks, "count", lambda: 2)
    with pytest.raises(ConfigError, match=r"torchrun started 2 processes, but runtime\.placement=auto needs one"):
        check_processes(RuntimeConfig(placement=Placement.auto))


def test_quantised_weights_are_refused_by_the_name_of_their_method():
    config = settings("llama")
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(ConfigError, match=r"quantised by bitsandbytes, .*float32_from_bfloat16.*GGUF file"):
        refuse_impossible(ModelConfig(name="somebody/model"), RuntimeConfig(), config)
    refuse_impossible(ModelConfig(name="somebody/model", file="x.gguf"), RuntimeConfig(), config)


def test_devices_are_written_as_accelerate_reads_them():
    runtime = RuntimeConfig(placement=Placement.auto, max_memory={"0": "20GB", "cpu": "100GB"}, device_map="balanced")
    arguments = loading_arguments(runtime, settings("llama"))
    assert arguments == {"device_map": "balanced", "max_memory": {0: "20GB", "cpu": "100GB"}}
    assert loading_arguments(RuntimeConfig(), settings("llama")) == {}
    waiting = RuntimeConfig(placement=Placement.auto, device_map={"model": "0", "lm_head": "cpu"}, offload_folder="x")
    arguments = loading_arguments(waiting, settings("llama"))
    assert arguments == {"device_map": {"model": 0, "lm_head": "cpu"}, "offload_folder": "x"}
    assert spread(waiting) == [0, "cpu"] and spread(runtime) == [0, "cpu"]
    assert spread(RuntimeConfig(placement=Placement.auto)) == list(range(torch.cuda.device_count()))


def test_a_model_made_in_memory_is_dealt_out_as_one_that_is_read(tmp_path):
    network = tiny_network("llama")
    room = {"cpu": sum(p.numel() for p in network.parameters()) * 4 // 2}
    placed = dispatched(network, {"device_map": "sequential", "max_memory": room, "offload_folder": str(tmp_path)})
    assert devices_of(placed) == ("cpu", "disk")
    tokens = torch.arange(5)[None]
    assert torch.equal(placed(input_ids=tokens).logits, tiny_network("llama")(input_ids=tokens).logits)


def test_modules_and_lists_of_devices_are_dealt_out_as_named():
    """Blocks go to the devices in turn, embeddings to the first; what is placed already stays."""
    network, parts = tiny_network("llama"), {"model": "cpu", "lm_head": "cpu"}
    assert dispatched(network, {"device_map": parts}).hf_device_map == parts
    runtime = RuntimeConfig(placement=Placement.auto, device_map="cpu")
    assert placed(network, runtime, torch.device("cpu")) is network
    with pretending():
        shared = dispatched(tiny_network("llama"), {"device_map": ["cpu:0", "cpu:1"]})
        assert devices_of(shared) == ("cpu:0", "cpu:1")


def test_torchrun_makes_one_folder_with_the_numbers_of_one_process(tmp_path):
    """Two processes split every matrix; what happens when one of them fails is in tests/placement."""
    done = torchrun(tmp_path, "-m", "iclgd")
    assert done.returncode == 0, done.stderr[-3000:]
    run = only_run(tmp_path)
    assert done.stdout.count("1 done in") == 1 and run.is_done()
    log = (run.path / "run.log").read_text()
    assert log.count(" starts: ") == log.count(" is done, after ") == 1
    assert run.read_json("environment.json")["placement"] == {"kind": "tensor_parallel", "devices": ["cpu:0", "cpu:1"]}
    assert max(run.read_json("parity.json")["largest_relative_difference"].values()) < 1e-5
    same_as_alone(run, tmp_path)


@pytest.mark.parametrize("wrong", [False, True])
def test_the_certificate_refuses_a_placement_that_gives_other_numbers(wrong, monkeypatch):
    """The toy model's first layers are read twice; the second stands for the placed one, and may be changed."""
    run, read = config("model=toy", "task=toy", "runtime.placement=auto", "runtime.max_memory={0:1GB,1:1GB}"), []

    def read_prefix(model, part, dtype, arguments):
        network = loading.read_prefix(model, part, dtype, {})
        if read and wrong:
            network.model.layers[1].self_attn.v_proj.weight.data *= 1.01
        read.append(arguments)
        return network

    monkeypatch.setattr(parity, "read_prefix", read_prefix)
    if wrong:
        with pytest.raises(
            UnsupportedModelError, match=r"auto: the model's first 4 layers give another .*allowed 1e-04"
        ):
            parity.certificate(run)
    else:
        found = parity.certificate(run)
        assert found["compared"] == "the first 4 of 4 layers, with one device (cpu)"
        assert set(found["largest_relative_difference"].values()) == {0.0}
    assert read[0] == {} and read[1]["device_map"] == [0, 1]


def test_a_run_on_one_device_needs_no_certificate():
    assert parity.certificate(config("model=toy", "task=toy")) is None
