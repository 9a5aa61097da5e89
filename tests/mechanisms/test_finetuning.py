"""How steps are taken: how often, how long, in which direction, along which objective."""

import importlib

import pytest
import torch

from iclgd.common.records import Item
from iclgd.config import ConfigError
from learning_cases import SEQUENCES, TEXTS, gradients_of, learning, prompts, trained_by
from tiny_models import shared_model


def test_epochs_repeat_the_demonstrations():
    trace, _ = trained_by(shared_model("llama"), learning("finetune.epochs=3", lr=0.05))
    assert trace.demonstrations == (0, 1, 2) * 3
    assert trace.losses[6:].mean() < trace.losses[:3].mean()


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_norms_are_matched_to_another_objective(family):
    model = shared_model(family)
    matched, _ = trained_by(model, learning("finetune.norm_of=gd", objective="lcgd"), prompts(TEXTS[:1]))
    gd, _ = trained_by(model, learning(), prompts(TEXTS[:1]))
    own, _ = trained_by(model, learning(objective="lcgd"), prompts(TEXTS[:1]))
    torch.testing.assert_close(matched.gradient_norms, gd.gradient_norms, rtol=1e-5, atol=0)
    assert not torch.allclose(own.gradient_norms, gd.gradient_norms, rtol=1e-2)
    _, a = gradients_of(model, learning("finetune.norm_of=gd", objective="lcgd"), SEQUENCES[0])
    _, b = gradients_of(model, learning(objective="lcgd"), SEQUENCES[0])
    for x, y in zip(a, b, strict=True):
        assert torch.cosine_similarity(x.flatten(), y.flatten(), dim=0) > 1 - 1e-5


def test_a_random_direction_keeps_the_norm_and_the_seed():
    model = shared_model("gpt_neox")
    one = prompts(TEXTS[:1])
    own, straight = trained_by(model, learning(), one)
    found, first = trained_by(model, learning("finetune.direction=random"), one)
    _, again = trained_by(model, learning("finetune.direction=random"), one)
    _, other = trained_by(model, learning("finetune.direction=random", "seed=1"), one)
    _, another = trained_by(model, learning("finetune.direction=random", "finetune.name=another"), one)
    torch.testing.assert_close(found.gradient_norms, own.gradient_norms, rtol=1e-5, atol=0)
    for name in straight:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name]) and not torch.equal(first[name], another[name])
    flat = [torch.cat([change[name].flatten() for name in sorted(straight)]) for change in (first, straight)]
    assert abs(torch.cosine_similarity(*flat, dim=0)) < 0.2
    queries = first["gpt_neox.layers.0.attention.query_key_value.weight"].unflatten(0, (4, 3, 8))[:, 0]
    assert not queries.any()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_low_rank_change_has_a_low_rank(family):
    ranks = {}
    for rank in (2, "null"):
        config = learning(f"finetune.rank={rank}", "finetune.epochs=3", "finetune.trainable=[k,v,mlp]", lr=0.3)
        changed = trained_by(shared_model(family), config)[1]
        ranks[rank] = [
            torch.linalg.matrix_rank(each.double(), rtol=1e-4) for each in changed.values() if each.ndim == 2
        ]
        assert rank == "null" or all(each.ndim == 2 for each in changed.values()), "vectors stay"
    assert max(ranks[2]) <= 2 < min(ranks["null"])


def test_other_training_data_is_what_is_seen():
    model = shared_model("llama")
    other = (Item("", (61, 62, 63), 0, 1),)
    found, _ = trained_by(model, learning(), prompts(training=other))
    alone, _ = trained_by(model, learning(), prompts(texts=((61, 62, 63),)))
    assert torch.equal(found.losses, alone.losses)


def mine(model, sequence, options):
    """An objective of a user's own."""
    return 2 * importlib.import_module("iclgd.mechanisms.objectives").gd(model, sequence, options)


def test_an_objective_of_ones_own():
    model = shared_model("llama")
    config = learning(f"finetune.objective={__name__}.mine")
    mine_, _ = trained_by(model, config)
    gd, _ = trained_by(model, learning())
    torch.testing.assert_close(mine_.losses, 2 * gd.losses)
    for wrong in ("iclgd.nowhere.f", "iclgd.mechanisms.objectives.nothing"):
        with pytest.raises(ConfigError, match=r"cannot be imported"):
            trained_by(model, learning(f"finetune.objective={wrong}"))
