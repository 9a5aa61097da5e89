"""The two protocol presets, and what each switch behind them changes."""

import pytest
import torch

from iclgd.evidence.facts import random_update
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.preparation import prepare
from iclgd.mechanisms.finetuning import finetuned, training_sequences
from iclgd.runs.progress import Progress
from learning_cases import gradients_of, learning, prompts
from tiny_models import shared_model


def laboratory(model, *overrides, wanted=("random_update",)):
    settings = learning("runtime.cache='off'", *overrides)
    return Laboratory(model, prompts(), settings, set(wanted), Progress(), prepare(settings))


@pytest.fixture(scope="module")
def model():
    return shared_model("llama")


@pytest.mark.parametrize("setting", ["zsl", "icl"])
def test_record_at_moves_the_record_and_not_the_prediction(model, setting):
    last, first = (
        laboratory(model, f"protocol.record_at={place}").untouched(setting)
        for place in ("last_prompt_token", "first_label_token")
    )
    assert first.attention_scores.shape[-1] == last.attention_scores.shape[-1] + 1
    assert not torch.allclose(first.attention_output, last.attention_output, atol=1e-2)
    torch.testing.assert_close(first.label_scores, last.label_scores)


def test_random_update_is_gaussian_or_uniform():
    shape = torch.Size((50, 3, 32))
    gaussian = random_update(shape, learning())
    uniform = random_update(shape, learning("protocol.random_update=uniform"))
    assert abs(gaussian.mean()) < 0.05 and abs(gaussian.std() - 1) < 0.05
    assert 0 <= uniform.min() and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.02
    assert torch.equal(uniform, random_update(shape, learning("protocol.random_update=uniform")))
    assert not torch.equal(gaussian, random_update(shape, learning("seed=1")))


def test_exit_moves_the_layer_causal_loss_and_not_gd(model):
    for objective, same in (("lcgd", False), ("gd", True)):
        found = []
        for place in ("block_output", "attention_output"):
            settings = learning(f"protocol.exit={place}", objective=objective)
            sequence = training_sequences(prompts(), settings.finetune.loss_on, settings.protocol.step)[0]
            found.append(torch.cat([gradient.flatten() for gradient in gradients_of(model, settings, sequence)[1]]))
        assert torch.allclose(*found, rtol=1e-3, atol=1e-6) == same


def test_a_step_for_each_token_is_another_training(model):
    norms = []
    for step in ("demonstration", "token"):
        with finetuned(model, prompts(), learning(f"protocol.step={step}")) as trace:
            norms.append(trace.update_norms)
    assert (norms[1] > 1.5 * norms[0]).all()
