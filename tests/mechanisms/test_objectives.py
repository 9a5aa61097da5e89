"""Losses, gradients and weights agree with plain autograd on whole and truncated models, in every family."""

import pytest
import torch

from iclgd.mechanisms.finetuning import finetuned, training_sequences
from iclgd.mechanisms.objectives import ObjectiveOptions, resolve_objective
from iclgd.mechanisms.parameters import trained_parameters
from iclgd.verify.naive import Naive
from learning_cases import gradients_of, learning, prompts
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


def test_options_default_to_the_last_block():
    model = shared_model("llama")
    config = learning()

    sequence = training_sequences(prompts(), config.finetune.loss_on, config.protocol.step)[0]
    whole = resolve_objective("gd")(model, sequence, ObjectiveOptions(layers=(0, 1, 2)))
    short = resolve_objective("short_circuit")(model, sequence, ObjectiveOptions(layers=(0, 1, 2)))
    assert whole == short
