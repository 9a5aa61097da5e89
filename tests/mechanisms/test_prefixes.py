"""A prefix before its first step is ICL; its loss and gradient are those of plain passes and differences."""

import pytest
import torch
from torch import nn

from iclgd.config import ConfigError
from iclgd.mechanisms.prefixes import _loss, _start, _trained, kv_prefix
from iclgd.metrics.distributions import total_variation
from mechanism_cases import FAMILIES, acted, assert_alike, bench, recording, shown
from tiny_models import shared_model, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_before_its_first_step_is_icl(family):
    model, case = shared_model(family), shown()
    found, trace = acted(bench(model, "kv_prefix", "finetune.epochs=0", case=case))
    icl = recording(model, case, case.context())
    assert_alike(found, icl)
    assert total_variation(found.next_token_log_probs, icl.next_token_log_probs).max() < 1e-6
    assert not len(trace.losses) and trace.gradient_norms.shape == (0, model.layers)


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
    model, case = tiny_model("gpt2", dtype=torch.float64), shown()
    given = bench(model, "kv_prefix", case=case)
    others, own = given.context(left_out=2), case.demonstrations[2].token_ids
    length, end = len(own), len(given.context())
    tokens, positions = (
        torch.tensor([[*others, *own]]),
        torch.tensor([[*range(len(others)), *range(end, end + length)]]),
    )
    logits = model.network(tokens, position_ids=positions).logits[0]
    plain = nn.functional.cross_entropy(logits[-length:-1], tokens[0, -length + 1 :])
    torch.testing.assert_close(
        _loss(given, _start(given), 2), plain.to(torch.float32), rtol=1e-6, atol=0, check_dtype=False
    )


def test_norms_of_a_prefix_are_of_its_keys_and_values_together():
    given = bench(shared_model("llama"), "kv_prefix")
    prefix, before = _start(given), _start(given)
    norms = _trained(given, prefix).update_norms
    changes = [
        torch.cat([(now - was).detach().flatten() for now, was in zip(*pairs, strict=True)])
        for pairs in zip(prefix, before, strict=True)
    ]
    torch.testing.assert_close(norms, torch.stack([change.norm() for change in changes]))


@pytest.mark.parametrize("family", ["bloom", "mistral"])
def test_a_prefix_is_not_trained_where_a_gap_in_it_closes(family):
    given = bench(shared_model(family), "kv_prefix")
    with pytest.raises(ConfigError, match="counts distances by the order of tokens"), kv_prefix(given):
        pass
