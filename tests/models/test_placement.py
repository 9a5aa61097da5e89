"""A model gives the same numbers on several devices as on one, and what cannot be placed is refused by name."""

from contextlib import nullcontext

import pytest
import torch
from transformers import AutoConfig

from configs import config
from iclgd.config import ConfigError, ModelConfig, RuntimeConfig
from iclgd.config.enumerations import Placement
from iclgd.models import placement
from iclgd.models.loading import assemble
from iclgd.models.placement import check_placement, devices_of, loading_arguments, refuse_quantised
from learning_cases import finetuned, prompts
from placement_cases import FAMILIES, VARIANTS, everything, furthest, placed_model, plain, variant
from pretend_devices import MixedDevicesError, pretending
from tiny_models import CONFIGS, tiny_network


@pytest.mark.parametrize(
    ("family", "devices"),
    [
        *((family, ("cpu:0", "cpu:1")) for family in FAMILIES),
        *((family, ("cpu", "disk")) for family in ("llama", "bloom", "phi3")),
        ("llama", ("cpu:0", "cpu")),
    ],
)
def test_the_numbers_are_those_of_one_device(family, devices, tmp_path):
    """Blocks dealt out over devices, or waiting in CPU memory or on disk."""
    variants = VARIANTS if (family, *devices) == ("llama", "cpu", "disk") else ("lcgd",)
    alone = everything(assemble(tiny_network(family), None), variants)
    with pretending() if "cpu:0" in devices else nullcontext():
        model = placed_model(family, tmp_path, *devices)
        assert any(map(placement._offload_hook, model.network.modules())) == (devices[1] != "cpu:1")
        shared = plain(everything(model, variants))
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
    again = placement._view
    monkeypatch.setattr(placement, "_view", lambda module, *rest: read.append(module) or again(module, *rest))
    with finetuned(model, prompts(), variant("gd")):
        pass
    frozen = {model.anatomy.part(layer, f"mlp.{name}_proj") for layer in (1, 2) for name in ("gate", "up", "down")}
    assert frozen <= set(read)


def test_settings_that_do_not_go_together_are_refused():
    for key, value in (("device_map", "balanced"), ("max_memory", {0: "1GB"}), ("offload_folder", "x")):
        with pytest.raises(ConfigError, match=rf"runtime\.{key} is for runtime\.placement=auto, not single"):
            check_placement(RuntimeConfig(**{key: value}))


def test_quantised_weights_are_refused_by_the_name_of_their_method():
    quantised = AutoConfig.for_model("llama", **CONFIGS["llama"])
    quantised.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(ConfigError, match=r"quantised by bitsandbytes, .*GGUF file"):
        refuse_quantised(ModelConfig(name="somebody/model"), quantised)
    refuse_quantised(ModelConfig(name="somebody/model", file="x.gguf"), quantised)


def test_devices_are_written_as_accelerate_reads_them():
    runtime = RuntimeConfig(placement=Placement.auto, max_memory={"0": "20GB", "cpu": "100GB"}, device_map="balanced")
    arguments = loading_arguments(runtime)
    assert arguments == {"device_map": "balanced", "max_memory": {0: "20GB", "cpu": "100GB"}}
    assert loading_arguments(RuntimeConfig()) == {}
    waiting = RuntimeConfig(placement=Placement.auto, device_map={"model": "0", "lm_head": "cpu"}, offload_folder="x")
    arguments = loading_arguments(waiting)
    assert arguments == {"device_map": {"model": 0, "lm_head": "cpu"}, "offload_folder": "x"}


def test_devices_are_named():
    with pretending():
        assert devices_of(placed_model("llama", ".", "cpu:0", "cpu:1").network) == ("cpu:0", "cpu:1")
    assert devices_of(tiny_network("llama")) == ("cpu",)


@pytest.mark.parametrize("setting", ["model.weights=random", "model.weights=keep_embeddings", "model.source=memory"])
def test_what_is_not_read_from_disk_is_not_dealt_out(setting):
    with pytest.raises(ConfigError, match=r"runtime\.placement=auto is for models on disk with model\.weights=pretr"):
        config("runtime.placement=auto", setting)
