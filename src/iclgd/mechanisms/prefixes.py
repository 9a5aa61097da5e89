"""The demonstrations' keys and values as a prefix that is trained."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
from iclgd.mechanisms.finetuning import collected, train
from iclgd.mechanisms.parameters import Trained
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
    parameters = nn.ParameterList([tensor for pair in prefix for tensor in pair])
    trained = [Trained(i // 2, str(i), parameters, str(i), None, bench.model) for i in range(len(parameters))]
    before = [parameter.detach().clone() for parameter in parameters]
    steps = [*range(len(bench.demonstrations))] * bench.options.epochs

    def gradient_of(index: int) -> tuple[float, list[Tensor]]:
        loss = _loss(bench, prefix, index)
        loss.backward()
        return loss.item(), collected(trained)

    advance = bench.start_steps(len(steps))
    trace = train(bench.model, bench.config, trained, before, steps, gradient_of, advance, _norms)
    changes = [parameter.detach() - was for parameter, was in zip(parameters, before, strict=True)]
    return replace(
        trace,
        update_norms=_norms(trained, changes, bench.model.layers),
        demonstrations=tuple(bench.prompts.in_context[index] for index in steps[: len(trace.losses)]),
    )


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


def _loss(bench: Bench, prefix: Sequence[tuple[Tensor, Tensor]], index: int) -> Float[Tensor, ""]:
    """The mean cross-entropy of a demonstration after the prefix without its own part."""
    prompts, item = bench.prompts, bench.demonstrations[index]
    length = len(bench.context())
    start, end = prompts.context_spans()[index]
    others = [i for i in range(length) if not start <= i < end + len(prompts.separator)]
    seen: list[KeyValues] = [
        (key[:, :, others].to(bench.model.dtype), value[:, :, others].to(bench.model.dtype)) for key, value in prefix
    ]
    tokens = torch.tensor([item.token_ids])
    state = AttentionPass(
        lengths=torch.tensor([len(item.token_ids)], device=bench.model.device), prefix=seen, first_position=length
    )
    first = 1 if bench.options.loss_on is LossOn.all_tokens else len(item.token_ids) - item.label_length
    with torch.enable_grad():
        hidden = forward(bench.model, tokens, state)[0, first - 1 : -1]
        logits = precise(bench.model.anatomy.unembed(hidden))
        return functional.cross_entropy(logits, tokens[0, first:].to(logits.device))


def _as_read(bench: Bench, prefix: Sequence[tuple[Tensor, Tensor]]) -> list[KeyValues]:
    """The prefix in the model's precision."""
    dtype = bench.model.dtype
    return [(key.detach().to(dtype), value.detach().to(dtype)) for key, value in prefix]


def _norms(_: Sequence[Trained], tensors: Sequence[Tensor], layers: int) -> Float[Tensor, " layer"]:
    """The l2 norm of each layer's keys and values together."""
    squares = [tensor.double().square().sum().cpu() for tensor in tensors]
    return torch.stack([squares[2 * layer] + squares[2 * layer + 1] for layer in range(layers)]).sqrt().float()
