"""Head means and causal effects against plain passes."""

import torch

from iclgd.mechanisms.bench import without_label
from iclgd.mechanisms.vectors import (
    _by_head,
    _causal_effects,
    _mean_head_outputs,
    _output_projection,
    _shuffled_context,
)
from mechanism_cases import bench, shown
from tiny_models import shared_model


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
