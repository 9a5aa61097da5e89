"""How the toy model is trained: on contexts in which there is nothing else to learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from iclgd.common.seeding import numpy_stream, torch_stream
from toy import language


@dataclass(frozen=True)
class Stage:
    """A stretch of training: contexts of some length."""

    demonstrations: int  # in each context
    contexts: int  # in each step
    steps: int  # how many


# Attention finds the demonstration to copy from while there are few of them; longer contexts then follow quickly.
CURRICULUM = (Stage(4, 48, 900), Stage(8, 24, 150), Stage(16, 12, 250))
PEAK_RATE, WARM_UP, WORD_SHARE = 4e-3, 0.1, 0.3


def train(
    curriculum: Sequence[Stage] = CURRICULUM,
    seed: int = 0,
    after_step: Callable[[float, float], None] = lambda label, word: None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A Llama of 4 layers and 169,024 parameters, and its tokenizer.

    The loss is the mean cross-entropy of the labels, plus a small share of that of all other tokens, from which the
    topics of words are learned.
    """
    tokenizer, stream = language.tokenizer(), numpy_stream("toy contexts", seed)
    network = _fresh(seed)
    steps = sum(stage.steps for stage in curriculum)
    learner = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(learner, PEAK_RATE, total_steps=max(steps, 2), pct_start=WARM_UP)
    for stage in curriculum:
        for _ in range(stage.steps):
            contexts = [language.context(stage.demonstrations, stream) for _ in range(stage.contexts)]
            label, word = losses(network, *encoded([each.text for each in contexts], tokenizer))
            learner.zero_grad()
            (label + WORD_SHARE * word).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            learner.step()
            rates.step()
            after_step(label.item(), word.item())
    return network.eval(), tokenizer


def _fresh(seed: int) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=len(language.VOCABULARY),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=language.WINDOW,
        tie_word_embeddings=True,
        bos_token_id=language.VOCABULARY.index(language.BOS),
        eos_token_id=language.VOCABULARY.index(language.SEPARATOR),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_stream("toy weights", seed).initial_seed())
        return LlamaForCausalLM(config).train()


def encoded(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast
) -> tuple[Int[Tensor, "context token"], Bool[Tensor, "context token"]]:
    """Token ids, padded on the right, and which of them are no padding."""
    rows = [torch.tensor(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def losses(
    network: PreTrainedModel, token_ids: Int[Tensor, "context token"], real: Bool[Tensor, "context token"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean cross-entropies, in nats: of the labels, which follow the arrow, and of all other tokens."""
    log_probs = network(input_ids=token_ids, use_cache=False).logits[:, :-1].log_softmax(dim=-1)
    cross_entropy = -log_probs.gather(-1, token_ids[:, 1:, None]).squeeze(-1)
    label = token_ids[:, :-1] == language.VOCABULARY.index(language.ARROW)
    return cross_entropy[label].mean(), cross_entropy[real[:, 1:] & ~label].mean()


@torch.inference_mode()
def accuracy(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    demonstrations: int,
    contexts: int = 256,
) -> float:
    """The share of fresh contexts in which the label after so many demonstrations is predicted.

    Of the two labels of the context, the likelier counts as the prediction; 0 demonstrations is zero-shot.
    """
    stream = numpy_stream("toy evaluation", 1)
    drawn = [language.context(demonstrations + 1, stream) for _ in range(contexts)]
    token_ids, real = encoded([each.text.rpartition(" ")[0] for each in drawn], tokenizer)
    logits = network(input_ids=token_ids, use_cache=False).logits[torch.arange(contexts), real.sum(1) - 1]
    right = 0
    for each, row in zip(drawn, logits, strict=True):
        right += max(each.options, key=lambda word, row=row: row[language.VOCABULARY.index(word)]) == each.answer
    return right / contexts
