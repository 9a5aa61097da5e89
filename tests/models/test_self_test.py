"""A model in which a record would be wrong is refused, with the name of what failed."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from families.tiny import tiny_network as of_family
from iclgd.config import ConfigError
from iclgd.models import attention, interception
from iclgd.models.anatomy import LanguageModel, UnsupportedModelError
from iclgd.models.discovery import discover
from iclgd.models.loading import assemble
from iclgd.models.proofs import agree
from iclgd.models.self_test import check
from tiny_models import RECORDABLE, shared_model, tiny_model, tiny_network


def proven(network, **changes):
    """Prove an anatomy in which some parts are not those that were found."""
    network.requires_grad_(False)
    anatomy, passed = discover(network)
    check(LanguageModel(network, changed(anatomy, **changes), None), passed)


def changed(anatomy, added=None, mlp_out=None, **parts):
    if added is not None:
        pairs = zip(anatomy.layers, anatomy.blocks, strict=True)
        parts["layers"] = tuple(replace(layer, added=((block.get_submodule(added), 1.0),)) for layer, block in pairs)
    if mlp_out is not None:
        parts["feed_forward"] = replace(anatomy.feed_forward, reads=("mlp.gate_proj", "mlp.up_proj"), adds=mlp_out)
    return replace(anatomy, **parts)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("gemma2", {"added": "self_attn.o_proj"}, "in layer 0 the block's input"),
        ("gemma3_text", {"added": "self_attn.o_proj"}, "in layer 0 the block's input"),
        ("olmo2", {"added": "self_attn.o_proj"}, "in layer 0 the block's input"),
        ("llama", {"added": "mlp"}, "in layer 0 the block's input"),
        ("llama", {"added": "input_layernorm"}, "does not depend on attention"),
        ("gpt_neox", {"added": "mlp"}, "does not depend on attention"),
        ("gemma2", {"mlp_out": "mlp.down_proj"}, "block 0 puts out something else"),
    ],
)
def test_wrong_parts_are_refused(name, changes, reason):
    with pytest.raises(UnsupportedModelError, match=reason):
        proven(tiny_network(name), **changes)


def test_a_description_takes_the_place_of_what_is_found():
    network, rows = tiny_network("phi3"), {"q": [0, 32], "k": [32, 48], "v": [48, 64]}
    described = {
        "query": {"self_attn.qkv_proj": [rows["q"]]},
        "added": "self_attn.o_proj",
        "mlp_in": [],
        "mlp_out": None,
    }
    anatomy = assemble(network, None, description=described).anatomy
    assert anatomy.feed_forward.adds is None and len(anatomy.layers[2].projections["q"][0].rows) == 32
    network.config._attn_implementation = "eager"
    wrong = {
        "has no part addd: its parts are blocks, added": {"addd": "self_attn"},
        "describes a part that Phi3ForCausalLM lacks": {"added": "self_attn.out"},
        "rows that make no keys are taken for them": {"key": {"self_attn.qkv_proj": [rows["q"]]}},
        "layer 0 has keys outside": {"key": {"self_attn.qkv_proj": [[34, 48]]}},
    }
    for reason, description in wrong.items():
        with pytest.raises(ConfigError, match=reason):
            assemble(network, None, description=description)
        network.config._attn_implementation = "eager"


def wide_network(family, dtype):
    """A model so wide that of its sums of three terms some nearly cancel, which shows their rounding."""
    config = AutoConfig.for_model(
        family, vocab_size=97, hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.05)
    return network.eval().to(dtype)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("phi", torch.float32), ("gptj", torch.float32), ("gpt_neox", torch.bfloat16), ("falcon", torch.bfloat16)],
)
def test_wide_models_with_parallel_blocks_are_taken(family, dtype):
    assert assemble(wide_network(family, dtype), None).layers == 4


@pytest.mark.parametrize("described", [{"factor": 0.5}, {"mlp_in": ["mlp.fc1"]}])
def test_half_of_a_description_is_refused(described):
    with pytest.raises(ConfigError, match=r"model\.anatomy describes \w+ without \w+"):
        discover(tiny_network("phi"), described)


def test_logits_that_overflow_are_refused():
    network = tiny_network("llama").to(torch.float16)
    network.lm_head.weight.data.fill_(6e4)
    with pytest.raises(UnsupportedModelError, match=r"not finite in torch\.float16.*runtime\.dtype=float32"):
        assemble(network, None)


@pytest.mark.parametrize("actual", [[1.0, math.nan], [1.0, 2.0]])
def test_undefined_numbers_agree_with_nothing(actual):
    expected = torch.tensor([1.0, math.nan])
    with pytest.raises(UnsupportedModelError, match="logits differ"):
        agree(shared_model("llama"), "logits differ", torch.tensor(actual), expected)


def with_chunks(size):
    network = of_family("llama4_text")
    network.config.attention_chunk_size = size
    return network


@pytest.mark.parametrize(
    ("model", "wrong"),
    [
        (lambda: tiny_network("mistral", sliding_window=12), attention.Reach(window=9)),
        (lambda: with_chunks(12), attention.Reach(chunk=16)),
    ],
)
def test_a_wrong_window_or_chunk_is_refused(model, wrong, monkeypatch):
    masks = attention.AttentionMaskInterface._global_mapping
    monkeypatch.setitem(masks, attention.INTERFACE_NAME, lambda **_: wrong)
    with pytest.raises(UnsupportedModelError, match="beyond its windows"):
        assemble(model(), None)


def test_distances_that_count_padding_are_refused(monkeypatch):
    """MPT counts ALiBi's distances from the last token of the batch."""
    monkeypatch.setattr(interception._Watch, "own_bias", lambda watch, layer, scores, *_: scores[..., 0] * 0)
    with pytest.raises(UnsupportedModelError, match="padding changes the scores in layer 0"):
        assemble(of_family("mpt"), None)


def test_keys_are_compared_as_keys():
    """The norm of Phi's keys has a bias, so that without their projection they are the same, but not nothing."""
    assert assemble(tiny_network("phi", qk_layernorm=True), None).layers == 3


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_lost_causality_is_refused(monkeypatch, name):
    def everything(query, key, value, prefix, rule):
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=rule.scale)

    monkeypatch.setattr(attention, "_attend", everything)
    with pytest.raises(UnsupportedModelError, match="logits differ from the unmodified model's"):
        tiny_model(name)


def test_a_prefix_that_is_not_seen_is_refused(monkeypatch):
    original = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda q, k, v, prefix, rule: original(q, k, v, None, rule))
    with pytest.raises(UnsupportedModelError, match="a shared prefix changes the logits"):
        tiny_model("llama")


def test_scores_of_another_scale_are_refused(monkeypatch):
    original = attention._record_scores

    def doubled(state, layer, query, key, prefix, rule):
        original(state, layer, query, key, prefix, replace(rule, scale=2 * rule.scale))

    monkeypatch.setattr(attention, "_record_scores", doubled)
    with pytest.raises(
        UnsupportedModelError, match=r"softmax\(scores\) V differs from attention's own output in layer 0"
    ):
        tiny_model("qwen3")


def test_eager_attention_that_is_not_the_default_is_refused():
    with pytest.raises(UnsupportedModelError, match="eager attention differs from the model's default attention"):
        tiny_model("falcon_alibi")


def test_a_dtype_that_a_model_cannot_run_in_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"does not run in torch\.float64.*runtime\.dtype"):
        tiny_model("xglm", dtype=torch.float64)


@pytest.mark.parametrize("name", RECORDABLE)
def test_a_sound_model_is_taken_and_left_as_it_was(name):
    network = tiny_network(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    model = assemble(network, None)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    for module in network.modules():
        assert not module._forward_pre_hooks and not module._forward_hooks
    assert model.layers == network.config.num_hidden_layers
