"""Losses, gradients and weights agree with plain autograd on whole and truncated models, in every family."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from iclgd.mechanisms import objectives
from iclgd.mechanisms.finetuning import training_sequences
from iclgd.mechanisms.objectives import _UnembeddedLoss
from iclgd.mechanisms.parameters import trained_parameters
from iclgd.verify.naive import Naive
from learning_cases import finetuned, gradients_of, learning, prompts
from tiny_models import RECORDABLE, shared_model, tiny_network

LR = 0.05


def close(found, expected, tolerance=1e-4):
    """Relative to the largest of all: a key's bias has no gradient but rounding, since softmax does not see it."""
    scale = max(its.abs().max().item() for its in expected)
    for mine, its in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("objective", ["gd", "lcgd", "short_circuit"])
@pytest.mark.parametrize("family", RECORDABLE)
def test_weights_after_three_steps_agree(family, objective):
    exit_layer = ("finetune.exit_layer=1",) if objective == "short_circuit" else ()
    config, model = learning(*exit_layer, objective=objective, lr=LR), shared_model(family)
    naive = Naive(tiny_network(family), config, prompts())
    trained = trained_parameters(model, config.finetune.trainable, None)
    before = [item.parameter.clone() for item in trained]
    with finetuned(model, prompts(), config) as trace:
        changes = [item.parameter - old for item, old in zip(trained, before, strict=True)]
    with naive.finetuned() as expected:
        close(changes, [parameter - old for (_, parameter, _), old in zip(naive.trained(), before, strict=True)])
    close([trace.gradient_norms], [expected.gradient_norms])
    close([trace.losses], [expected.losses])
    assert trace.demonstrations == (0, 1, 2)


@pytest.mark.parametrize("family", ["llama", "olmo2", "gpt2", "xglm"])
def test_exit_at_the_attention_output_agrees(family):
    config, model = learning("protocol.exit=attention_output", objective="lcgd"), shared_model(family)
    _, expected = Naive(tiny_network(family), config, prompts()).gradients(prompts().demonstrations[:1])
    sequence = training_sequences(prompts(), config.finetune.loss_on, config.protocol.step)[0]
    _, gradients = gradients_of(model, config, sequence)
    close(gradients, expected)
    _, at_block = gradients_of(model, learning(objective="lcgd"), sequence)
    assert not torch.allclose(at_block[0], gradients[0], rtol=1e-2)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_agrees_in_float64_and_without_bos(family):
    config, model, few = learning(objective="lcgd"), shared_model(family, torch.float64), prompts(bos=())
    _, expected = Naive(tiny_network(family).double(), config, few).gradients(few.demonstrations[:1])
    sequence = training_sequences(few, config.finetune.loss_on, config.protocol.step)[0]
    _, gradients = gradients_of(model, config, sequence)
    close(gradients, expected, 1e-6)


VOCABULARY, WIDTH, ROWS = 1300, 24, 7


def readout(dtype=torch.float32, bias=False):
    torch.manual_seed(0)
    return nn.Linear(WIDTH, VOCABULARY, bias=bias).to(dtype).requires_grad_(False)


def in_blocks(unembedding, hidden, targets, softcap=None):
    return _UnembeddedLoss.apply(hidden, unembedding.weight, unembedding.bias, softcap, targets)


def plain(unembedding, hidden, targets, softcap=None):
    logits = unembedding(hidden).float()
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return functional.cross_entropy(logits, targets, reduction="sum")


@pytest.mark.parametrize("columns", [512, 1024, 4096])
@pytest.mark.parametrize(("bias", "softcap", "size"), [(False, None, 5), (True, 2.0, 5), (False, None, 3e4)])
def test_loss_and_gradient_are_those_of_all_logits_at_once(columns, bias, softcap, size, monkeypatch):
    monkeypatch.setattr(objectives, "_LOGITS_ON_CPU", columns * ROWS)
    model, hidden = readout(bias=bias), size * torch.randn(ROWS, WIDTH)
    targets = torch.randint(0, VOCABULARY, (ROWS,))
    found, expected = hidden.clone().requires_grad_(True), hidden.clone().requires_grad_(True)
    mine, its = in_blocks(model, found, targets, softcap), plain(model, expected, targets, softcap)
    (3 * mine).backward()
    (3 * its).backward()
    torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-4 if size > 5 else 1e-5)
    assert not in_blocks(model, hidden, targets, softcap).requires_grad, "none is made where none is wanted"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rises", [True, False])
def test_blocks_whose_logits_lie_far_apart_are_joined(dtype, rises, monkeypatch):
    monkeypatch.setattr(objectives, "_LOGITS_ON_CPU", 512 * ROWS)
    model, hidden = readout(dtype), torch.rand(ROWS, WIDTH).to(dtype)
    with torch.no_grad():
        model.weight.mul_(torch.linspace(*((0, 600) if rises else (600, 0)), VOCABULARY)[:, None].to(dtype))
    targets = torch.randint(0, VOCABULARY, (ROWS,))
    found, expected = hidden.clone().requires_grad_(True), hidden.float().requires_grad_(True)
    mine, its = in_blocks(model, found, targets), plain(model.float(), expected, targets)
    mine.backward()
    its.backward()
    exact = dtype is torch.float32
    torch.testing.assert_close(mine, its, rtol=1e-5 if exact else 2e-2, atol=0)
    assert found.grad.isfinite().all() and found.grad.dtype is dtype
    cosine = functional.cosine_similarity(found.grad.float(), expected.grad, dim=1)
    assert (cosine > (1 - 1e-5 if exact else 0.9)).all(), cosine
