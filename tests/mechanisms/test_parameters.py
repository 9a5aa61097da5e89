"""What a variant trains, by name, and the optimiser that trains it."""

from __future__ import annotations

import pytest
import torch

from iclgd.config import ConfigError
from iclgd.mechanisms.parameters import trained_parameters
from learning_cases import QUERY_PARTS, SEQUENCES, TEXTS, gradients_of, learning, prompts, trained_by, weights
from tiny_models import shared_model

KEYS = ("weight", "bias")
FUSED = "c_attn|qkv_proj|query_key_value"


def change(family: str, trainable: str, *more: str) -> dict[str, torch.Tensor]:
    config = learning(f"finetune.trainable={trainable}", *more)
    return trained_by(shared_model(family), config, prompts(TEXTS[:1]))[1]


@pytest.mark.parametrize("family", QUERY_PARTS)
def test_queries_keys_and_values_are_told_apart_in_fused_projections(family: str):
    """Each is where the family keeps it, and together they are the whole projection's change."""
    _, queries, keys_and_values = QUERY_PARTS[family]
    whole = change(family, f'"{FUSED}"')
    parts = {letter: change(family, letter) for letter in "qkv"}
    for name, expected in whole.items():
        found = {letter: parts[letter].get(name, torch.zeros_like(expected)) for letter in "qkv"}
        torch.testing.assert_close(found["q"] + found["k"] + found["v"], expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(queries(found["q"]), queries(expected)) and queries(expected).any()
        for letter, place in zip("kv", (0, 1), strict=True):
            assert torch.equal(keys_and_values(found[letter])[place], keys_and_values(expected)[place])
            assert not queries(found[letter]).any() and not keys_and_values(found[letter])[1 - place].any()
    for choice, letters in {"[q,v]": "qv", "[k,q]": "qk", "[v,attn_kv]": "kv", f'[q,"{FUSED}"]': "qkv"}.items():
        for name, found in change(family, choice).items():
            expected = torch.stack([parts[letter].get(name, torch.zeros_like(found)) for letter in letters]).sum(0)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("family", "trainable", "names"),
    [
        ("llama", "q", ["self_attn.q_proj.weight"]),
        ("llama", "[v,o]", ["self_attn.v_proj.weight", "self_attn.o_proj.weight"]),
        ("llama", "'mlp.(up|down)_proj'", ["mlp.up_proj.weight", "mlp.down_proj.weight"]),
        ("llama", '"^input_layernorm"', ["input_layernorm.weight"]),
        (
            "gpt2",
            "[q,mlp]",
            [f"{m}.{k}" for m in ("attn.c_attn", "mlp.c_fc", "mlp.c_proj") for k in KEYS],
        ),
    ],
)
def test_a_choice_names_parameters_of_every_block(family: str, trainable: str, names: list[str]):
    model = shared_model(family)
    config = learning(f"finetune.trainable={trainable}")
    trained = trained_parameters(model, config.finetune.trainable, None)
    assert [(item.layer, item.name) for item in trained] == [(i, name) for i in range(model.layers) for name in names]


def test_choices_that_name_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"trainable=lora names no parameter of the chosen layers: choose one of q,"):
        change("llama", "lora")
    for wrong in ("'('", "[[k]]", "[]", "3"):
        with pytest.raises(ConfigError, match=r"finetune\.trainable="):
            learning(f"finetune.trainable={wrong}")


def test_a_rank_without_matrices_is_refused():
    with pytest.raises(ConfigError, match=r"finetune\.rank changes matrices, and finetune\.trainable names none"):
        change("gpt2", '"ln_1|layernorm"', "finetune.rank=2")


class Sign(torch.optim.Optimizer):
    """The sign of the gradient, as Lion's without momentum."""

    def __init__(self, params, lr: float, scale: float = 1.0) -> None:
        super().__init__(params, {"lr": lr, "scale": scale})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad.sign(), alpha=group["lr"] * group["scale"])


def one_step(optimizer: str, family: str = "llama"):
    """Weights before, gradients and changes of a step with rate 0.01."""
    model = shared_model(family)
    config = learning(f"finetune.optimizer={optimizer}", lr=0.01)
    _, changed = trained_by(model, config, prompts(TEXTS[:1]))
    _, gradients = gradients_of(model, learning(), SEQUENCES[0])
    before = weights(model)
    for item, gradient in zip(trained_parameters(model, "attn_kv", None), gradients, strict=True):
        name = next(key for key in changed if key.endswith(f".{item.layer}.{item.name}"))
        yield item, before[name], gradient, changed[name]


def test_an_optimiser_of_ones_own():
    for _, _, gradient, changed in one_step(f"{{_target_: {__name__}.Sign, scale: 2}}"):
        torch.testing.assert_close(changed, -0.02 * gradient.sign(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weight_decay_takes_from_what_is_trained_alone(family: str):
    for item, before, gradient, changed in one_step("{_target_: torch.optim.SGD, weight_decay: 0.5}", family):
        expected = torch.zeros_like(before)
        item.write(expected, item.part(-0.01 * (gradient + 0.5 * before)))
        torch.testing.assert_close(changed, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ("adamw", r"'adamw' is not an optimiser: write sgd, adam, or a class"),
        ("{lr: 1}", "is not an optimiser"),
        ("{_target_: torch.optim.SGD, lr: 1}", r"the rate is finetune\.lr"),
        ("{_target_: torch.optim.Lion}", r"finetune\.optimizer=torch\.optim\.Lion cannot be imported"),
        ("{_target_: torch.nn.Linear}", r"is no subclass of torch\.optim\.Optimizer"),
        ("{_target_: torch.optim.LBFGS}", "needs the loss as a function"),
        ("{_target_: torch.optim.SGD, momentun: 1}", "SGD refuses .*momentun"),
        ("{_target_: torch.optim.AdamW, betas: [2, 2]}", "AdamW refuses .*beta"),
    ],
)
def test_what_cannot_optimise_is_refused(optimizer: str, said: str):
    with pytest.raises(ConfigError, match=said):
        trained_by(shared_model("llama"), learning(f"finetune.optimizer={optimizer}"))


def test_exits_before_all_that_is_trained_are_refused_by_name():
    model, early = shared_model("llama"), "protocol.exit=attention_output"
    for trainable in ("[mlp]", "up_proj"):
        with pytest.raises(ConfigError, match=r"leaves a block before all that finetune\.trainable names"):
            trained_by(model, learning(early, f"finetune.trainable={trainable}", objective="lcgd"))
    trained_by(model, learning(early, "finetune.trainable=mlp"))  # gd has no exits
