"""What a variant trains, by name, and the optimiser that trains it."""

from __future__ import annotations

import pytest
import torch

from iclgd.config import ConfigError
from iclgd.mechanisms.parameters import trained_parameters
from learning_cases import QUERY_PARTS, TEXTS, learning, prompts, trained_by
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


def test_adam_changes_nothing_but_what_is_trained_of_a_fused_projection():
    changed = change("gpt2", "k", "finetune.optimizer=adam")
    queries, keys_and_values = QUERY_PARTS["gpt2"][1:]
    for weight in changed.values():
        keys, values = keys_and_values(weight)
        assert keys.any() and not values.any() and not queries(weight).any()


def test_exits_before_all_that_is_trained_are_refused_by_name():
    model, early = shared_model("llama"), "protocol.exit=attention_output"
    for trainable in ("[mlp]", "up_proj"):
        with pytest.raises(ConfigError, match=r"leaves a block before all that finetune\.trainable names"):
            trained_by(model, learning(early, f"finetune.trainable={trainable}", objective="lcgd"))
    trained_by(model, learning(early, "finetune.trainable=mlp"))  # gd has no exits
