"""The demonstrations' keys and values as a prefix that is trained."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import mean
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from iclgd.common.records import Trace
from iclgd.common.seeding import torch_stream
from iclgd.config import ConfigError
from iclgd.config.enumerations import LossOn, Start
from iclgd.mechanisms.bench import Bench
from iclgd.mechanisms.finetuning import last_steps, suspicious
from iclgd.mechanisms.optimisers import optimiser
from iclgd.models.attention import precise
from iclgd.models.attention_pass import AttentionPass, KeyValues
from iclgd.models.forward import encode_prefix, forward
from iclgd.models.interventions import own_prefix


@contextmanager
def kv_prefix(bench: Bench) -> Iterator[Trace]:
    """Keys and values that stand before the query, started at ICL's own and trained (CT-KV, arXiv 2507.04221).

    With `finetune.start=noise` they start at Gaussian noise of the same mean and size in each layer (prefix tuning). A
    step is one demonstration, read after the prefix without the part that it left there itself, at the positions that
    a query has; the loss is its mean cross-entropy (`finetune.loss_on`). Before the first step, and so with
    `finetune.epochs=0`, the prefix from ICL's own keys and values is ICL.

    Yields:
        The losses; norms of gradients and of the whole change are of each layer's keys and values together.
    """
    bench.refuse_some_layers()
    bench.refuse_other_states()
    _refuse_gaps(bench)
    trained = _start(bench)
    trace = _trained(bench, trained)
    with own_prefix(bench.model, _as_read(bench, trained)):
        yield trace


def _start(bench: Bench) -> list[tuple[nn.Parameter, nn.Parameter]]:
    prefix = cast("list[KeyValues]", encode_prefix(bench.model, bench.context()))

    def begin(tensor: Tensor, part: str) -> nn.Parameter:
        own = precise(tensor.clone())  # in float32 small steps add up; outside of inference mode it can be trained
        if bench.options.start is Start.noise:
            # A planted truth has noise of its own (`bench.noise`): noise in common with the candidate's would pass for
            # likeness. Tokens come first, so that a longer context begins with the noise of a shorter one.
            stream = torch_stream(f"prefix, {bench.noise}, {part}", bench.config.seed)
            noise = torch.randn(own.transpose(1, 2).shape, generator=stream).transpose(1, 2).to(own)
            own = own.mean() + own.std() * noise
        return nn.Parameter(own)

    return [
        (begin(key, f"keys of layer {layer}"), begin(value, f"values of layer {layer}"))
        for layer, (key, value) in enumerate(prefix)
    ]


def _trained(bench: Bench, prefix: Sequence[tuple[nn.Parameter, nn.Parameter]]) -> Trace:
    options, layers = bench.options, bench.model.layers
    before = [(key.detach().clone(), value.detach().clone()) for key, value in prefix]
    learner = optimiser(options.optimizer, [tensor for pair in prefix for tensor in pair], options.lr)
    steps = [place for _ in range(options.epochs) for place in range(len(bench.demonstrations))]
    step_done = bench.start_steps(len(steps))
    losses: list[float] = []
    norms: list[Tensor] = []
    diverged_at = None
    for step, place in enumerate(steps):
        loss = _loss(bench, prefix, place)
        loss.backward()
        losses.append(loss.item())
        norms.append(_norms([(cast(Tensor, key.grad), cast(Tensor, value.grad)) for key, value in prefix]))
        if not math.isfinite(losses[-1]) or not norms[-1].isfinite().all():
            diverged_at = step
            break
        learner.step()
        learner.zero_grad(set_to_none=True)
        with own_prefix(bench.model, _as_read(bench, prefix)):
            step_done(step + 1)
    changes = [(key.detach() - k, value.detach() - v) for (key, value), (k, v) in zip(prefix, before, strict=True)]
    return Trace(
        losses=torch.tensor(losses),
        gradient_norms=torch.stack(norms) if norms else torch.empty(0, layers),
        update_norms=_norms(changes),
        update_ranks=torch.full((layers,), float("nan")),
        demonstrations=tuple(bench.prompts.in_context[place] for place in steps[: len(losses)]),
        diverged_at=diverged_at,
        untouched_loss=_untouched_loss(bench, before, steps, losses) if diverged_at is None else math.nan,
    )


def _untouched_loss(
    bench: Bench, before: Sequence[tuple[Tensor, Tensor]], steps: Sequence[int], losses: Sequence[float]
) -> float:
    """The mean loss with the prefix as it started on the demonstrations of the end, as `Loop` has it of weights."""
    if not suspicious(losses):
        return math.nan
    return mean(_loss(bench, before, place).item() for place in steps[-last_steps(len(losses)) :])


def _refuse_gaps(bench: Bench) -> None:
    """Refuse models in which a demonstration cannot be read past a gap in the prefix, at its own distance to the rest.

    ALiBi and local windows count distances by the order of keys, not by their positions.
    """
    anatomy, length = bench.model.anatomy, len(bench.context())
    reads = inspect.signature(anatomy.body.forward).parameters
    reach = min((size for layer in anatomy.layers for size in (layer.window, layer.chunk) if size), default=math.inf)
    by_order = "position_ids" not in reads or any(layer.biased for layer in anatomy.layers)
    longest = max(len(item.token_ids) for item in bench.demonstrations)
    if bench.options.epochs and (by_order or reach < length + longest):
        why = f"a window or chunk of {reach}" if not by_order else "ALiBi, or no position_ids"
        raise ConfigError(
            f"finetune={bench.options.name} trains on each demonstration without its own part of the prefix, and "
            f"{type(bench.model.network).__name__} counts distances by the order of tokens ({why}): set "
            "finetune.epochs=0, fewer task.shots, or another model"
        )


def _loss(bench: Bench, prefix: Sequence[tuple[Tensor, Tensor]], place: int) -> Float[Tensor, ""]:
    """The mean cross-entropy of a demonstration after the prefix without its own part."""
    prompts, item = bench.prompts, bench.demonstrations[place]
    length = len(bench.context())
    start, end = prompts.context_spans()[place]
    others = [i for i in range(length) if not start <= i < end + len(prompts.separator)]
    seen: list[KeyValues] = [
        (key[:, :, others].to(bench.model.dtype), value[:, :, others].to(bench.model.dtype)) for key, value in prefix
    ]
    tokens = torch.tensor([item.token_ids])
    now = AttentionPass(
        lengths=torch.tensor([len(item.token_ids)], device=bench.model.device), prefix=seen, first_position=length
    )
    first = 1 if bench.options.loss_on is LossOn.all_tokens else len(item.token_ids) - item.label_length
    with torch.enable_grad():
        hidden = forward(bench.model, tokens, now)[0, first - 1 : -1]
        logits = precise(bench.model.anatomy.unembed(hidden))
        return functional.cross_entropy(logits, tokens[0, first:].to(logits.device))


def _as_read(bench: Bench, prefix: Sequence[tuple[Tensor, Tensor]]) -> list[KeyValues]:
    """The prefix in the model's precision."""
    dtype = bench.model.dtype
    return [(key.detach().to(dtype), value.detach().to(dtype)) for key, value in prefix]


def _norms(pairs: Sequence[tuple[Tensor, Tensor]]) -> Float[Tensor, " layer"]:
    squares = [key.double().square().sum() + value.double().square().sum() for key, value in pairs]
    return torch.stack([square.cpu() for square in squares]).sqrt().float()
