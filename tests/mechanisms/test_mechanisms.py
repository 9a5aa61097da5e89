"""Mechanisms where theory says what they must do, and that they leave nothing behind."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

from iclgd.common.records import Item
from iclgd.config import ConfigError
from iclgd.evidence.grafts import graft_distances
from iclgd.mechanisms.bench import Bench, without_label
from iclgd.mechanisms.prefixes import _loss, _start
from iclgd.mechanisms.registry import MECHANISMS, resolve_mechanism
from iclgd.mechanisms.vectors import (
    _by_head,
    _causal_effects,
    _mean_head_outputs,
    _output_projection,
    _shuffled_context,
)
from iclgd.metrics.distributions import recovered, total_variation
from iclgd.models import attention
from iclgd.models.forward import encode_prefix
from iclgd.models.interventions import intervening, last_tokens, own_prefix, rewriting, unchanged_afterwards
from iclgd.models.recorder import Question, RecordPlan, record
from learning_cases import learning, prompts
from tiny_models import shared_model, tiny_model

OPTIONS = ((5,), (6, 7), (6, 8, 9))  # options of several tokens: changes act at the label tokens too
FAMILIES = ["llama", "gpt2", "gemma2", "gpt_neox", "xglm", "bloom", "gptj"]
PLAN = RecordPlan(optional=frozenset({"block_output", "next_token_log_probs"}), bos=1, batch_tokens=40)


def shown(texts=((11, 23, 35, 47, 59), (36, 48, 60, 72, 84, 9, 21), (13, 25, 37, 49)), calibration=(), queries=None):
    """Demonstrations that end with a label of one token, and queries of unequal lengths."""
    case = prompts(texts)
    items = queries or ((14, 26, 38), (15, 27, 39, 51, 63), (16,))
    return replace(
        case,
        label_token_ids=OPTIONS,
        queries=tuple(Item("", tokens, 0) for tokens in items),
        calibration=tuple(Item("", tokens, 0) for tokens in calibration),
    )


def bench(model, variant, *overrides, case=None):
    case = case or shown()
    run = learning(*overrides, objective=variant, lr=1e-3)
    return Bench(model, case, run, icl=lambda: recording(model, case, case.context()))


def recording(model, case, context=None):
    questions = [Question(query.token_ids, case.options(query)) for query in case.queries]
    return record(model, questions, case.bos if context is None else context, PLAN)


def acted(given):
    """The recording without context while the mechanism acts, and its trace."""
    with (
        unchanged_afterwards(given.model, "it"),
        resolve_mechanism(given.options.mechanism)(given) as trace,
    ):
        return recording(given.model, given.prompts), trace


def assert_alike(found, wanted, tolerance=1e-5, fields=("attention_output", "block_output", "label_scores")):
    for name in (*fields, "next_token_log_probs"):
        have, want = getattr(found, name), getattr(wanted, name)
        torch.testing.assert_close(have, want, rtol=0, atol=tolerance * want.nan_to_num().abs().max().item())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_before_its_first_step_is_icl(family):
    model, case = shared_model(family), shown()
    found, trace = acted(bench(model, "kv_prefix", "finetune.epochs=0", case=case))
    icl = recording(model, case, case.context())
    assert_alike(found, icl)
    assert total_variation(found.next_token_log_probs, icl.next_token_log_probs).max() < 1e-6
    assert not len(trace.losses) and trace.gradient_norms.shape == (0, model.layers)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", ["one_shot_mean", "one_shot_sum"])
def test_with_one_demonstration_its_mean_and_its_sum_are_icl(family, variant):
    model, case = shared_model(family), shown([(11, 23, 35, 47, 59)])
    icl = recording(model, case, case.context())
    found = acted(bench(model, variant, case=case))[0]
    if family in ("gpt2", "xglm"):  # absolute positions: the query's own embedding knows how long the context is
        torch.testing.assert_close(found.attention_output, icl.attention_output, rtol=0, atol=1e-5)
    else:
        assert_alike(found, icl)
    assert (icl.block_output - recording(model, case).block_output).abs().max() > 1e-2


def without_positions(layers):
    """GPT-2 in float64 without position embeddings."""
    model = tiny_model("gpt2", dtype=torch.float64, n_layer=layers)
    nn.init.zeros_(model.network.transformer.wpe.weight)
    return model


def attend_linearly(query, key, value, prefix, _now, rule):
    """Attention without softmax: every visible key adds its score times its value."""
    own = torch.tril(query @ key.transpose(-1, -2) * rule.scale) @ value
    return own if prefix is None else own + (query @ prefix[0].transpose(-1, -2) * rule.scale) @ prefix[1]


def test_one_shot_updates_add_up_in_linear_attention_and_not_under_softmax(monkeypatch):
    model, case = without_positions(1), shown()
    soft = acted(bench(model, "one_shot_sum", case=case))[0]
    icl = recording(model, case, case.context())
    assert (soft.attention_output - icl.attention_output).abs().max() > 0.05 * icl.attention_output.abs().max()
    monkeypatch.setattr(attention, "_attend", attend_linearly)
    found, icl = acted(bench(model, "one_shot_sum", case=case))[0], recording(model, case, case.context())
    exact = [field.attention_output for field in (found, icl)]
    torch.testing.assert_close(*exact, rtol=0, atol=1e-7)  # a recording is kept in float32
    mean = acted(bench(model, "one_shot_mean", case=case))[0]
    assert (mean.attention_output - icl.attention_output).abs().max() > 1e-3


ONE_TOKEN = [(token,) for token in range(10, 90)]


@pytest.mark.parametrize("site", ["attention_output", "block_output"])
def test_a_constant_effect_of_context_is_recovered_by_its_mean(monkeypatch, site):
    """Every visible key adds its value: what context adds to a query of one token is the same for all queries."""
    model = without_positions(3)

    def attend(query, _key, value, prefix, _now, _rule):
        own = value.cumsum(2)
        return own if prefix is None else own + prefix[1].sum(2, keepdim=True)

    case = shown(calibration=ONE_TOKEN[:3], queries=ONE_TOKEN[10:14])
    softmax = acted(bench(model, "mean_shift", case=case))[0], recording(model, case, case.context())
    assert (softmax[0].block_output - softmax[1].block_output).abs().max() > 1e-3
    monkeypatch.setattr(attention, "_attend", attend)
    given = bench(model, "mean_shift", f"finetune.at={site}", case=case)
    if site == "block_output":  # the blocks' feed-forward parts are not linear: only attention's effect is constant
        for layer in range(3):
            nn.init.zeros_(model.anatomy.blocks[layer].mlp.c_proj.weight)
    found, icl = acted(given)[0], recording(model, case, case.context())
    assert_alike(found, icl, 1e-6, ("block_output",) if site == "block_output" else ("attention_output",))


def test_a_linear_effect_of_context_is_recovered_by_a_linear_shift(monkeypatch):
    """Context turns what a query of one token gets from itself; a constant cannot do that."""
    model = without_positions(2)
    turn = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def attend(_query, _key, value, prefix, _now, _rule):
        return value if prefix is None or prefix[0].shape[2] == 1 else value + value @ turn

    monkeypatch.setattr(attention, "_attend", attend)
    case = shown(calibration=ONE_TOKEN[:60], queries=ONE_TOKEN[60:])
    icl = recording(model, case, case.context())
    exact = acted(bench(model, "linear_shift", "finetune.ridge=1e-18", "finetune.calibration=60", case=case))[0]
    assert_alike(exact, icl, 1e-5, ("attention_output",))
    constant = acted(bench(model, "mean_shift", case=case))[0]
    assert (constant.attention_output - icl.attention_output).abs().max() > 1e-2


def test_layers_fitted_upwards_see_the_shifts_below_them():
    model, case = shared_model("llama"), shown(calibration=((17, 29), (18, 30, 42)), queries=((17, 29), (18, 30, 42)))
    icl = recording(model, case, case.context()).attention_output.mean(0)
    upwards, parallel = (
        acted(bench(model, "mean_shift", f"finetune.fit={fit}", case=case))[0].attention_output.mean(0)
        for fit in ("upwards", "parallel")
    )
    torch.testing.assert_close(upwards, icl, rtol=0, atol=1e-6)  # on the rows that it was fitted to, in every layer
    torch.testing.assert_close(parallel[0], icl[0], rtol=0, atol=1e-6)
    assert (parallel[1:] - icl[1:]).abs().max() > 1e-4


@contextmanager
def doing_nothing(given):
    """A mechanism of one's own whose changes are identities."""

    @contextmanager
    def intervention(token_ids, now):
        chosen = last_tokens(now, token_ids.shape[1])
        with rewriting(given.model, given.options.at, given.layers, chosen, lambda _layer, rows: rows):
            yield

    with intervening(given.model, intervention), own_prefix(given.model, encode_prefix(given.model, given.prompts.bos)):
        yield given.no_steps()


@pytest.mark.parametrize("family", ["llama", "gpt_neo"])
def test_a_mechanism_that_changes_nothing_is_none_bit_for_bit(family):
    model = shared_model(family)
    own = acted(bench(model, "none", f"finetune.mechanism={__name__}.doing_nothing"))[0]
    for name, tensor in acted(bench(model, "none"))[0].tensors().items():
        assert torch.equal(tensor.nan_to_num(), getattr(own, name).nan_to_num()), name


LEAVING = {
    "hooks of": lambda model: model.anatomy.blocks[0].register_forward_hook(lambda *_: None),
    "training mode of": lambda model: model.network.train(),
    "parameter": lambda model: model.anatomy.blocks[0].self_attn.k_proj.weight.data.mul_(1.001),
    "an intervention": lambda model: model.interventions.append(None),
}


@pytest.mark.parametrize("what", LEAVING)
def test_what_a_mechanism_leaves_on_the_model_is_refused_by_name(what):
    model = tiny_model("llama")
    with pytest.raises(ConfigError, match=rf"finetune=mine leaves the model changed \({what}"):
        with unchanged_afterwards(model, "mine"):
            LEAVING[what](model)


@pytest.mark.parametrize("variant", sorted(set(MECHANISMS) - {"none", "gradient_descent"}))
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error_or_an_interrupt(variant, error):
    model, case = tiny_model("llama"), shown(calibration=((17, 29), (18, 30, 42)))
    given = bench(model, variant, "finetune.epochs=1", case=case)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    with pytest.raises(error), resolve_mechanism(variant)(given):
        raise error
    assert not model.interventions and not model.prefixes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.network.modules())


def test_a_mechanism_sees_only_what_its_yaml_says():
    for variant, sees in (("task_vector", "demonstrations"), ("activation_match", "calibration")):
        given = bench(shared_model("llama"), variant, f"finetune.sees={sees}")
        with pytest.raises(ConfigError, match=f"finetune.sees={sees} does not show them: set finetune.sees="):
            with resolve_mechanism(variant)(given):
                pass


def test_the_gradient_of_a_prefix_is_that_of_its_loss():
    model, case = shared_model("llama", torch.float64), shown()
    given = bench(model, "kv_prefix", case=case)
    prefix = _start(given)
    _loss(given, prefix, 1).backward()
    spans = case.context_spans()
    own = slice(spans[1][0], spans[1][1] + 1)
    key, value = prefix[1]
    assert not key.grad[:, :, own].any() and not value.grad[:, :, own].any(), "its own part is masked"
    for tensor, index in ((key, (0, 0, 2, 3)), (value, (0, 1, 0, 5))):
        with torch.no_grad():
            step, losses = 1e-2, []  # the norms compute in float32
            for sign in (1, -1):
                tensor[index] += sign * step
                losses.append(_loss(given, prefix, 1).item())
                tensor[index] -= sign * step
        torch.testing.assert_close(tensor.grad[index].item(), (losses[0] - losses[1]) / (2 * step), rtol=2e-3, atol=0)


def test_the_loss_of_a_masked_prefix_is_that_of_the_context_without_the_demonstration():
    """The last demonstration left out leaves a context that can be read plainly, at its own positions."""
    model, case = without_positions(3), shown()
    given = bench(model, "kv_prefix", case=case)
    tokens = torch.tensor([[*given.context(left_out=2), *case.demonstrations[2].token_ids]])
    logits = model.network(tokens).logits[0]
    length = len(case.demonstrations[2].token_ids)
    plain = nn.functional.cross_entropy(logits[-length:-1], tokens[0, -length + 1 :])
    torch.testing.assert_close(
        _loss(given, _start(given), 2), plain.to(torch.float32), rtol=1e-6, atol=0, check_dtype=False
    )


@pytest.mark.parametrize("variant", ["priming", "context_distillation", "kv_prefix", "prefix_tuning"])
def test_training_lowers_its_loss_and_leaves_the_weights(variant):
    model, case = shared_model("llama"), shown(calibration=((17, 29), (18, 30, 42)))
    for sees in ("demonstrations", "calibration") if "prefix" not in variant else ("demonstrations",):
        _, trace = acted(bench(model, variant, f"finetune.sees={sees}", "finetune.epochs=30", case=case))
        steps = len(trace.losses) // 30
        assert trace.losses[-steps:].mean() < trace.losses[:steps].mean()
        assert trace.update_norms.nan_to_num().gt(0).any()


def test_head_means_and_effects_of_a_function_vector_against_plain_passes():
    model, case = shared_model("llama"), shown(calibration=((17, 29), (18, 30, 42)))
    given = bench(model, "function_vector", case=case)
    means, effects = _mean_head_outputs(given), _causal_effects(given, _mean_head_outputs(given))
    seen = {}
    hook = _output_projection(given, 1).register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
    total = torch.zeros_like(means[1])
    for item in case.calibration:
        model.network(torch.tensor([[*case.context(), *item.token_ids]]))
        total += _by_head(given, seen["x"])[0, -1]
    hook.remove()
    torch.testing.assert_close(means[1], total / 2, rtol=1e-4, atol=1e-6)
    layer, head, expected = 1, 3, []

    def put(_module, args):
        changed = args[0].clone()
        changed[0, -1, head * 8 : (head + 1) * 8] = means[layer, head]
        return (changed,)

    for place, item in enumerate(given.demonstrations):
        query = without_label(item).token_ids
        tokens = torch.tensor([[*_shuffled_context(given, place), *query]])
        answer = item.token_ids[len(query)]
        before = model.network(tokens).logits[0, -1].softmax(-1)[answer]
        hook = _output_projection(given, layer).register_forward_pre_hook(put)
        expected.append(model.network(tokens).logits[0, -1].softmax(-1)[answer] - before)
        hook.remove()
    torch.testing.assert_close(effects[layer, head], torch.stack(expected).mean().detach(), rtol=1e-3, atol=1e-7)


def test_a_graft_of_all_layers_is_icl_and_a_graft_of_none_is_not():
    model, case = shared_model("llama"), shown()
    icl, zsl = recording(model, case, case.context()), recording(model, case)
    lab = GraftLab(model, case)
    distances = graft_distances(lab, icl, icl, up_to=True)
    assert distances[:, -1].max() < 1e-6 and distances[:, 0].min() > 1e-4
    alone = graft_distances(lab, icl, icl, up_to=False)
    torch.testing.assert_close(alone[:, 0], distances[:, 0])
    nothing = graft_distances(lab, zsl, icl, up_to=True)
    torch.testing.assert_close(nothing[:, -1], total_variation(zsl.next_token_log_probs, icl.next_token_log_probs))


class GraftLab:
    """What grafts need of a laboratory."""

    def __init__(self, model, case):
        self.model, self.prompts, self.config = model, case, learning()
        self.progress = type("Silent", (), {"stage": lambda *_: lambda _done: None})()

    def questions(self):
        return [Question(query.token_ids, self.prompts.options(query)) for query in self.prompts.queries]


def test_recovered_by_hand():
    def logs(*rows):
        return torch.tensor(rows, dtype=torch.float64).log()

    zsl, icl = (
        logs([0.5, 0.5], [0.5, 0.5], [0.9, 0.1], [0.5, 0.5]),
        logs([0.9, 0.1], [0.9, 0.1], [0.905, 0.095], [0.6, 0.4]),
    )
    ft = logs([0.9, 0.1], [0.7, 0.3], [0.5, 0.5], [0.4, 0.6])
    torch.testing.assert_close(
        recovered(icl, ft, zsl), torch.tensor([1, 0.5, torch.nan, -1], dtype=torch.float64), equal_nan=True
    )
