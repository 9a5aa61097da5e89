"""Families of every kind agree with the naive code, and the comparison sees what is wrong."""

import json

import pytest
import torch
import transformers

from families import compare
from families.__main__ import RESULTS
from families.tiny import MODEL_TYPES, tiny_network
from iclgd.common import paths
from iclgd.config import ConfigError
from iclgd.config.enumerations import Site
from iclgd.mechanisms.parameters import trained_parameters
from iclgd.models import interventions
from iclgd.models.anatomy import UnsupportedModelError
from iclgd.models.interventions import intervening, last_tokens, rewriting
from iclgd.models.loading import assemble, untrained
from iclgd.models.recorder import Question, RecordPlan, record
from iclgd.verify.network import discovered
from mechanism_cases import acted, bench, recording, shown

SAMPLE = {  # and how many of their 4 layers have attention scores
    "qwen3_moe": 4,
    "deepseek_v3": 4,  # latent attention
    "gpt_oss": 4,  # sinks
    "granite": 4,  # factors of attention, of what it adds and of logits
    "gemma4_text": 4,  # layers of other sizes, and keys and values of layers below
    "llama4_text": 4,  # chunks
    "falcon_h1": 4,  # a state space beside attention
    "qwen3_next": 2,
    "granitemoehybrid": 2,
    "lfm2": 2,
    "nemotron_h": 1,  # and blocks that mix no tokens
    "mamba": 0,
}


@pytest.mark.parametrize("name", SAMPLE)
def test_a_family_agrees_with_the_naive_code(name):
    result = compare.compare(name)
    assert result.state == "works", result.reason
    assert result.layers_with_scores == SAMPLE[name]
    assert result.shared_prefix == (SAMPLE[name] == 4 and name != "falcon_h1")
    assert {"zsl.attention_output", "icl.attention_scores", "gd.block_output", "lcgd.losses"} <= set(result.differences)


def test_the_comparison_sees_a_wrong_factor(monkeypatch):
    take = interventions._Total.take
    monkeypatch.setattr(interventions._Total, "take", lambda total, factor, *call: take(total, 1.0, *call))
    result = compare.compare("granite")
    assert result.state == "wrong" and "attention_output is off by 1.5e+00" in result.reason


def test_results_are_of_the_pinned_transformers_and_of_all_its_families():
    results = json.loads(RESULTS.read_text("utf-8"))
    if results["transformers"] != transformers.__version__:
        pytest.skip("results are of the pinned transformers")
    assert list(results["families"]) == list(MODEL_TYPES)
    states = [result["state"] for result in results["families"].values()]
    assert set(states) <= {"works", "refused", "not built"}
    assert states.count("works") >= 95
    assert f"[{states.count('works')} families](docs/models.md)" in (paths.project_root() / "README.md").read_text(
        "utf-8"
    )


CONTEXT, QUESTIONS = (1, *range(30, 43)), [Question((11, 23, 35, 47), ((5,), (6, 7))), Question((36, 48), ((5,),))]


@pytest.mark.parametrize("name", ["lfm2", "falcon_h1", "mamba"])
def test_a_context_that_is_read_again_gives_what_one_query_at_a_time_gives(name):
    model = assemble(tiny_network(name), None)
    assert not model.shares_prefix
    together = record(model, QUESTIONS, CONTEXT, RecordPlan())
    for place, question in enumerate(QUESTIONS):
        alone = record(model, [question], CONTEXT, RecordPlan()).attention_output[0]
        torch.testing.assert_close(together.attention_output[place], alone, rtol=1e-4, atol=1e-5)


def test_what_is_added_side_by_side_can_be_replaced():
    """Falcon-H1's state space and attention add up; with their sum put in as it was, nothing changes."""
    model = assemble(tiny_network("falcon_h1"), None)
    before = record(model, QUESTIONS[:1], CONTEXT, RecordPlan())
    donor = before.attention_output[0]
    for outputs, same in ((donor, True), (donor + 1, False)):

        def intervention(token_ids, state, outputs=outputs):
            chosen = last_tokens(state, token_ids.shape[1])
            return rewriting(model, Site.attention_output, [2], chosen, lambda layer, _rows: outputs[layer, None])

        with intervening(model, intervention):
            after = record(model, [Question((11, 23, 35, 47), ((5,),))], CONTEXT, RecordPlan())
        torch.testing.assert_close(after.attention_output[0, 2], outputs[2], rtol=1e-4, atol=1e-4)
        assert torch.allclose(after.attention_output[0, 3], donor[3], rtol=1e-3, atol=1e-4) == same


@pytest.mark.parametrize("name", ["lfm2", "mamba"])
def test_untrained_weights_of_layers_without_attention(name):
    network = tiny_network(name)
    model = assemble(untrained(network.config, torch.float32, 3, network), None)
    assert record(model, QUESTIONS, CONTEXT, RecordPlan()).attention_output.isfinite().all()


def test_weights_that_blocks_share_are_refused():
    with pytest.raises(UnsupportedModelError, match="blocks 1 and 3 share weights"):
        assemble(tiny_network("zamba"), None)


def test_trained_parameters_of_layers_without_keys_and_values():
    hybrid, mamba, by_turns = (assemble(tiny_network(name), None) for name in ("lfm2", "mamba", "nemotron_h"))
    assert {item.layer for item in trained_parameters(hybrid, "attn_kv", None)} == {1, 3}
    assert {item.name for item in trained_parameters(hybrid, "attention", (0,))} == {
        f"conv.{name}.weight" for name in ("conv", "in_proj", "out_proj")
    }
    with pytest.raises(ConfigError, match=r"finetune\.trainable=attn_kv names no parameter of the chosen layers"):
        trained_parameters(mamba, "attn_kv", None)
    assert trained_parameters(mamba, "attention", None)
    mixing, others = ({i.layer for i in trained_parameters(by_turns, part, None)} for part in ("attention", "mlp"))
    assert (mixing, others) == ({0, 2}, {1, 3}), "what mixes tokens has the same path as the feed-forward part"
    assert [bool(paths) for paths in discovered(by_turns.anatomy).mlp] == [False, True, False, True]
    as_bert = assemble(tiny_network("git"), None)  # attention's output projection lies beside it
    names = {part: {item.name for item in trained_parameters(as_bert, part, (0,))} for part in ("attention", "mlp")}
    assert "attention.output.dense.weight" in names["attention"] and "output.dense.weight" in names["mlp"]
    assert not any(name.startswith("attention.") for name in names["mlp"])


ON_KEYS_AND_VALUES = ("exact_patch", "static_patch", "one_shot_sum", "kv_prefix", "function_vector")


@pytest.mark.parametrize("mechanism", ON_KEYS_AND_VALUES)
def test_mechanisms_on_keys_and_values_refuse_layers_without(mechanism):
    model = assemble(tiny_network("lfm2"), None)
    with pytest.raises(ConfigError, match="not every layer"):
        acted(bench(model, mechanism, case=shown(calibration=((15, 27, 39), (16, 28)))))


@pytest.mark.parametrize("mechanism", ["mean_shift", "linear_shift", "task_vector", "priming", "context_distillation"])
@pytest.mark.parametrize("name", ["lfm2", "nemotron_h"])
def test_other_mechanisms_work_without_softmax_attention(name, mechanism):
    model = assemble(tiny_network(name), None)
    given = bench(model, mechanism, case=shown(calibration=((15, 27, 39), (16, 28))))
    before, (after, _) = recording(model, given.prompts), acted(given)
    assert after.label_scores.isfinite().all() and not torch.equal(before.label_scores, after.label_scores)
