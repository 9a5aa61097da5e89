"""An estimate of memory counts what a model has, from its config.json alone."""

import dataclasses

import pytest
import torch
from transformers import AutoConfig

from configs import config
from iclgd.config import ConfigError
from iclgd.config.enumerations import Placement
from iclgd.evidence.memory import estimate_of, refuse_too_large, training
from iclgd.models.loading import assemble
from iclgd.models.products import compute_in_float32
from tiny_models import CONFIGS, shared_model, tiny_network

SMALL = config("model=toy", "task=toy", "runtime.dtype=float32", "finetune=gd", "task.queries=10", "task.shots=4")


def estimated(family, run=SMALL, free=10.0):
    return estimate_of(AutoConfig.for_model(family, **CONFIGS[family]), run, "cpu", free)


def with_runtime(**changes):
    return dataclasses.replace(SMALL, runtime=dataclasses.replace(SMALL.runtime, **changes))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_weights_and_what_is_trained_are_counted(family):
    network, needs = tiny_network(family), estimated(family)
    assert needs.weights == sum(parameter.numel() for parameter in network.parameters()) * 4 / 1e9
    names = {"llama": ("k_proj", "v_proj"), "gpt2": ("c_attn",), "bloom": ("query_key_value",)}[family]
    trained = sum(p.numel() for name, p in network.named_parameters() if any(f"{n}." in name for n in names))
    expected = trained * (4 + 4 + 4) / 1e9  # what it was, its gradient, its change
    assert training(needs, shared_model(family), SMALL).trained == pytest.approx(expected)


def test_half_weights_take_half_the_memory_and_float32_copies_of_what_is_trained():
    whole, half = estimated("llama"), estimated("llama", with_runtime(dtype="float32_from_bfloat16"))
    assert half.weights == whole.weights / 2
    network = tiny_network("llama").to(torch.bfloat16)
    compute_in_float32(network)
    trained = (training(whole, model, SMALL).trained for model in (shared_model("llama"), assemble(network, None)))
    assert next(trained) * 4 / 3 == pytest.approx(next(trained))


def test_a_model_that_does_not_fit_is_refused_with_what_would_help():
    needs = estimated("llama", free=estimated("llama").weights / 2)
    with pytest.raises(ConfigError, match=r"cpu has 0\.0 GB free, but .* runtime\.placement=auto"):
        refuse_too_large(needs, SMALL)
    refuse_too_large(needs, with_runtime(placement=Placement.auto))
    refuse_too_large(estimated("llama"), SMALL)
