"""Parameters trained so that the model without context does what it does with context, on rows that it sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.common.records import Trace
from iclgd.common.seeding import numpy_stream
from iclgd.config import ConfigError
from iclgd.config.enumerations import RecordAt, Site
from iclgd.mechanisms.bench import Bench, Row
from iclgd.mechanisms.finetuning import collected, train, with_changes
from iclgd.mechanisms.parameters import trainable, trained_parameters
from iclgd.models.attention import precise
from iclgd.models.forward import forward
from iclgd.models.placement import read_again
from iclgd.models.recorder import last_outputs

_BATCH = 8  # rows a step

Loss = Callable[[list[int]], Float[Tensor, ""]]  # of some rows, by their numbers


def activation_match(bench: Bench) -> AbstractContextManager[Trace]:
    """Trained to ICL's attention outputs on the very queries that are measured: the ceiling of likeness to ICL.

    The idea is that of `priming`. Of the variant's settings `lr`, `epochs`, `optimizer`, `layers`, `trainable` and
    `rank` hold.
    """
    if bench.config.protocol.record_at is not RecordAt.last_prompt_token:
        raise ConfigError("finetune=activation_match needs protocol.record_at=last_prompt_token")
    rows = [Row(query, bench.context()) for query in bench.queries]
    return _distilled(bench, rows, _activation_loss(bench, rows, bench.icl().attention_output))


def priming(bench: Bench) -> AbstractContextManager[Trace]:
    """Trained to ICL's attention outputs on rows that are not measured (IA2, arXiv 2509.22621).

    The loss is, over layers, the mean squared distance to ICL's output at the query's last token, relative to the mean
    square of that output. The rows are the demonstrations, each with the others in its context, or calibration rows.
    """
    rows = bench.rows()
    return _distilled(bench, rows, _activation_loss(bench, rows, bench.observe(rows, "attention_output", context=True)))


def context_distillation(bench: Bench) -> AbstractContextManager[Trace]:
    """Trained to ICL's distribution over the vocabulary at the label's position, on the same rows as `priming`.

    The loss is the Kullback-Leibler divergence of the model without context from ICL, in nats.
    """
    rows = bench.rows()
    target = bench.observe(rows, "next_token_log_probs", context=True)

    def loss(chosen: list[int]) -> Tensor:
        token_ids, state = bench.batch([rows[number] for number in chosen])
        hidden = state.last(forward(bench.model, token_ids, state), 1)
        log_probs = precise(bench.model.anatomy.unembed(hidden)).log_softmax(-1)
        wanted = target[chosen].to(log_probs)
        return (wanted.exp() * (wanted - log_probs)).sum(-1).mean()

    return _distilled(bench, rows, loss)


def _activation_loss(bench: Bench, rows: list[Row], target: Float[Tensor, "row layer d_model"]) -> Loss:
    scale = target.square().mean(dim=(0, 2)).clamp(min=torch.finfo(torch.float32).tiny)

    def loss(chosen: list[int]) -> Tensor:
        token_ids, state = bench.batch([rows[number] for number in chosen])
        with last_outputs(bench.model, Site.attention_output, state) as added:
            forward(bench.model, token_ids, state)
        last = added[bench.model.layers - 1].device  # blocks may lie on several devices
        outputs = torch.stack([added[layer].to(last) for layer in range(bench.model.layers)], dim=1).float()
        distance = (outputs - target[chosen].to(outputs)).square().mean(dim=(0, 2))
        return (distance / scale.to(outputs)).mean()

    return loss


@contextmanager
def _distilled(bench: Bench, rows: list[Row], loss: Loss) -> Iterator[Trace]:
    """Within the block the loss has been trained down; a step for every eight rows, in a new order each epoch."""
    options, model = bench.options, bench.model
    order = numpy_stream(bench.options.mechanism.replace("_", " "), bench.config.seed)
    batches = []
    for _ in range(options.epochs):
        shuffled = order.permutation(len(rows)).tolist()
        batches += [shuffled[start : start + _BATCH] for start in range(0, len(shuffled), _BATCH)]
    trained = trained_parameters(model, options.trainable, bench.layers)

    def gradient(batch: list[int]) -> tuple[float, list[Tensor]]:
        with torch.enable_grad(), read_again(model.network):
            value = loss(batch)
            value.backward()
        return value.item(), collected(trained)

    with trainable(trained) as before:
        trace = train(model, bench.config, trained, before, batches, gradient, bench.start_steps(len(batches)))
        yield with_changes(trace, trained, before)
