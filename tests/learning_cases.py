"""Prompts and configs for tests of learning."""

from functools import cache

from omegaconf import OmegaConf

from configs import composed
from iclgd.config import typed
from iclgd.records import Item, PromptSet

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
