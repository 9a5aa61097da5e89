"""The papers' untrained baselines: seeded, and keeping exactly the embeddings and the layer norms."""

import re

import pytest
import torch

from families.tiny import tiny_network as of_family
from iclgd.config import ConfigError
from iclgd.models.loading import assemble
from iclgd.models.untrained import untrained
from tiny_models import RECORDABLE, tiny_network

# Input, position and output embeddings and every normalisation layer, as the families call them.
KEPT = re.compile(r"(embed_tokens|embed_positions|embed_in|embed_out|word_embeddings|wte|wpe|lm_head)\.|norm|\bln_")


def named(network):
    return dict(network.named_parameters())


@pytest.mark.parametrize("family", RECORDABLE)
def test_random_weights_follow_their_seed(family):
    config = tiny_network(family).config
    first, again, other = (named(untrained(config, torch.float32, seed)) for seed in (0, 0, 1))
    for name, parameter in first.items():
        assert torch.equal(parameter, again[name])
        assert parameter.ndim == 1 or not torch.equal(parameter, other[name])


@pytest.mark.parametrize("family", RECORDABLE)
def test_kept_is_what_the_paper_lists_and_the_rest_is_the_random_baseline(family):
    pretrained = tiny_network(family)
    kept = named(untrained(pretrained.config, torch.float32, 3, keep=pretrained))
    random = named(untrained(pretrained.config, torch.float32, 3))
    assert kept.keys() == random.keys() == named(pretrained).keys()
    assert any("norm" in name or "ln_" in name for name in kept)
    for name, parameter in named(pretrained).items():
        assert torch.equal(kept[name], parameter) == bool(KEPT.search(name)), name
        assert KEPT.search(name) or torch.equal(kept[name], random[name]), name


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi"])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_stay_tied_and_are_said(family, tied):
    pretrained = tiny_network(family, tie_word_embeddings=tied)
    for network in (pretrained, untrained(pretrained.config, torch.float32, 0, keep=pretrained)):
        model = assemble(network, None)
        same = network.get_input_embeddings().weight is network.get_output_embeddings().weight
        assert same == tied
        assert model.notes == (("input and output embeddings are tied",) if tied else ())


def test_norms_of_any_name_and_described_parts_are_kept():
    pretrained = of_family("nemotron")  # has NemotronLayerNorm1P
    network = untrained(pretrained.config, torch.float32, 0, pretrained)
    assert all(torch.equal(named(network)[name], old) for name, old in named(pretrained).items() if "norm" in name)
    with pytest.raises(ConfigError, match=r"model\.anatomy has no part nonsense"):
        untrained(pretrained.config, torch.float32, 0, pretrained, {"nonsense": ""})


def test_global_randomness_is_left_alone():
    config = tiny_network("llama").config
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    untrained(config, torch.float32, 0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", ["llama", "gptj", "xglm"])
def test_every_dtype_has_the_same_numbers(family, dtype):
    config = tiny_network(family).config
    single, other = untrained(config, torch.float32, 0), untrained(config, dtype, 0)
    for name, parameter in named(other).items():
        assert parameter.dtype is dtype
        assert torch.equal(parameter, named(single)[name].to(dtype)), name


def test_rotary_frequencies_are_not_rounded():
    network = untrained(tiny_network("llama").config, torch.bfloat16, 0)
    assert network.model.rotary_emb.inv_freq.dtype is torch.float32
