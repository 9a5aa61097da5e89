"""A model in which a record would be wrong is refused, with the name of what failed."""

from dataclasses import replace

import pytest
import torch

from iclgd.models import attention
from iclgd.models.anatomy import FAMILIES, UnsupportedModelError
from iclgd.models.layout import LAYOUTS, Layout
from iclgd.models.loading import assemble
from tiny_models import RECORDABLE, tiny_model, tiny_network

WRONG_LAYOUTS = [
    ("phi3", ("columns", "heads", "separate")),
    ("gpt2", ("rows", "heads", "separate")),
    ("gpt_neox", ("rows", "columns", "separate")),
    ("bloom", ("rows", "columns", "separate")),
    ("falcon", ("rows", "columns", "heads", "separate")),
    ("falcon_multi_query", ("columns", "heads", "separate")),
    ("llama", ("rows", "columns", "heads")),
]


def broken(monkeypatch, name, **changes):
    kind = tiny_network(name).config.model_type
    monkeypatch.setitem(FAMILIES, kind, replace(FAMILIES[kind], **changes))
    return lambda: tiny_model(name)


@pytest.mark.parametrize(("name", "layouts"), WRONG_LAYOUTS)
def test_a_wrong_layout_is_refused(monkeypatch, name, layouts):
    for wrong in layouts:
        with pytest.raises(UnsupportedModelError, match="failed its self-test: "):
            broken(monkeypatch, name, layout=wrong)()


@pytest.mark.parametrize(
    ("projections", "reason"),
    [
        (("q_proj", "v_proj"), "queries in the part that would be trained"),
        (("out_proj", "v_proj"), "keys outside the part that would be trained"),
        (("k_proj", "q_proj"), r"softmax\(scores\) V differs|queries in the part"),
        (("v_proj", "k_proj"), r"softmax\(scores\) V differs"),
    ],
)
@pytest.mark.parametrize("name", ["xglm", "opt"])
def test_wrong_projections_are_refused(monkeypatch, name, projections, reason):
    with pytest.raises(UnsupportedModelError, match=reason):
        broken(monkeypatch, name, key_value=projections)()


def test_training_queries_too_is_refused(monkeypatch):
    """Were all of a fused projection taken for keys and values, queries would be trained."""
    monkeypatch.setitem(LAYOUTS, "rows", lambda shape, _: Layout(1, 0, shape.heads // 2 + shape.key_value_heads, 8))
    with pytest.raises(UnsupportedModelError, match="failed its self-test: "):
        tiny_model("phi3")


@pytest.mark.parametrize("name", ["xglm", "gpt_neo", "gptj", "bloom"])
def test_an_attention_function_that_is_not_called_is_refused(monkeypatch, name):
    with pytest.raises(UnsupportedModelError, match=r"ForCausalLM: attention was seen in layers \[\] in one pass"):
        broken(monkeypatch, name, interface=True)()


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_lost_causality_is_refused(monkeypatch, name):
    def everything(query, key, value, prefix, now, rule):
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=rule.scale)

    monkeypatch.setattr(attention, "_attend", everything)
    with pytest.raises(UnsupportedModelError, match="logits differ from the unmodified model's"):
        tiny_model(name)


def test_a_prefix_that_is_not_seen_is_refused(monkeypatch):
    original = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda q, k, v, prefix, now, rule: original(q, k, v, None, now, rule))
    with pytest.raises(UnsupportedModelError, match="a shared prefix changes the logits"):
        tiny_model("llama")


def test_scores_of_another_scale_are_refused(monkeypatch):
    original = attention._record

    def doubled(now, layer, query, key, prefix, rule):
        original(now, layer, query, key, prefix, replace(rule, scale=2 * rule.scale))

    monkeypatch.setattr(attention, "_record", doubled)
    with pytest.raises(
        UnsupportedModelError, match=r"softmax\(scores\) V differs from attention's own output in layer 0"
    ):
        tiny_model("qwen3")


@pytest.mark.parametrize("name", ["llama", "bloom", "gpt_neox"])
def test_a_wrong_final_norm_is_refused(monkeypatch, name):
    with pytest.raises(UnsupportedModelError, match="the last block's early exit differs"):
        broken(monkeypatch, name, final=())()


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
