"""Products by oneDNN are the same products, and a network that uses them is the same network."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from iclgd.models import products
from iclgd.models.products import linear, use_linear
from tiny_models import RECORDABLE, tiny_network

pytestmark = pytest.mark.skipif(
    not products._available(), reason="this build of PyTorch has not oneDNN's operator, so nothing is taken over"
)


@pytest.fixture(autouse=True)
def _however_small(monkeypatch):
    monkeypatch.setattr(products, "_SMALL", 0)


def factors(rows, bias, transposed, trained):
    torch.manual_seed(0)
    weight = torch.randn(13, 17).T.contiguous().T if transposed else torch.randn(13, 17)
    return [
        torch.randn(*rows, 17).requires_grad_(True),
        weight.requires_grad_(trained),
        torch.randn(13).requires_grad_(trained) if bias else None,
    ]


@pytest.mark.parametrize("rows", [(), (5,), (2, 3, 4)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("trained", [True, False])
def test_values_and_gradients_are_those_of_pytorchs_own_linear(rows, bias, transposed, trained):
    mine, its = (factors(rows, bias, transposed, trained) for _ in range(2))
    found, expected = linear(*mine), functional.linear(*its)
    assert type(found.grad_fn).__name__ == "_LinearBackward", "the product was not taken over"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(mine, its, strict=True):
        if ours is not None and ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
        elif ours is not None:
            assert ours.grad is None and theirs.grad is None


def test_any_strides_will_do_in_rows_and_in_gradients():
    results = []
    for product in (linear, functional.linear):
        rows, weight, bias = factors((4,), True, False, True)
        rows = torch.arange(4 * 17 * 6).view(4, 17, 6).sin().requires_grad_(True)
        view = rows[:, :, :1].transpose(1, 2).expand(4, 5, 17)
        product(view, weight, bias).sum().backward()  # whose gradient is one number, expanded
        results.append((rows.grad, weight.grad, bias.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "small"), [(torch.float64, 0), (torch.bfloat16, 0), (torch.float32, 10**9)], ids=str)
def test_other_dtypes_and_small_products_are_left_to_pytorch_bit_for_bit(dtype, small, monkeypatch):
    monkeypatch.setattr(products, "_SMALL", small)
    rows, weight, bias = (factor.to(dtype) for factor in factors((5,), True, False, True))
    assert torch.equal(linear(rows, weight, bias), functional.linear(rows, weight, bias))


def test_without_the_operator_pytorchs_own_is_used(monkeypatch):
    def gone(*_):
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    rows, weight, bias = factors((4,), True, False, True)
    monkeypatch.setattr(products, "_by_onednn", gone)
    products._available.cache_clear()
    try:
        assert torch.equal(linear(rows, weight, bias), functional.linear(rows, weight, bias))
    finally:
        products._available.cache_clear()


@pytest.mark.parametrize("family", RECORDABLE)
def test_a_network_keeps_its_parameters_its_logits_and_its_gradients(family):
    network = tiny_network(family)
    before = copy.deepcopy(network)
    parameters = [id(parameter) for parameter in network.parameters()]
    use_linear(network)
    assert [id(parameter) for parameter in network.parameters()] == parameters
    assert not any(type(module) in (nn.Linear, Conv1D) for module in network.modules())
    tokens = torch.arange(1, 9)[None]
    mine, its = network(tokens).logits, before(tokens).logits
    torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)
    mine.square().mean().backward()
    its.square().mean().backward()
    for ours, theirs in zip(network.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
