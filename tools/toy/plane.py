"""The toy model of the plane: points with two labels, whose border nothing but the demonstrations tells.

A context has points of a grid and a border drawn anew, a straight line or a circle. The model starts as an induction
head would act, with keys that are smooth functions of the coordinates, so that it looks at the labels of near points;
from a random start no such head had appeared after 900 steps. Training then changes every weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from iclgd.common.seeding import numpy_stream, torch_stream

SIDE = 19
# Points of two grids: queries have even coordinates, and demonstrations odd ones, so that no query is a demonstration.
POINTS = np.array([(x, y) for x in range(SIDE) for y in range(SIDE) if x % 2 == y % 2])
LABELS = ("blue", "red")
UNKNOWN, BOS, SEPARATOR = "<unk>", "<bos>", "<sep>"
VOCABULARY = (UNKNOWN, BOS, SEPARATOR, *LABELS, *(f"{x},{y}:" for x, y in POINTS))
FIRST_LABEL, FIRST_POINT = 3, 5
WINDOW = 256
CENTRED = (POINTS - SIDE // 2) / 2
# Borders of the bundled tasks: the second label is where these are positive, as functions of centred coordinates.
TASKS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "plane_linear": lambda x, y: 0.8 * x + 0.6 * y + 0.2,
    "plane_curved": lambda x, y: 3.7**2 - (x - 0.3) ** 2 - (y + 0.4) ** 2,
}
_FREQUENCIES, _HEAD, _THETA = 10, 32, 1e7  # of the features of a point; the width of a head; of its rotations
_FLAG, _LABEL, _BEFORE = 24, 28, 32  # where the residual stream has: one, the label, the features of the point before
STAGES = ((8, 32, 150), (16, 24, 150), (40, 12, 300))  # demonstrations, contexts in a step, steps
PEAK_RATE = 2e-3


def tokenizer() -> PreTrainedTokenizerFast:
    """Every point and every label is a token."""
    whole = Tokenizer(models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token=UNKNOWN))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, bos_token=BOS, sep_token=SEPARATOR, unk_token=UNKNOWN, model_max_length=WINDOW
    )


def border(stream: np.random.Generator) -> Int[np.ndarray, " point"]:
    """Labels of all points on the two sides of a line or a circle; the smaller side has three tenths or more."""
    x, y = CENTRED.T
    while True:
        if stream.random() < 0.5:
            angle = stream.uniform(0, 2 * math.pi)
            height = math.cos(angle) * x + math.sin(angle) * y - stream.normal(0, 1.5)
        else:
            a, b = stream.uniform(-4.5, 4.5, 2)
            height = stream.choice([-1, 1]) * ((x - a) ** 2 + (y - b) ** 2 - stream.uniform(2, 6) ** 2)
        labels = (height > 0).astype(np.int64)
        if 0.3 <= labels.mean() <= 0.7:
            return labels


def contexts(count: int, demonstrations: int, stream: np.random.Generator) -> Int[Tensor, "context token"]:
    """`<bos> 3,7: blue <sep> 12,2: red <sep> ...`, as token ids."""
    ids = np.full((count, 1 + 3 * demonstrations), VOCABULARY.index(SEPARATOR))
    ids[:, 0] = VOCABULARY.index(BOS)
    for row in ids:
        labels, points = border(stream), stream.choice(len(POINTS), demonstrations, replace=False)
        row[1::3], row[2::3] = FIRST_POINT + points, FIRST_LABEL + labels[points]
    return torch.from_numpy(ids)


def train(
    stages: tuple[tuple[int, int, int], ...] = STAGES,
    seed: int = 0,
    after_step: Callable[[float], None] = lambda _: None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A Llama of 4 layers, and its tokenizer. The loss is the mean cross-entropy of the labels."""
    stream, network = numpy_stream("plane contexts", seed), fresh(seed)
    learner = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    steps = sum(count for *_, count in stages)
    rates = torch.optim.lr_scheduler.OneCycleLR(learner, PEAK_RATE, total_steps=max(steps, 2), pct_start=0.1)
    for demonstrations, count, length in stages:
        for _ in range(length):
            ids = contexts(count, demonstrations, stream)
            log_probs = network(input_ids=ids, use_cache=False).logits[:, 1::3].log_softmax(-1)
            loss = -log_probs.gather(-1, ids[:, 2::3, None]).mean()
            learner.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            learner.step()
            rates.step()
            after_step(loss.item())
    return network.eval(), tokenizer()


def fresh(seed: int) -> PreTrainedModel:
    """The model before training: one head that looks at the token before, one that looks at labels of near points."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=_HEAD,
        rope_parameters={"rope_type": "default", "rope_theta": _THETA},
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        bos_token_id=VOCABULARY.index(BOS),
        eos_token_id=VOCABULARY.index(SEPARATOR),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_stream("plane weights", seed).initial_seed())
        network = LlamaForCausalLM(config).train()
    with torch.no_grad():
        _embed(network.model.embed_tokens.weight, numpy_stream("plane features", seed))
        before, near = (network.model.layers[layer].self_attn for layer in (0, 1))
        _look_before(before)
        _look_near(near)
    return network


def _embed(weight: Float[Tensor, "token d_model"], stream: np.random.Generator) -> None:
    """Cosines and sines of random frequencies for points, which are alike where points are near; a sign for labels."""
    weight.mul_(0.1)
    waves = torch.tensor(CENTRED @ stream.normal(0, 1 / 2.5, (2, _FREQUENCIES)), dtype=weight.dtype)
    weight[FIRST_POINT:, :_FREQUENCIES], weight[FIRST_POINT:, _FREQUENCIES : 2 * _FREQUENCIES] = (
        waves.cos(),
        waves.sin(),
    )
    weight[:, _FLAG] = 1.0
    weight[FIRST_LABEL, _LABEL], weight[FIRST_LABEL + 1, _LABEL] = 3.0, -3.0


def _look_before(attention: torch.nn.Module) -> None:
    """The first head: keys are turned by one position, so that the rotations of both meet at the token before."""
    half = _HEAD // 2
    query, key = attention.q_proj.weight, attention.k_proj.weight
    query[:_HEAD], key[:_HEAD] = 0, 0
    for pair in range(4):
        angle = _THETA ** (-pair / half)
        query[pair, _FLAG] = 12.0
        key[pair, _FLAG], key[pair + half, _FLAG] = 12.0 * math.cos(angle), 12.0 * math.sin(angle)
    _copy(attention, range(2 * _FREQUENCIES), range(_BEFORE, _BEFORE + 2 * _FREQUENCIES), 1.0)


def _look_near(attention: torch.nn.Module) -> None:
    """The first head: a query's features against those of the point before each label, in slowly rotating pairs."""
    half = _HEAD // 2
    query, key = attention.q_proj.weight, attention.k_proj.weight
    query[:_HEAD], key[:_HEAD] = 0, 0
    for wave in range(_FREQUENCIES):
        pair = half - _FREQUENCIES + wave
        for part in (0, 1):
            query[pair + part * half, wave + part * _FREQUENCIES] = 2.0
            key[pair + part * half, _BEFORE + wave + part * _FREQUENCIES] = 2.0
    _copy(attention, [_LABEL], [_LABEL], 2.0)


def _copy(attention: torch.nn.Module, read: range | list[int], write: range | list[int], scale: float) -> None:
    """Let the first head write what it reads at other places of the residual stream."""
    value, output = attention.v_proj.weight, attention.o_proj.weight
    value[:_HEAD], output[:, :_HEAD] = 0, 0
    for at, (source, target) in enumerate(zip(read, write, strict=True)):
        value[at, source], output[target, at] = scale, 1.0


@torch.inference_mode()
def accuracy(network: PreTrainedModel, demonstrations: int, count: int = 256) -> float:
    """The share of fresh contexts in which the label after so many demonstrations is predicted; of two labels."""
    ids = contexts(count, demonstrations + 1, numpy_stream("plane evaluation", 1))
    logits = network(input_ids=ids[:, :-2], use_cache=False).logits[:, -1, FIRST_LABEL:FIRST_POINT]
    return float((logits.argmax(-1) == ids[:, -2] - FIRST_LABEL).double().mean())


def rows(task: str) -> dict[str, list[dict[str, int]]]:
    """Every point with its label: those with odd coordinates for demonstrations, the others for queries."""
    splits: dict[str, list[dict[str, int]]] = {"train": [], "test": []}
    for (x, y), centred in zip(POINTS.tolist(), CENTRED, strict=True):
        row = {"x": x, "y": y, "label": int(TASKS[task](*centred) > 0)}
        splits["train" if x % 2 else "test"].append(row)
    return splits
