"""Effects of context that are constant or linear by construction are recovered by shifts."""

import pytest
import torch
from torch import nn

from iclgd.models import attention
from mechanism_cases import ONE_TOKEN, acted, assert_alike, bench, recording, shown, without_positions
from tiny_models import shared_model


@pytest.mark.parametrize("site", ["attention_output", "block_output"])
def test_a_constant_effect_of_context_is_recovered_by_its_mean(monkeypatch, site):
    """Every visible key adds its value: what context adds to a query of one token is the same for all queries."""
    model = without_positions(3)

    def attend(query, _key, value, prefix, _rule):
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

    def attend(_query, _key, value, prefix, _rule):
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
