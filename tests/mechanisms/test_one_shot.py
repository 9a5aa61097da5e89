"""Sums and means of demonstrations one at a time, where they must be ICL, and against plain passes."""

from contextlib import contextmanager

import pytest
import torch

from iclgd.config.enumerations import Site
from iclgd.mechanisms import one_shot
from iclgd.models import attention
from iclgd.models.attention_pass import AttentionPass
from iclgd.models.forward import encode_prefix, forward
from iclgd.models.interventions import intervening, last_tokens, reading, rewriting
from mechanism_cases import FAMILIES, acted, assert_alike, bench, recording, shown, without_positions
from tiny_models import shared_model


def attend_linearly(query, key, value, prefix, rule):
    """Attention without softmax: every visible key adds its score times its value."""
    own = torch.tril(query @ key.transpose(-1, -2) * rule.scale) @ value
    return own if prefix is None else own + (query @ prefix[0].transpose(-1, -2) * rule.scale) @ prefix[1]


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


@contextmanager
def read_plainly(given):
    """The mean, with every sequence read whole after each demonstration."""
    layers, count = given.layers, len(given.demonstrations)

    @contextmanager
    def intervention(token_ids, state):
        chosen, total = last_tokens(state, token_ids.shape[1]), dict.fromkeys(layers, 0)
        for place in range(count):
            outputs, prefix = {}, encode_prefix(given.model, given.context(only=place))
            with reading(given.model, Site.attention_output, layers, chosen, outputs):
                forward(given.model, token_ids, AttentionPass(lengths=state.lengths, prefix=prefix))
            total = {layer: total[layer] + rows / count for layer, rows in outputs.items()}
        with rewriting(given.model, Site.attention_output, layers, chosen, lambda layer, _rows: total[layer]):
            yield

    with intervening(given.model, intervention):
        yield given.no_steps()


@pytest.mark.parametrize("held", [one_shot._HELD, 1], ids=["keeps", "forgets"])
@pytest.mark.parametrize("family", [*FAMILIES, "mistral", "gpt_neo"])
def test_queries_that_are_read_once_for_all_labels_give_what_plain_passes_give(family, held, monkeypatch):
    model, case = shared_model(family), shown(queries=((14, 26, 38), (15, 27, 39, 51, 63), (16,), (14, 26, 39)))
    monkeypatch.setattr(one_shot, "_HELD", held)
    plain = acted(bench(model, "one_shot_mean", f"finetune.mechanism={__name__}.read_plainly", case=case))[0]
    assert_alike(acted(bench(model, "one_shot_mean", case=case))[0], plain)


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
