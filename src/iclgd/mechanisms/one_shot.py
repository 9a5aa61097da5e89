"""Demonstrations one at a time: attention's outputs after each of them alone, averaged or summed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor

from iclgd.common.records import Trace
from iclgd.config.enumerations import Site
from iclgd.mechanisms.bench import Bench
from iclgd.models.attention import AttentionPass, precise
from iclgd.models.forward import Prefix, encode_prefix, forward
from iclgd.models.interventions import intervening, last_tokens, reading, rewriting

ByLayer = dict[int, Float[Tensor, "row d_model"]]


@contextmanager
def one_shot_mean(bench: Bench) -> Iterator[Trace]:
    """Attention's output becomes its mean over demonstrations that stand in the context alone (arXiv 2401.06469).

    `finetune.layer` is the first layer in which it does; null: all (of `finetune.layers`).
    """
    with _from_single_demonstrations(bench, summed=False):
        yield bench.no_steps()


@contextmanager
def one_shot_sum(bench: Bench) -> Iterator[Trace]:
    """Attention's output becomes h(x) + the sum over demonstrations i of h(C_i, x) - h(x).

    This is ICL where the updates of single demonstrations add up, as single steps of gradient descent from one start
    do (linear attention, von Oswald et al. 2023).
    """
    with _from_single_demonstrations(bench, summed=True):
        yield bench.no_steps()


@contextmanager
def _from_single_demonstrations(bench: Bench, summed: bool) -> Iterator[None]:
    model, count = bench.model, len(bench.demonstrations)
    first = 0 if bench.options.layer is None else bench.checked_layer(bench.options.layer)
    layers = [layer for layer in bench.layers if layer >= first]
    nothing = encode_prefix(model, bench.prompts.bos)
    prefixes = [encode_prefix(model, bench.context(only=place)) for place in range(count)]

    @contextmanager
    def intervention(token_ids: Tensor, now: AttentionPass) -> Iterator[None]:
        chosen = last_tokens(now, token_ids.shape[1])

        def outputs(prefix: Prefix | None) -> ByLayer:
            kept: ByLayer = {}
            with reading(model, Site.attention_output, layers, chosen, kept):
                forward(model, token_ids, AttentionPass(lengths=now.lengths, left=now.left, prefix=prefix))
            return {layer: precise(rows) for layer, rows in kept.items()}  # sums round in half precision

        total: ByLayer = {}
        for prefix in prefixes:
            for layer, rows in outputs(prefix).items():
                total[layer] = total[layer] + rows if layer in total else rows
        if summed:
            alone = outputs(nothing)
            replaced = {layer: total[layer] - (count - 1) * alone[layer] for layer in layers}
        else:
            replaced = {layer: total[layer] / count for layer in layers}
        with rewriting(model, Site.attention_output, layers, chosen, lambda layer, _rows: replaced[layer]):
            yield

    with intervening(model, intervention):
        yield
