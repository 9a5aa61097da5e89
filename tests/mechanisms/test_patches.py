"""Patches: weights without context that do what the context does."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch

from iclgd.common.records import Item
from iclgd.config import ConfigError
from iclgd.mechanisms.bench import Bench
from iclgd.mechanisms.patches import ExactPatch, _Patched, ridge_map, static_patch
from iclgd.models.attention_pass import AttentionPass
from iclgd.models.feed_forward import weight_of
from iclgd.models.forward import encode_prefix, forward
from iclgd.models.interventions import hidden_of, hooks
from iclgd.models.recorder import Question, RecordPlan, record
from learning_cases import learning, prompts
from mechanism_cases import acted, bench, recording, shown
from mechanism_cases import assert_alike as alike
from tiny_models import RECORDABLE, shared_model, tiny_model

NO_FORM = ("gemma2", "gemma3_text", "olmo2", "opt_norm_after")
EXACT = tuple(name for name in RECORDABLE if name not in NO_FORM)
PARALLEL = ("phi", "gpt_neox", "gptj", "falcon", "falcon_multi_query")
CONTEXT = (1, *range(30, 43))
TOKENS = torch.tensor([[11, 23, 35, 47, 59, 71, 7, 8], [36, 48, 60, 72, 3, 3, 3, 3]])  # the second has four of padding
LENGTHS, QUERY_LENGTHS = torch.tensor([8, 4]), torch.tensor([6, 4])


def exact(patch="last", *overrides):
    return learning(
        "finetune.mechanism=exact_patch", "finetune.name=exact_patch", f"finetune.patch={patch}", *overrides
    )


def outputs(model, tokens, state, around=None):
    """Hidden states after the final norm, after each block, and logits in the model's own dtype."""
    after: dict[int, torch.Tensor] = {}
    keep = lambda i, _module, _args, output: after.__setitem__(i, hidden_of(output))  # noqa: E731
    watched = [(block, partial(keep, i)) for i, block in enumerate(model.anatomy.blocks)]
    with torch.inference_mode(), around or hooks(), hooks(after=watched):
        hidden = forward(model, tokens, state)
        logits = model.anatomy.unembedding(hidden)
    return {"logits": logits, "final": hidden, **{f"block {i}": value for i, value in after.items()}}


def precise(name):
    dtype = torch.float32 if name == "xglm" else torch.float64  # XGLM's own positions are float32
    return shared_model(name, dtype), 1e-5 if name == "xglm" else 1e-10


@pytest.mark.parametrize("patch", ["last", "query"])
@pytest.mark.parametrize("name", EXACT)
def test_the_patched_model_puts_out_what_icl_does(name, patch):
    model, tolerance = precise(name)
    before = {key: value.clone() for key, value in model.network.state_dict().items()}
    without = lambda: AttentionPass(  # noqa: E731
        lengths=LENGTHS, prefix=encode_prefix(model, (1,)), query_lengths=QUERY_LENGTHS
    )
    icl = outputs(model, TOKENS, AttentionPass(lengths=LENGTHS, prefix=encode_prefix(model, CONTEXT)))
    zsl = outputs(model, TOKENS, without())
    state = without()
    made = ExactPatch(model, CONTEXT, exact(patch))
    found = outputs(model, TOKENS, state, made(TOKENS, state))
    first = QUERY_LENGTHS - 1 if patch == "last" else torch.zeros(2, dtype=torch.long)
    for row, (start, end) in enumerate(zip(first, LENGTHS, strict=True)):
        for key, expected in icl.items():
            scale = expected.abs().max()
            torch.testing.assert_close(
                found[key][row, start:end], expected[row, start:end], rtol=0, atol=tolerance * scale
            )
        if start:
            torch.testing.assert_close(found["block 0"][row, :start], zsl["block 0"][row, :start])
    for key, expected in icl.items():
        assert (zsl[key][1, 3] - expected[1, 3]).abs().max() > 1e-2
    assert all(torch.equal(value, before[key]) for key, value in model.network.state_dict().items())
    trace = made.trace()
    assert (trace.update_norms > 0).all()


@pytest.mark.parametrize("name", EXACT)
def test_the_changes_are_weights_of_rank_one_and_all_of_them_are_needed(name, monkeypatch):
    """A single token as the query: its changes, written into the weights, make the plain model do what ICL does."""
    model, tolerance = precise(name)
    token, length = torch.tensor([[23]]), torch.tensor([1])
    fresh = lambda: AttentionPass(lengths=length)  # noqa: E731
    patch, state, changes = ExactPatch(model, CONTEXT, exact()), fresh(), {}
    icl = outputs(model, token, AttentionPass(lengths=length, prefix=encode_prefix(model, CONTEXT)))
    parts = model.anatomy.feed_forward
    names = iter([(i, n) for i in range(model.layers) for n in (*parts.reads, parts.adds)])
    changed = _Patched._changed

    def keep(patched, layer, reading, output, change, direction):
        changes[next(names)] = torch.outer(change[0], direction[0] / direction[0].square().sum())
        return changed(patched, layer, reading, output, change, direction)

    monkeypatch.setattr(_Patched, "_changed", keep)
    outputs(model, token, state, patch(token, state))
    monkeypatch.undo()
    assert set(changes) == {(i, n) for i in range(model.layers) for n in (*parts.reads, parts.adds)}
    norms = torch.stack(
        [
            sum(change.square().sum() for (i, _), change in changes.items() if i == layer).sqrt()
            for layer in range(model.layers)
        ]
    )
    torch.testing.assert_close(patch.trace().update_norms, norms.float())
    for change in changes.values():
        values = torch.linalg.svdvals(change)
        assert values[1] <= values[0] * 1e-6
    with written(model, changes):
        assert_alike(outputs(model, token, fresh()), icl, tolerance)
    for left_out in [(1, name) for name in (*parts.reads, parts.adds)]:
        with written(model, {key: change for key, change in changes.items() if key != left_out}):
            found = outputs(model, token, fresh())
        wrong = (found["block 1"] - icl["block 1"]).abs().max()
        idle = name in PARALLEL and left_out[1] != parts.adds  # it reads the same with and without context
        assert wrong < 1e-5 if idle else wrong > 1e-2, left_out


@contextmanager
def written(model, changes):
    """Changes written into the weights, for a while."""
    weights = {key: weight_of(model.anatomy.part(*key)) for key in changes}
    before = {key: weight.clone() for key, weight in weights.items()}
    for key, weight in weights.items():
        weight.data.add_(changes[key])
    yield
    for key, weight in weights.items():
        weight.data.copy_(before[key])


def assert_alike(found, expected, tolerance):
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=tolerance * value.abs().max().item())


def test_a_recording_of_the_patched_model_scores_labels_as_icl_does():
    """Labels of several tokens too; only attention's own record differs."""
    model, case = shared_model("llama"), shown()
    icl, found = recording(model, case, case.context()), acted(bench(model, "exact_patch", case=case))[0]
    alike(found, icl, 1e-4, ("label_scores", "block_output"))
    assert (found.attention_output - icl.attention_output).abs().max() > 1e-2


def test_a_patched_layer_needs_no_patch_below_it():
    model, _ = precise("llama")
    state = AttentionPass(lengths=LENGTHS, query_lengths=QUERY_LENGTHS)
    icl = outputs(model, TOKENS, AttentionPass(lengths=LENGTHS, prefix=encode_prefix(model, CONTEXT)))
    patch = ExactPatch(model, CONTEXT, exact("last", "finetune.layers=[2]"))
    found = outputs(model, TOKENS, state, patch(TOKENS, state))
    torch.testing.assert_close(found["logits"][0, 5:], icl["logits"][0, 5:], rtol=1e-6, atol=1e-6)
    assert (found["block 1"][0, 5:] - icl["block 1"][0, 5:]).abs().max() > 1e-2
    assert patch.trace().update_norms.isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("name", NO_FORM)
def test_models_without_an_exact_form_are_refused_by_name(name):
    reason = r"its blocks do not put out input \+ attention \+ one projection"
    with pytest.raises(ConfigError, match=f"exact_patch has no exact form for .*ForCausalLM: {reason}"):
        ExactPatch(shared_model(name), CONTEXT, exact())


def calibrated(count):
    noise = torch.Generator().manual_seed(0)
    texts = [tuple(torch.randint(3, 97, (int(n),), generator=noise).tolist()) for n in torch.arange(count) % 5 + 3]
    return replace(prompts(), calibration=tuple(Item("", text, 0) for text in texts))


@pytest.mark.parametrize("patch", ["last", "query"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "phi3", "falcon"])
def test_a_static_patch_of_few_queries_does_what_context_does_to_them(name, patch):
    """With hardly any ridge and fewer tokens than inputs, the fit is exact on what it is fitted to, bos included."""
    model, shown = tiny_model(name, dtype=torch.float64), calibrated(2)
    run = learning("finetune.mechanism=static_patch", "finetune.ridge=1e-12", f"finetune.patch={patch}")
    before = {key: value.clone() for key, value in model.network.state_dict().items()}
    asked = [Question(item.token_ids, ((5,), (6,))) for item in shown.calibration]
    plan = RecordPlan(optional=frozenset({"block_output"}))
    icl, zsl = record(model, asked, shown.context(), plan), record(model, asked, shown.bos, plan)
    with static_patch(Bench(model, shown, run, icl=lambda: icl)) as trace:
        found = record(model, asked, shown.bos, plan)
    torch.testing.assert_close(found.block_output, icl.block_output, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.label_scores, icl.label_scores, rtol=1e-4, atol=1e-4)
    assert (zsl.label_scores - icl.label_scores).abs().max() > 1e-2
    assert (trace.update_norms > 0).all()
    assert all(torch.equal(value, before[key]) for key, value in model.network.state_dict().items())


def test_the_ridge_map_is_the_textbook_one_from_either_side():
    noise = torch.Generator().manual_seed(0)
    for rows, columns in ((5, 8), (8, 5)):
        x, y = (torch.randn(rows, n, generator=noise, dtype=torch.float64) for n in (columns, 3))
        penalty = 0.3 * (x**2).sum(1).median()
        stacked = torch.cat([x, penalty.sqrt() * torch.eye(columns, dtype=x.dtype)])
        wanted = torch.linalg.lstsq(stacked, torch.cat([y, torch.zeros(columns, 3, dtype=x.dtype)])).solution.T
        torch.testing.assert_close(ridge_map(x, y, 0.3), wanted)
