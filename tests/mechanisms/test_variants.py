"""Every setting of finetuning does what it says, and the weights come back bit for bit."""

import copy

import pytest
import torch

from iclgd.config import ConfigError
from iclgd.config.enumerations import LossOn, StepPer, Trainable
from iclgd.mechanisms.finetuning import training_sequences
from iclgd.mechanisms.parameters import trained_parameters
from iclgd.models.loading import assemble
from learning_cases import (
    BOS,
    SEQUENCES,
    TEXTS,
    assert_same,
    finetuned,
    gradients_of,
    learning,
    prompts,
    trained_by,
    weights,
)
from tiny_models import RECORDABLE, shared_model, tiny_model


def randomised_above(model, layer):
    generator = torch.Generator().manual_seed(7)
    changed = copy.deepcopy(model.network)

    changed.config._attn_implementation = "eager"
    other = assemble(changed, None)
    with torch.no_grad():
        for block in other.anatomy.blocks[layer + 1 :]:
            for parameter in block.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return other


@pytest.mark.parametrize("family", RECORDABLE)
def test_lcgd_does_not_know_the_layers_above(family):
    model = shared_model(family)
    other = randomised_above(model, 0)
    layers = [item.layer for item in trained_parameters(model, Trainable.attn_kv, None)]
    both = {}
    for objective in ("lcgd", "gd"):
        config = learning(objective=objective)
        pairs = zip(*(gradients_of(m, config, SEQUENCES[0])[1] for m in (model, other)), strict=True)
        both[objective] = [(a, b) for layer, (a, b) in zip(layers, pairs, strict=True) if layer == 0]
    for a, b in both["lcgd"]:
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * a.abs().max().item())
    assert any((a - b).norm() > 0.1 * a.norm() for a, b in both["gd"])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_lcgd_on_one_layer_is_gd(family):
    model = tiny_model(family, **{"n_layer" if family == "gpt2" else "num_hidden_layers": 1})
    gradients = [gradients_of(model, learning(objective=name), SEQUENCES[0])[1] for name in ("gd", "lcgd")]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_weights_come_back_after_an_exception_and_after_divergence():
    model = shared_model("gpt_neox")
    before = weights(model)
    with pytest.raises(KeyError, match="mine"), finetuned(model, prompts(), learning()):
        raise KeyError("mine")
    assert_same(before, model)

    def stop():
        raise KeyError("in a step")

    with pytest.raises(KeyError, match="in a step"), finetuned(model, prompts(), learning(), stop):
        pass
    assert_same(before, model)
    trained_by(model, learning("finetune.epochs=20", lr=1e6))
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.network.parameters())


def test_divergence_is_said_and_ends_training():
    """A model full of norms stays finite for long: only a loss or gradient that is not finite is divergence."""
    model, steps = shared_model("gpt2"), []
    before = weights(model)
    with finetuned(model, prompts(), learning("finetune.epochs=10", lr=1e20), lambda: steps.append(1)) as trace:
        pass
    assert_same(before, model)
    assert trace.diverged_at == 1 and steps == [1]
    assert len(trace.losses) == len(trace.gradient_norms) == len(trace.demonstrations) == 2
    assert trace.losses[0].isfinite() and not trace.losses[1].isfinite()
    assert trace.update_norms.isnan().all()
    sound, _ = trained_by(model, learning(lr=1e6))
    assert sound.diverged_at is None and sound.update_norms.isfinite().all()


MLP = {"llama": "mlp", "opt": "fc", "gpt2": "mlp", "gpt_neo": "mlp"}


@pytest.mark.parametrize("family", MLP)
def test_trainable_names_the_weights(family):
    model = shared_model(family)
    kinds = {kind: set(trained_by(model, learning(f"finetune.trainable={kind}"))[1]) for kind in Trainable}
    blocks = {name for name, _ in model.network.named_parameters() if ".layers." in name or ".h." in name}
    assert kinds[Trainable.mlp] == {name for name in blocks if f".{MLP[family]}" in name}
    assert kinds[Trainable.attn_kv] < kinds[Trainable.attention] < kinds[Trainable.all] == blocks
    assert kinds[Trainable.attention] == {name for name in blocks if ".self_attn." in name or ".attn." in name}
    if family != "gpt2":
        assert all("k_proj" in name or "v_proj" in name for name in kinds[Trainable.attn_kv])


@pytest.mark.parametrize("objective", ["gd", "lcgd"])
def test_layers_name_the_blocks(objective):
    model = shared_model("llama")
    trace, changed = trained_by(model, learning("finetune.layers=[1]", objective=objective))
    assert changed and all(".layers.1." in name for name in changed)
    assert trace.gradient_norms[:, [0, 2]].isnan().all() and (trace.gradient_norms[:, 1] > 0).all()
    assert trace.update_norms[[0, 2]].isnan().all()
    whole, _ = trained_by(model, learning(objective=objective))
    torch.testing.assert_close(whole.gradient_norms[0, 1], trace.gradient_norms[0, 1], rtol=1e-5, atol=0)
    with pytest.raises(ConfigError, match=r"finetune\.layers names layer 3, but the model's layers are 0 to 2"):
        trained_by(model, learning("finetune.layers=1-3"))


def test_short_circuit_trains_the_blocks_below_its_exit():
    model = shared_model("llama")
    _, changed = trained_by(model, learning("finetune.exit_layer=1", objective="short_circuit"))
    assert {name.split(".")[2] for name in changed} == {"0", "1"}
    with pytest.raises(ConfigError, match=r"finetune\.exit_layer=3 does not exist: the model's layers are 0 to 2"):
        trained_by(model, learning("finetune.exit_layer=3", objective="short_circuit"))


def test_loss_on_the_label_and_steps_for_tokens():
    whole = training_sequences(prompts(label_length=2), LossOn.all_tokens, StepPer.demonstration)
    label = training_sequences(prompts(label_length=2), LossOn.label, StepPer.demonstration)
    tokens = training_sequences(prompts(label_length=2), LossOn.all_tokens, StepPer.token)
    bare = training_sequences(prompts(bos=()), LossOn.all_tokens, StepPer.demonstration)
    for text, sequence, at_label, without in zip(TEXTS, whole, label, bare, strict=True):
        assert sequence.token_ids.tolist() == [*BOS, *text]
        assert sequence.targets().tolist() == list(text) and sequence.sources().tolist() == list(range(len(text)))
        assert at_label.targets().tolist() == list(text[-2:])
        assert without.targets().tolist() == list(text[1:])
    assert len(tokens) == sum(map(len, TEXTS))
    assert [sequence.demonstration for sequence in tokens] == [0] * 5 + [1] * 7 + [2] * 4
    assert [sequence.targets().tolist() for sequence in tokens[:3]] == [[11], [23], [35]]
    assert tokens[2].token_ids.tolist() == [1, 11, 23, 35] and tokens[2].sources().tolist() == [2]


def test_the_mean_of_token_gradients_is_the_demonstration_gradient():
    model = shared_model("llama", torch.float64)
    tokens = training_sequences(prompts(TEXTS[:1]), LossOn.all_tokens, StepPer.token)
    each = [gradients_of(model, learning(), sequence)[1] for sequence in tokens]
    _, whole = gradients_of(model, learning(), SEQUENCES[0])
    for i, gradient in enumerate(whole):
        mean = torch.stack([gradients[i] for gradients in each]).mean(0)
        torch.testing.assert_close(mean, gradient, rtol=1e-6, atol=1e-6 * gradient.abs().max().item())
    trace, _ = trained_by(model, learning("protocol.step=token"))
    assert len(trace.losses) == sum(map(len, TEXTS)) and trace.demonstrations[:6] == (0, 0, 0, 0, 0, 1)


def test_a_full_batch_takes_one_step_along_the_mean():
    model = shared_model("llama", torch.float64)
    trace, changed = trained_by(model, learning("finetune.batch=full", "finetune.epochs=1", lr=0.1))
    each = [gradients_of(model, learning(), sequence) for sequence in SEQUENCES]
    assert trace.losses.tolist() == pytest.approx([sum(loss for loss, _ in each) / 3], rel=1e-6)
    assert trace.demonstrations == (-1,)
    names = [item.name for item in trained_parameters(model, Trainable.attn_kv, None)]
    for i, item in enumerate(trained_parameters(model, Trainable.attn_kv, None)):
        mean = torch.stack([gradients[i] for _, gradients in each]).mean(0)
        found = changed[f"model.layers.{item.layer}.{names[i]}"]
        torch.testing.assert_close(found, -0.1 * mean, rtol=1e-6, atol=1e-6 * mean.abs().max().item())
