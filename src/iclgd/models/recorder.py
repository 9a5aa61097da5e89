"""Records of what the model does at the last token of each query, after a given context."""

from __future__ import annotations

import gc
import logging
import math
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
    prefix = model.prefixes[-1] if model.prefixes else encode_prefix(model, context)
    records = _empty_records(questions, plan)
    budget = plan.batch_tokens or (_TOKENS_ON_CPU if model.device.type == "cpu" else _TOKENS_ON_GPU)
    waiting = sorted(_probes(questions, plan), key=lambda probe: -len(probe.token_ids))  # the longest need most memory
    while waiting:
        batch = waiting[: max(1, budget // len(waiting[0].token_ids))]
        try:
            _run_batch(model, batch, prefix, plan, records)
            del waiting[: len(batch)]
            advance(sum(probe.recorded for probe in batch))
            continue
        except RuntimeError as error:
            if not _out_of_memory(error) or len(batch) == 1:
                raise
        budget = len(batch[0].token_ids) * (len(batch) // 2)
        log.warning(
            "out of memory: a batch of %d is halved, and later ones; runtime.batch_tokens=%d", len(batch), budget
        )
        gc.collect()  # outside of the handler, whose error holds the tensors of the batch
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return Recording(**{name: _by_example([record[name] for record in records]) for name in records[0]})


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _empty_records(questions: Sequence[Question], plan: RecordPlan) -> list[dict[str, Tensor]]:
    """A record for each example, with options that are not scored yet."""
    options = max(len(question.options) for question in questions)
    names = ["label_scores", *({"option_is_greedy"} & plan.optional)]
    return [{name: torch.full((options,), float("nan")) for name in names} for _ in questions]


def _by_example(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor of all examples, with NaN behind those that are shorter along the last axis."""
    width = max(tensor.shape[-1] for tensor in tensors)
    return torch.stack(
        [nn.functional.pad(tensor, (0, width - tensor.shape[-1]), value=float("nan")) for tensor in tensors]
    )


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
    records: list[dict[str, Tensor]],
) -> None:
    state = AttentionPass(
        lengths=torch.tensor([len(probe.token_ids) for probe in batch], device=model.device),
        prefix=prefix,
        wanted=plan.optional,
        bos=plan.bos,
        query_lengths=torch.tensor([probe.query_length for probe in batch]),
        questions=tuple(probe.example for probe in batch),
    )
    token_ids = padded([probe.token_ids for probe in batch])
    sites = [site for site in Site if site in ("attention_output", *plan.optional)]
    with ExitStack() as stack:
        stack.enter_context(entered(model, token_ids, state))
        outputs = {str(site): stack.enter_context(last_outputs(model, site, state)) for site in sites}
        hidden = forward(model, token_ids, state)
    _keep_activations(model, batch, state, outputs, records)
    _score_options(model, batch, hidden, plan, records)


@contextmanager
def last_outputs(
    model: LanguageModel, site: Site, state: AttentionPass
) -> Iterator[dict[int, Float[Tensor, "example d_model"]]]:
    """By layer, what is at a site at each sequence's last token."""
    outputs: dict[int, Tensor] = {}

    def read(layer: int, hidden: Tensor) -> None:
        outputs[layer] = state.last(hidden, 1)

    with at_site(model, site, range(model.layers), read):
        yield outputs


def _keep_activations(
    model: LanguageModel,
    batch: Sequence[_Probe],
    state: AttentionPass,
    outputs: dict[str, dict[int, Tensor]],
    records: list[dict[str, Tensor]],
) -> None:
    rows = [row for row, probe in enumerate(batch) if probe.recorded]
    # What attention records, and its shape where no layer has attention.
    shapes: dict[str, tuple[int, ...]] = {"attention_scores": (len(batch), 1, int(state.lengths.max()))}
    if state.before:
        shapes |= {"context_scores": (len(batch), state.before), "context_mass": (len(batch), 1)}
    shapes["query_vectors"] = (len(batch), 1)
    by_layer = {name: [layers[layer] for layer in range(model.layers)] for name, layers in outputs.items()}
    for name, shape in shapes.items():
        if name in ("attention_scores", *state.wanted):
            by_layer[name] = _every_layer(
                model, state.records[name], shape, 0.0 if name == "query_vectors" else math.nan
            )
    for name, layers in by_layer.items():
        stacked = _stacked([layer[rows] for layer in layers]).cpu()
        for row, tensor in zip(rows, stacked, strict=True):
            length = len(batch[row].token_ids)
            records[batch[row].example][name] = tensor[..., :length] if name == "attention_scores" else tensor


def _every_layer(
    model: LanguageModel, by_layer: dict[int, Tensor], least: tuple[int, ...], padding: float
) -> list[Tensor]:
    """An item for each layer, all of one shape: NaN in layers without attention, `padding` where heads are fewer."""
    shape = torch.Size(map(max, zip(least, *(tensor.shape for tensor in by_layer.values()), strict=True)))
    blank = torch.full(shape, math.nan, device=model.device)
    complete = [by_layer.get(layer, blank) for layer in range(model.layers)]
    for layer, tensor in enumerate(complete):
        if tensor.shape != shape:
            complete[layer] = torch.full(shape, padding, device=tensor.device)
            complete[layer][tuple(map(slice, tensor.shape))] = tensor
    return complete


def _stacked(by_layer: Sequence[Tensor]) -> Tensor:
    """One tensor of all layers, which may lie on several devices; layers along axis 1."""
    return torch.stack([tensor.to(by_layer[-1].device) for tensor in by_layer], dim=1).float()


def _score_options(
    model: LanguageModel,
    batch: Sequence[_Probe],
    hidden: Float[Tensor, "example token d_model"],
    plan: RecordPlan,
    records: list[dict[str, Tensor]],
) -> None:
    """Log-probabilities are needed at the query's last token, and behind it for labels of several tokens."""
    spans = []
    for row, probe in enumerate(batch):
        first, count = probe.query_length - 1, max((len(option) for _, option in probe.options), default=1)
        spans.append(hidden[row, first : first + count])
    log_probs = model.anatomy.unembed(torch.cat(spans)).log_softmax(dim=-1)
    for probe, following in zip(batch, log_probs.split([len(span) for span in spans]), strict=True):
        record = records[probe.example]
        for number, option in probe.options:
            steps = following[: len(option)]
            total = sum(steps.gather(1, torch.tensor(option, device=steps.device)[:, None]).flatten().tolist())
            record["label_scores"][number] = total / len(option) if plan.mean_label else total
            if "option_is_greedy" in plan.optional:
                record["option_is_greedy"][number] = float(tuple(steps.argmax(-1).tolist()) == option)
        if probe.recorded and "next_token_log_probs" in plan.optional:
            record["next_token_log_probs"] = following[0].cpu()


@torch.inference_mode()
def token_queries(
    model: LanguageModel, sequences: Sequence[Tokens], bos: Tokens
) -> list[Float[Tensor, "token layer heads_x_head_dim"]]:
    """Attention queries, scaled as in attention, at every token of each sequence read after bos."""
    prefix = encode_prefix(model, bos)
    queries = []
    for tokens in sequences:
        state = AttentionPass(torch.tensor([len(tokens)]), prefix, wanted=frozenset({"token_queries"}))
        forward(model, torch.tensor([tokens]), state)
        vectors = _every_layer(model, state.records["token_queries"], (1, len(tokens), 1), padding=0.0)
        queries.append(_stacked([each[0] for each in vectors]).cpu())
    return queries
