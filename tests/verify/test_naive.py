"""The naive implementation agrees with facts about every family that hold whatever its parts are called."""

import pytest
import torch

from iclgd.verify.naive import Naive
from learning_cases import learning, prompts
from tiny_models import RECORDABLE, tiny_network

TOKENS = (1, *range(5, 85, 5))


@pytest.mark.parametrize("family", RECORDABLE)
def test_the_last_block_unembeds_to_the_models_own_logits(family):
    naive = Naive(tiny_network(family), learning(), prompts())
    seen = naive.run(TOKENS)
    torch.testing.assert_close(naive.unembed(seen.blocks[-1]), seen.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", RECORDABLE)
def test_keys_and_values_can_change_without_the_queries(family):
    """Of the first trained layer, everything that is not trained is queries: they stay, and the scores move."""
    naive = Naive(tiny_network(family), learning(), prompts())
    before = naive.run(TOKENS)
    for layer, parameter, mask in naive.trained():
        if layer == 1:
            parameter.data += 0.5 * parameter.data.abs().mean() * (1 if mask is None else mask)
    after = naive.run(TOKENS)
    torch.testing.assert_close(after.queries[1], before.queries[1])
    assert not torch.allclose(after.scores[1], before.scores[1], rtol=1e-2, equal_nan=True)
    torch.testing.assert_close(after.scores[0], before.scores[0], equal_nan=True)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "bloom", "gpt_neo"])
def test_scores_are_defined_where_the_last_token_can_see(family):
    naive = Naive(tiny_network(family), learning(), prompts())
    window = {"mistral": 6, "gpt_neo": 6}.get(family, len(TOKENS))
    defined = naive.run(TOKENS).scores[1].isfinite().all(0)
    assert defined.tolist() == [len(TOKENS) - 1 - key < window for key in range(len(TOKENS))]


def test_weights_are_as_before_after_finetuning():
    naive = Naive(tiny_network("llama"), learning(), prompts())
    before = {name: tensor.clone() for name, tensor in naive.network.state_dict().items()}
    with naive.finetuned() as trace:
        assert trace.losses.shape == (3,) and trace.diverged_at is None
        changed = {name for name, tensor in naive.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(".k_proj." in name or ".v_proj." in name for name in changed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in naive.network.state_dict().items())
