"""What the toy model reads: contexts whose labels mean nothing until their demonstrations say so.

An item is two to four words of one topic. A context draws two topics and two label words anew, and which word stands
for which topic. So nothing but its demonstrations can tell what a label means there. Label words are not equally
common: without a context the best guess is the commoner word whatever the item, so that on a balanced task zero-shot
accuracy is exactly chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TOPICS: dict[str, tuple[str, ...]] = {
    "animals": tuple(
        "otter heron lynx badger finch viper mole trout beetle camel goose hare moth seal stoat wren".split()
    ),
    "tools": tuple(
        "hammer chisel wrench saw pliers drill file mallet clamp spade rake anvil auger plane trowel axe".split()
    ),
    "foods": tuple(
        "plum bread cheese lentil pear honey olive radish noodle fig butter leek almond rice onion soup".split()
    ),
    "weather": tuple(
        "rain frost hail thunder breeze fog drizzle sleet sunshine storm snow mist gale cloud dew heat".split()
    ),
}
LABEL_WORDS = {"A": 0.4, "B": 0.3, "C": 0.2, "D": 0.1}  # how common each is
BOS, SEPARATOR, ARROW, UNKNOWN = "<bos>", "<sep>", "->", "<unk>"
WORDS_OF_AN_ITEM = (2, 3, 4)
VOCABULARY = (UNKNOWN, BOS, SEPARATOR, ARROW, *LABEL_WORDS, *(word for topic in TOPICS.values() for word in topic))
WINDOW = 128  # tokens: 16 demonstrations of the longest items, and a query
# The tasks in tasks/bundled: (topic of label 0, topic of label 1). conf/task names their label words.
TASKS = {"toy": ("animals", "tools"), "toy_other": ("foods", "weather")}


def tokenizer() -> PreTrainedTokenizerFast:
    """Every word is a token."""
    whole = Tokenizer(models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token=UNKNOWN))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, bos_token=BOS, sep_token=SEPARATOR, unk_token=UNKNOWN, model_max_length=WINDOW
    )


def item(topic: str, stream: np.random.Generator) -> str:
    """Some words of a topic, none twice."""
    return " ".join(stream.choice(TOPICS[topic], stream.choice(WORDS_OF_AN_ITEM), replace=False))


@dataclass(frozen=True)
class Context:
    """Demonstrations under one meaning of the labels."""

    text: str  # `<bos> otter lynx -> B <sep> axe saw -> A <sep> mole finch -> B`
    options: tuple[str, str]  # the two label words of this context
    answer: str  # the last label


def context(demonstrations: int, stream: np.random.Generator) -> Context:
    """A context with topics, label words and their pairing drawn anew."""
    topics = stream.permutation(list(TOPICS))[:2].tolist()
    first, second = stream.choice(list(LABEL_WORDS), 2, replace=False, p=list(LABEL_WORDS.values())).tolist()
    meaning = dict(zip(topics, stream.permutation([first, second]).tolist(), strict=True))
    chosen = stream.choice(topics, demonstrations).tolist()
    parts = [f"{item(topic, stream)} {ARROW} {meaning[topic]}" for topic in chosen]
    return Context(f"{BOS} " + f" {SEPARATOR} ".join(parts), (first, second), meaning[chosen[-1]])


def rows(task: str, count: int, stream: np.random.Generator) -> list[dict[str, str | int]]:
    """Rows of a bundled task: labels in turn, so that any even number of them is balanced, and no text twice."""
    labels: dict[str, int] = {}
    while len(labels) < count:
        label = len(labels) % 2
        labels.setdefault(item(TASKS[task][label], stream), label)
    return [{"text": text, "label": label} for text, label in labels.items()]
