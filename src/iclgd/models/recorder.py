"""Records of what the model does at the last token of each query, after a given context."""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iclgd.common.records import Recording
from iclgd.config.enumerations import Site
from iclgd.models.anatomy import LanguageModel
from iclgd.models.attention_pass import AttentionPass, Prefix
from iclgd.models.forward import encode_prefix, forward, padded
from iclgd.models.interventions import at_site, entered

log = logging.getLogger(__name__)

Tokens = tuple[int, ...]

_TOKENS_ON_CPU, _TOKENS_ON_GPU = 512, 16384  # a pass: what stays in a CPU's cache, what fills a GPU


@dataclass(frozen=True)
class Question:
    """A query and the label options that it is scored on, as tokens."""

    token_ids: Tokens
    options: tuple[Tokens, ...]


@dataclass(frozen=True)
class RecordPlan:
    """How a recording is taken."""

    optional: frozenset[str] = frozenset()  # which of `records.OPTIONAL_RECORDS` to take
    # the published code's reading: append the first option's first token and record there
    at_first_label_token: bool = False
    # how many own tokens share a pass, halved when memory runs out; None: what suits the device
    batch_tokens: int | None = None
    bos: int = 0  # how many tokens stand first in every context and are none of it
    # score options of several tokens by the mean log-probability of their tokens, else by the sum
    mean_label: bool = True


@dataclass(frozen=True)
class _Probe:
    """One sequence to run: a query and perhaps the beginning of a label."""

    example: int
    token_ids: Tokens
    query_length: int
    options: tuple[tuple[int, Tokens], ...]  # options whose log-probability is read off this sequence
    recorded: bool


@torch.inference_mode()
def record(
    model: LanguageModel,
    questions: Sequence[Question],
    context: Tokens,
    plan: RecordPlan,
    advance: Callable[[int], object] = lambda _: None,
) -> Recording:
    """Run every question after `context` and record it (Deutch et al. 2024, sec. 2).

    The context's keys and values are computed once and shared by all questions. Where layers keep more than those (a
    state, a convolution), the context is read again for each question.

    Args:
        model: is left as it was.
        questions: the queries.
        context: tokens before each query: bos for zsl and ft, bos and demonstrations for icl.
        plan: what to record, and how.
        advance: called with the number of questions done.

    Returns:
        The recording, in the order of `questions`.
    """
    probes = _probes(questions, plan)
    prefix = model.prefixes[-1] if model.prefixes else encode_prefix(model, context)
    collected = _Collected(len(questions), max(len(question.options) for question in questions))
    budget = plan.batch_tokens or (_TOKENS_ON_CPU if model.device.type == "cpu" else _TOKENS_ON_GPU)
    waiting = sorted(probes, key=lambda probe: -len(probe.token_ids))  # memory runs out early if at all
    while waiting:
        batch = waiting[: max(1, budget // len(waiting[0].token_ids))]
        try:
            _run_batch(model, batch, prefix, plan, collected)
        except RuntimeError as error:
            if not _out_of_memory(error) or len(batch) == 1:
                raise
            budget = len(batch[0].token_ids) * (len(batch) // 2)
            log.warning(
                "out of memory: a batch of %d is halved, and later ones; runtime.batch_tokens=%d", len(batch), budget
            )
        else:
            del waiting[: len(batch)]
            advance(sum(probe.recorded for probe in batch))
            continue
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return collected.recording(plan)


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _stacked(by_layer: Sequence[Tensor]) -> Tensor:
    """One tensor of all layers, which may lie on several devices; layers along axis 1."""
    return torch.stack([tensor.to(by_layer[-1].device) for tensor in by_layer], dim=1).float()


def _probes(questions: Sequence[Question], plan: RecordPlan) -> list[_Probe]:
    probes = []
    for example, question in enumerate(questions):
        stems: dict[Tokens, list[tuple[int, Tokens]]] = {(): []}
        for number, option in enumerate(question.options):
            stems.setdefault(option[:-1], []).append((number, option))
        for stem, options in stems.items():
            tail = question.options[0][:1] if plan.at_first_label_token and not stem else stem
            tokens = question.token_ids + tail
            probes.append(_Probe(example, tokens, len(question.token_ids), tuple(options), recorded=not stem))
    return probes


def _run_batch(
    model: LanguageModel,
    batch: Sequence[_Probe],
    prefix: Prefix | None,
    plan: RecordPlan,
    collected: _Collected,
) -> None:
    now = AttentionPass(
        lengths=torch.tensor([len(probe.token_ids) for probe in batch], device=model.device),
        prefix=prefix,
        keep_context="context_scores" in plan.optional,
        mass_from=plan.bos if "context_mass" in plan.optional else None,
        keep_queries="last" if "query_vectors" in plan.optional else None,
        query_lengths=torch.tensor([probe.query_length for probe in batch]),
        questions=tuple(probe.example for probe in batch),
    )
    token_ids = padded([probe.token_ids for probe in batch])
    sites = [site for site in Site if site in ("attention_output", *plan.optional)]
    with ExitStack() as stack:
        stack.enter_context(entered(model, token_ids, now))
        outputs = {str(site): stack.enter_context(last_outputs(model, site, now)) for site in sites}
        hidden = forward(model, token_ids, now)
    collected.take_attention(batch, _complete(model, now, outputs))
    _score_options(model, batch, hidden, plan, collected)


@contextmanager
def last_outputs(
    model: LanguageModel, site: Site, now: AttentionPass
) -> Iterator[dict[int, Float[Tensor, "example d_model"]]]:
    """By layer, what is at a site at each sequence's last token."""
    outputs: dict[int, Tensor] = {}

    def read(layer: int, hidden: Tensor) -> None:
        outputs[layer] = now.last(hidden, 1)

    with at_site(model, site, range(model.layers), read):
        yield outputs


def _complete(
    model: LanguageModel, now: AttentionPass, outputs: dict[str, dict[int, Tensor]]
) -> dict[str, list[Tensor]]:
    """What a batch leaves behind, with an item for each layer."""
    batch, width = len(now.lengths), int(now.lengths.max())
    before = now.prefix_length() + len(now.read_again())
    complete = {name: [layers[i] for i in range(model.layers)] for name, layers in outputs.items()}
    complete["attention_scores"] = _filled(model, now.scores, (batch, 1, width))
    if now.keep_context and before:
        complete["context_scores"] = _filled(model, now.context_scores, (batch, before))
    if now.mass_from is not None and before:
        complete["context_mass"] = _filled(model, now.context_mass, (batch, 1))
    if now.keep_queries:
        complete["query_vectors"] = _filled(model, now.queries, (batch, 1), padding=0.0)
    return complete


def _filled(
    model: LanguageModel, by_layer: dict[int, Tensor], least: tuple[int, ...], padding: float = float("nan")
) -> list[Tensor]:
    """An item for each layer, all of one shape: NaN in layers without attention, `padding` where heads are fewer."""
    shape = torch.Size(map(max, zip(least, *(tensor.shape for tensor in by_layer.values()), strict=True)))
    blank = torch.full(shape, float("nan"), device=model.device)
    complete = [by_layer.get(layer, blank) for layer in range(model.layers)]
    for layer, tensor in enumerate(complete):
        if tensor.shape != shape:
            complete[layer] = torch.full(shape, padding, device=tensor.device)
            complete[layer][tuple(map(slice, tensor.shape))] = tensor
    return complete


def _score_options(
    model: LanguageModel,
    batch: Sequence[_Probe],
    hidden: Float[Tensor, "example token d_model"],
    plan: RecordPlan,
    collected: _Collected,
) -> None:
    """Log-probabilities are needed at the query's last token, and behind it for labels of several tokens."""
    rows, places, first = [], [], []
    for row, probe in enumerate(batch):
        start = probe.query_length - 1
        reach = max((len(option) for _, option in probe.options), default=1)
        first.append(len(rows))
        rows += [row] * reach
        places += range(start, start + reach)
    chosen = hidden[torch.tensor(rows, device=hidden.device), torch.tensor(places, device=hidden.device)]
    log_probs = model.anatomy.unembed(chosen).log_softmax(dim=-1)
    asked = [(row, number, option) for row, probe in enumerate(batch) for number, option in probe.options]
    pairs = [(first[row] + step, token) for row, _, option in asked for step, token in enumerate(option)]
    flat = torch.tensor(pairs, dtype=torch.long, device=log_probs.device).view(-1, 2)  # there may be none
    values = iter(log_probs[flat[:, 0], flat[:, 1]].tolist())
    for row, number, option in asked:
        total = sum(itertools.islice(values, len(option)))
        collected.label_scores[batch[row].example, number] = total / len(option) if plan.mean_label else total
    if "option_is_greedy" in plan.optional:
        likeliest = log_probs.argmax(-1).tolist()
        for row, number, option in asked:
            greedy = tuple(likeliest[first[row] : first[row] + len(option)]) == option
            collected.greedy[batch[row].example, number] = float(greedy)
    if "next_token_log_probs" in plan.optional:
        for row, probe in enumerate(batch):
            if probe.recorded:
                collected.next_token[probe.example] = log_probs[first[row]].cpu()


class _Collected:
    """Records by example, in whatever order batches come."""

    def __init__(self, examples: int, options: int) -> None:
        self.label_scores = torch.full((examples, options), float("nan"))
        self.greedy = torch.full((examples, options), float("nan"))
        self.next_token: list[Tensor] = [torch.empty(0)] * examples
        self.batches: list[tuple[list[int], dict[str, Tensor]]] = []

    def take_attention(self, batch: Sequence[_Probe], records: dict[str, list[Tensor]]) -> None:
        rows = [row for row, probe in enumerate(batch) if probe.recorded]
        if not rows:
            return
        longest = max(len(batch[row].token_ids) for row in rows)
        stacked = {name: _stacked([layer[rows] for layer in layers]).cpu() for name, layers in records.items()}
        stacked["attention_scores"] = stacked["attention_scores"][..., :longest]
        self.batches.append(([batch[row].example for row in rows], stacked))

    def recording(self, plan: RecordPlan) -> Recording:
        order = torch.tensor([example for examples, _ in self.batches for example in examples]).argsort()
        keys = max(stacked["attention_scores"].shape[-1] for _, stacked in self.batches)
        records = {}
        for name in self.batches[0][1]:
            tensors = [stacked[name] for _, stacked in self.batches]
            if name == "attention_scores":
                tensors = [nn.functional.pad(each, (0, keys - each.shape[-1]), value=float("nan")) for each in tensors]
            records[name] = torch.cat(tensors)[order].contiguous()
        next_token = torch.stack(self.next_token) if "next_token_log_probs" in plan.optional else None
        greedy = self.greedy if "option_is_greedy" in plan.optional else None
        return Recording(
            **records, label_scores=self.label_scores, next_token_log_probs=next_token, option_is_greedy=greedy
        )


@torch.inference_mode()
def token_queries(
    model: LanguageModel, sequences: Sequence[Tokens], bos: Tokens
) -> list[Float[Tensor, "token layer heads_x_head_dim"]]:
    """Attention queries, scaled as in attention, at every token of each sequence read after bos."""
    prefix = encode_prefix(model, bos)
    queries = []
    for tokens in sequences:
        now = AttentionPass(lengths=torch.tensor([len(tokens)]), prefix=prefix, keep_queries="all")
        forward(model, torch.tensor([tokens]), now)
        vectors = _filled(model, now.queries, (1, len(tokens), 1), padding=0.0)
        queries.append(_stacked([each[0] for each in vectors]).cpu())
    return queries
