"""Weights that rest in half precision give float32's numbers, exactly, and are what they were after training."""

import pytest
import torch

from iclgd.mechanisms.finetuning import finetuned
from iclgd.models.half_precision_storage import compute_in_float32
from iclgd.models.loading import assemble
from iclgd.models.recorder import record
from learning_cases import learning, prompts
from placement_cases import PLAN, QUESTIONS
from tiny_models import CONFIGS, tiny_network


def key_weight(model):
    (projection,) = model.anatomy.layers[1].projections["k"]
    return projection.module.weight


def rounded(family, dtype=torch.bfloat16):
    """A float32 model whose weights are numbers of a half precision."""
    network = tiny_network(family)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.to(dtype))
    return network


def resting(family, dtype=torch.bfloat16):
    network = tiny_network(family)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype)
    compute_in_float32(network)
    return network


@pytest.mark.parametrize("family", CONFIGS)
def test_logits_are_those_of_float32(family):
    tokens = (torch.arange(1, 10) * 7919)[None] % 97
    with torch.no_grad():
        assert torch.equal(resting(family)(input_ids=tokens).logits, rounded(family)(input_ids=tokens).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "xglm"])
def test_recordings_and_finetuning_are_those_of_float32(family):
    whole, half = assemble(rounded(family), None), assemble(resting(family), None)
    assert half.dtype is torch.float32
    matrix = key_weight(half)
    assert matrix.dtype is torch.bfloat16
    before, found = matrix.detach().clone(), []
    for model in (whole, half):
        with finetuned(model, prompts(), learning("finetune.lr=1e-6", objective="gd"), ranks=True) as trace:
            found.append((trace, record(model, QUESTIONS, (1,), PLAN)))
            assert key_weight(model).dtype is torch.float32
    (one, recorded), (other, again) = found
    assert (one.update_norms > 0).all()  # a step far below bfloat16's rounding is not lost
    for name in ("losses", "gradient_norms", "update_norms", "update_ranks"):
        torch.testing.assert_close(getattr(other, name), getattr(one, name), rtol=1e-6, atol=0)
    torch.testing.assert_close(again.attention_output, recorded.attention_output, rtol=1e-5, atol=1e-6)
    assert key_weight(half).dtype is torch.bfloat16
    assert torch.equal(key_weight(half), before)
