"""Prompts and configs for tests of learning, and what training changes."""

from functools import cache

import torch
from omegaconf import OmegaConf

from configs import composed
from iclgd.common.records import Item, PromptSet
from iclgd.config import typed
from iclgd.config.enumerations import LossOn, StepPer
from iclgd.mechanisms.bench import Bench
from iclgd.mechanisms.finetuning import gradient_descent, objective_gradient, training_sequences
from iclgd.mechanisms.parameters import trainable, trained_parameters

BOS = (1,)
TEXTS = ((11, 23, 35, 47, 59), (36, 48, 60, 72, 84, 9, 21), (13, 25, 37, 49))


def prompts(texts=TEXTS, bos=BOS, label_length=1, training=None) -> PromptSet:
    items = tuple(Item("", text, i % 2, label_length) for i, text in enumerate(texts))
    return PromptSet(
        bos=bos,
        separator=(2,),
        demonstrations=items,
        queries=(Item("", (14, 26, 38), 0),),
        label_words=("a", "b"),
        label_token_ids=((5,), (6,)),
        in_context=tuple(range(len(items))),
        training=training,
    )


@cache
def _base(objective):
    base = composed([f"finetune={objective}"])
    OmegaConf.resolve(base)
    return base


@cache
def learning(*overrides, objective="gd", lr=0.05):
    """A config that finetunes with this objective; kept, since composing takes a while."""
    return typed(OmegaConf.merge(_base(objective), OmegaConf.from_dotlist([f"finetune.lr={lr}", *overrides])))


SEQUENCES = training_sequences(prompts(), LossOn.all_tokens, StepPer.demonstration)


def finetuned(model, given, config, after_step=lambda: None):
    """Within the block, the model is finetuned as the config says."""
    return gradient_descent(Bench(model, given, config, lambda: None, lambda _total: after_step))


def weights(model):
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def assert_same(before, model):
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(before[name], tensor), name


def trained_by(model, config, given=None):
    """The trace, and what changed of every weight."""
    before = weights(model)
    with finetuned(model, given or prompts(), config) as trace:
        after = weights(model)
    assert_same(before, model)
    return trace, {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}


def gradients_of(model, config, sequence):
    """The objective's gradient on one sequence, queries' part of fused projections zeroed."""
    trained = trained_parameters(model, config.finetune.trainable, None)
    with trainable(trained):
        loss, gradients = objective_gradient(model, config, trained)([sequence])
    return loss, [gradient.clone() for gradient in gradients]


# By family: the fused projection, its queries, its keys and values.
QUERY_PARTS = {
    "gpt2": ("transformer.h.{}.attn.c_attn", lambda x: x[..., :32], lambda x: (x[..., 32:64], x[..., 64:])),
    "phi3": ("model.layers.{}.self_attn.qkv_proj", lambda x: x[:32], lambda x: (x[32:48], x[48:])),
    **dict.fromkeys(
        ("gpt_neox", "bloom"),
        (
            "{}.query_key_value",
            lambda x: x.unflatten(0, (4, 3, 8))[:, 0],
            lambda x: (x.unflatten(0, (4, 3, 8))[:, 1], x.unflatten(0, (4, 3, 8))[:, 2]),
        ),
    ),
    "falcon": (
        "{}.query_key_value",
        lambda x: x.unflatten(0, (2, 4, 8))[:, :2],
        lambda x: (x.unflatten(0, (2, 4, 8))[:, 2], x.unflatten(0, (2, 4, 8))[:, 3]),
    ),
    "falcon_multi_query": ("{}.query_key_value", lambda x: x[:32], lambda x: (x[32:40], x[40:])),
}
