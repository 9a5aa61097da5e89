"""Layers of task vectors, head means and causal effects against plain passes."""

from dataclasses import replace

import pytest
import torch

from iclgd.mechanisms.bench import Row, without_label
from iclgd.mechanisms.vectors import (
    _best_layer,
    _by_head,
    _causal_effects,
    _mean_head_outputs,
    _shuffled_context,
)
from iclgd.models.interventions import hidden_of
from mechanism_cases import bench, shown
from tiny_models import shared_model


def test_head_means_and_effects_of_a_function_vector_against_plain_passes():
    model, case = shared_model("llama"), shown(calibration=((17, 29), (18, 30, 42)))
    given = bench(model, "function_vector", case=case)
    means, effects = _mean_head_outputs(given), _causal_effects(given, _mean_head_outputs(given))
    seen = {}
    hook = model.anatomy.output_projection(1).register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
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
        hook = model.anatomy.output_projection(layer).register_forward_pre_hook(put)
        expected.append(model.network(tokens).logits[0, -1].softmax(-1)[answer] - before)
        hook.remove()
    torch.testing.assert_close(effects[layer, head], torch.stack(expected).mean().detach(), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("family", ["llama", "gpt_neo"])
def test_the_layer_of_a_task_vector_is_the_one_that_answers_best_in_plain_passes(family):
    model, case = shared_model(family), shown(calibration=((17, 29),))
    case = replace(case, demonstrations=tuple(replace(item, label=0) for item in case.demonstrations))
    given = bench(model, "task_vector", case=case)
    quality = []
    for layer in range(model.layers):
        right, total = 0, 0.0
        for place, item in enumerate(given.demonstrations):
            with_dummy = Row(case.calibration[0], given.context(left_out=place))
            vector = given.observe([with_dummy], "block_output", context=True)[0, layer]
            query, scores = without_label(item).token_ids, []
            end = len(query)

            def put(_module, _args, output, vector=vector, end=end):
                hidden = hidden_of(output).clone()
                hidden[0, end] = vector  # bos stands before the query
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            hook = model.anatomy.blocks[layer].register_forward_hook(put)
            for option in case.options(item):
                where = range(len(query), len(query) + len(option))
                log_probs = model.network(torch.tensor([[*case.bos, *query, *option]])).logits[0].log_softmax(-1)
                scores.append(
                    sum(log_probs[at, token].item() for at, token in zip(where, option, strict=True)) / len(option)
                )
            hook.remove()
            right, total = right + (max(scores) == scores[0]), total + scores[0]
        quality.append((right, total))
    assert _best_layer(given, case.calibration[0]) == max(range(model.layers), key=quality.__getitem__)
