"""Losses, gradients and weights agree with plain autograd on whole and truncated models, in every family."""

import pytest
import torch

from iclgd.mechanisms import finetuned, training_sequences
from iclgd.mechanisms.objectives import ObjectiveOptions, resolve_objective
from iclgd.mechanisms.parameters import trained_parameters
from learning_cases import TEXTS, gradients_of, learning, prompts
from naive_finetuning import NaiveFinetuning
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
    network = tiny_network(family)
    naive = NaiveFinetuning(network)
    expected_norms, expected_losses = [], []
    for text in TEXTS:
        tokens = (1, *text)
        found = naive.gradients(objective, tokens, 1, exit_layer=1)
        layers = [layer for layer, *_ in naive.parameters()]
        expected_norms.append(
            [
                sum(g.double().square().sum() for at, g in zip(layers, found, strict=True) if at == layer).sqrt()
                for layer in range(network.config.num_hidden_layers)
            ]
        )
        depths = {"gd": [network.config.num_hidden_layers], "short_circuit": [2]}
        depths["lcgd"] = range(1, network.config.num_hidden_layers + 1)
        expected_losses.append(sum(naive.loss(tokens, 1, depth).item() for depth in depths[objective]))
        naive.step(found, LR)
    model = shared_model(family)
    exit_layer = ("finetune.exit_layer=1",) if objective == "short_circuit" else ()
    config = learning(*exit_layer, objective=objective, lr=LR)
    trained = trained_parameters(model, config.finetune.trainable, None)
    untouched = [item.parameter.clone() for item in trained]
    with finetuned(model, prompts(), config) as trace:
        now = [item.parameter.detach().clone() for item in trained]
    wanted = [parameter for _, _, parameter, _ in naive.parameters()]
    close([a - b for a, b in zip(now, untouched, strict=True)], [a - b for a, b in zip(wanted, untouched, strict=True)])
    close(list(trace.gradient_norms), [torch.tensor(row).float() for row in expected_norms])
    close([trace.losses], [torch.tensor(expected_losses)])
    assert trace.demonstrations == (0, 1, 2)


EXITS = {
    "llama": "self_attn.o_proj",
    "olmo2": "post_attention_layernorm",
    "gpt2": "attn.c_proj",
    "xglm": "self_attn.out_proj",
}


@pytest.mark.parametrize("family", EXITS)
def test_exit_at_the_attention_output_agrees(family):
    naive = NaiveFinetuning(tiny_network(family))
    expected = naive.gradients("lcgd", (1, *TEXTS[0]), 1, exit_attention=EXITS[family])
    model = shared_model(family)
    config = learning("protocol.exit=attention_output", objective="lcgd")

    sequence = training_sequences(prompts(), config.finetune.loss_on, config.protocol.step)[0]
    _, found = gradients_of(model, config, sequence)
    close(found, expected)
    _, at_block = gradients_of(model, learning(objective="lcgd"), sequence)
    assert not torch.allclose(at_block[0], found[0], rtol=1e-2)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_agrees_in_float64_and_without_bos(family):
    naive = NaiveFinetuning(tiny_network(family).double())
    expected = naive.gradients("lcgd", TEXTS[0], 1)
    model = shared_model(family, torch.float64)

    config = learning(objective="lcgd")
    sequence = training_sequences(prompts(bos=()), config.finetune.loss_on, config.protocol.step)[0]
    _, found = gradients_of(model, config, sequence)
    close(found, expected, 1e-6)


def test_options_default_to_the_last_block():
    model = shared_model("llama")
    config = learning()

    sequence = training_sequences(prompts(), config.finetune.loss_on, config.protocol.step)[0]
    whole = resolve_objective("gd")(model, sequence, ObjectiveOptions(layers=(0, 1, 2)))
    short = resolve_objective("short_circuit")(model, sequence, ObjectiveOptions(layers=(0, 1, 2)))
    assert whole == short
