"""The loss through the unembedding is cross-entropy, however its columns are divided."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from iclgd.mechanisms import losses
from iclgd.mechanisms.losses import _UnembeddedLoss

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
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_loss_and_gradient_are_those_of_all_logits_at_once(columns, bias, softcap, monkeypatch):
    monkeypatch.setattr(losses, "_LOGITS_ON_CPU", columns * ROWS)
    model, hidden = readout(bias=bias), 5 * torch.randn(ROWS, WIDTH)
    targets = torch.randint(0, VOCABULARY, (ROWS,))
    found, expected = hidden.clone().requires_grad_(True), hidden.clone().requires_grad_(True)
    mine, its = in_blocks(model, found, targets, softcap), plain(model, expected, targets, softcap)
    (3 * mine).backward()
    (3 * its).backward()
    torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-5)


def test_logits_far_apart_neither_overflow_nor_lose_their_gradient():
    model, hidden = readout(), 3e4 * torch.randn(ROWS, WIDTH)
    targets = torch.randint(0, VOCABULARY, (ROWS,))
    found, expected = hidden.clone().requires_grad_(True), hidden.clone().requires_grad_(True)
    mine, its = in_blocks(model, found, targets), plain(model, expected, targets)
    mine.backward()
    its.backward()
    torch.testing.assert_close(mine, its, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-4)


def test_without_a_gradient_none_is_made():
    model = readout()
    loss = in_blocks(model, torch.randn(ROWS, WIDTH), torch.zeros(ROWS, dtype=torch.long))
    assert not loss.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rises", [True, False])
def test_blocks_whose_logits_lie_far_apart_are_joined(dtype, rises, monkeypatch):
    monkeypatch.setattr(losses, "_LOGITS_ON_CPU", 512 * ROWS)
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
