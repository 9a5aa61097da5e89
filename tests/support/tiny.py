"""A tokenizer small enough to be trained in every test run."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = (
    "Review: The soup was cold and the bread was stale. Sentiment: Negative",
    "Review: A warm welcome, a fine meal and a fair price. Sentiment: Positive",
    "Headline: The council votes on a new bridge Topic: Politics Sports Science Food",
    "The premise is true. Question: is it false. True, False, or Neither? Answer: Neither",
    "Sentence: terrible bad neutral good great Label: Input: objective subjective Type: World Business Technology",
)
SPECIAL = ("<s>", "</s>", "<|endoftext|>")


def tiny_tokenizer(vocabulary: int = 384) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on a few sentences; bos is `<|endoftext|>`, and `<s>`, `</s>` are known."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="</s>"
    )
