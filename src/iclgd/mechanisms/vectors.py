"""Vectors that stand for a task: one layer's activation that is replaced, or a sum of heads' outputs that is added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iclgd.common.records import Item, Trace
from iclgd.common.seeding import numpy_stream
from iclgd.config import ConfigError
from iclgd.config.enumerations import Site
from iclgd.mechanisms.bench import Bench, Row, Tokens, without_label
from iclgd.models.attention_pass import AttentionPass
from iclgd.models.feed_forward import weight_of
from iclgd.models.forward import encode_prefix, forward
from iclgd.models.interventions import hooks, intervening, own_tokens, rewriting
from iclgd.models.recorder import record


@contextmanager
def task_vector(bench: Bench) -> Iterator[Trace]:
    """The output of one block at the last token of context and a dummy query replaces it (arXiv 2310.15916).

    It is replaced at the query's last token, after block `finetune.layer`. Null chooses the block with the best
    accuracy on the demonstrations, each left out of the context in turn; among equals, the one that gives their
    answers the highest mean log-probability. The dummy query is the first calibration row.
    """
    dummy = bench.calibration[0]
    layer = bench.options.layer
    layer = _best_layer(bench, dummy) if layer is None else bench.checked_layer(layer)
    vector = bench.observe([Row(dummy, bench.context())], "block_output", context=True)[0, layer]
    with _replaced(bench, {layer: vector}):
        yield bench.no_steps()


def _replaced(
    bench: Bench, vectors: Mapping[int, Float[Tensor, " d_model"]], each: bool = False
) -> AbstractContextManager[None]:
    """Within the block vectors replace the outputs of these layers' blocks at the query's last token.

    With `each`, every question has one of them replaced: the n-th question that of the n-th layer.
    """
    order = list(vectors)

    def intervention(token_ids: Tensor, state: AttentionPass) -> AbstractContextManager[None]:
        ends = state.query_ends()
        chosen = own_tokens(state, token_ids.shape[1], ends - 1, ends)

        def rewrite(layer: int, rows: Tensor) -> Tensor:
            replaced = vectors[layer].to(rows).expand_as(rows)
            if not each:
                return replaced
            own = torch.tensor(state.questions) == order.index(layer)
            return torch.where(own[:, None].to(rows.device), replaced, rows)

        return rewriting(bench.model, Site.block_output, order, chosen, rewrite)

    return intervening(bench.model, intervention)


def _best_layer(bench: Bench, dummy: Item) -> int:
    """The layer whose vector answers the demonstrations best; all layers share the pass over one demonstration."""
    bench.refuse_fewer_demonstrations(2, ", or give the layer by finetune.layer")
    rows = [Row(dummy, bench.context(left_out=index)) for index in range(len(bench.demonstrations))]
    vectors = bench.observe(rows, "block_output", context=True)
    quality = torch.zeros(2, len(bench.layers))
    for item, own in zip(bench.demonstrations, vectors, strict=True):
        query = bench.question(without_label(item))
        # Nothing changes before the query's last token, so that all layers' passes share what stands there.
        last = replace(query, token_ids=query.token_ids[-1:])
        with _replaced(bench, {layer: own[layer] for layer in bench.layers}, each=True):
            context = bench.prompts.bos + query.token_ids[:-1]
            scores = record(bench.model, [last] * len(bench.layers), context, bench.plan()).label_scores
        right = scores.nan_to_num(nan=-torch.inf).argmax(-1) == item.label
        quality += torch.stack([right.float(), scores[:, item.label]])
    accuracy, log_probability = quality.tolist()
    return max(zip(accuracy, log_probability, bench.layers, strict=True), key=lambda each: each[:2])[2]


@contextmanager
def function_vector(bench: Bench) -> Iterator[Trace]:
    """The sum of the mean outputs of the heads that carry the task is added at one layer (arXiv 2310.15213).

    A head's mean output is taken at the last token over calibration rows with the demonstrations in context. Heads are
    ranked by how much it raises the probability of the right answer's first token when it replaces their output in
    prompts with shuffled labels: each demonstration in turn is the query, after the others with the labels of other
    demonstrations. The sum over the best `finetune.heads` heads, each through its part of the output projection, is
    added to the output of block `finetune.layer` (null: a third up) at the query's last token and behind it.
    """
    layer = bench.options.layer
    layer = bench.model.layers // 3 if layer is None else bench.checked_layer(layer)
    bench.refuse_some_layers()
    _refuse_without_heads(bench)
    vector = function_vector_of(bench)
    with bench.rewriting(Site.block_output, [layer], lambda _layer, rows: rows + vector.to(rows)):
        yield bench.no_steps()


def _refuse_without_heads(bench: Bench) -> None:
    """Refuse what has no heads' outputs that add up, or no labels to shuffle."""
    bench.refuse_fewer_demonstrations(3)
    anatomy, name = bench.model.anatomy, type(bench.model.network).__name__
    refusal = f"finetune={bench.options.name} adds up heads' outputs"
    if len(anatomy.layer_of) < bench.model.layers:
        raise ConfigError(f"{refusal}, and not every layer of {name} has attention heads: choose another mechanism")
    if any(layer.added != ((layer.projections["o"][-1].module, 1.0),) for layer in anatomy.layers):
        raise ConfigError(
            f"{refusal}, and those of {name} go through a norm or a factor: choose another model or mechanism"
        )


@torch.inference_mode()
def function_vector_of(bench: Bench) -> Float[Tensor, " d_model"]:
    """The sum over the heads that raise the right answer most."""
    means = _mean_head_outputs(bench)
    vector = torch.zeros(())
    for layer, head in _largest(_causal_effects(bench, means), bench.options.heads):
        vector = vector + _through_projection(bench, layer, head, means[layer, head])
    return vector


def _mean_head_outputs(bench: Bench) -> Float[Tensor, "layer head head_dim"]:
    rows = [query.token_ids for query in bench.calibration]
    prefix, model = encode_prefix(bench.model, bench.context()), bench.model
    projections = [model.anatomy.output_projection(layer) for layer in range(model.layers)]
    outputs: list[Tensor] = []
    for tokens in rows:
        seen: dict[int, Tensor] = {}

        def keep(layer: int, _module: nn.Module, args: Any, _kwargs: Any, seen: dict[int, Tensor] = seen) -> None:
            seen[layer] = _by_head(bench, args[0])[0, -1]

        state = AttentionPass(lengths=torch.tensor([len(tokens)], device=model.device), prefix=prefix)
        with hooks(before=[(module, partial(keep, layer)) for layer, module in enumerate(projections)]):
            forward(model, torch.tensor([tokens]), state)
        outputs.append(torch.stack([seen[layer].float().cpu() for layer in range(model.layers)]))
    return torch.stack(outputs).mean(0)


def _causal_effects(bench: Bench, means: Float[Tensor, "layer head head_dim"]) -> Float[Tensor, "layer head"]:
    """How far each head's mean output raises the right answer's probability in prompts with shuffled labels."""
    heads = bench.model.anatomy.shape.heads
    effects = torch.zeros(bench.model.layers, heads)
    for index, demonstration in enumerate(bench.demonstrations):
        query = without_label(demonstration).token_ids
        answer = demonstration.token_ids[len(query)]
        prefix = encode_prefix(bench.model, _shuffled_context(bench, index))
        lengths = torch.full((heads,), len(query), device=bench.model.device)
        tokens = torch.tensor([query] * heads)  # a row for each head
        before = _answers(bench, torch.tensor([query]), prefix, lengths[:1], answer)
        for layer in range(bench.model.layers):
            put = partial(_put_heads, bench, means[layer])
            with hooks(before=[(bench.model.anatomy.output_projection(layer), put)]):
                effects[layer] += _answers(bench, tokens, prefix, lengths, answer) - before
    return effects / len(bench.demonstrations)


def _put_heads(bench: Bench, means: Tensor, _module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """In row h of the batch, head h puts out its mean at the last token."""
    changed = args[0].clone()
    for head in range(len(means)):
        _by_head(bench, changed)[head, -1, head] = means[head].to(changed)
    return (changed, *args[1:]), kwargs


def _answers(bench: Bench, tokens: Tensor, prefix: Any, lengths: Tensor, answer: int) -> Float[Tensor, " row"]:
    hidden = forward(bench.model, tokens, AttentionPass(lengths=lengths, prefix=prefix))
    return bench.model.anatomy.unembed(hidden[:, -1]).float().softmax(-1)[:, answer].cpu()


def _shuffled_context(bench: Bench, left_out: int) -> Tokens:
    """The other demonstrations with each other's labels: a random cyclic order, so that none keeps its own."""
    others = [item for index, item in enumerate(bench.demonstrations) if index != left_out]
    order = numpy_stream(f"function vector {left_out}", bench.config.seed).permutation(len(others)).tolist()
    labels: dict[int, Tokens] = {}
    for index, donor_index in zip(order, [*order[1:], *order[:1]], strict=True):
        donor = others[donor_index]
        labels[index] = donor.token_ids[len(donor.token_ids) - donor.label_length :]
    tokens: list[int] = list(bench.prompts.bos)
    for index, item in enumerate(others):
        tokens += [*without_label(item).token_ids, *labels[index], *bench.prompts.separator]
    return tuple(tokens)


def _by_head(bench: Bench, hidden: Tensor) -> Float[Tensor, "row token head head_dim"]:
    heads = bench.model.anatomy.shape.heads
    return hidden.view(*hidden.shape[:-1], heads, hidden.shape[-1] // heads)


def _through_projection(bench: Bench, layer: int, head: int, output: Float[Tensor, " head_dim"]) -> Tensor:
    weight = weight_of(bench.model.anatomy.output_projection(layer))
    width = len(output)
    return (weight[:, head * width : (head + 1) * width].float().cpu() @ output).detach()


def _largest(effects: Float[Tensor, "layer head"], count: int) -> Sequence[tuple[int, int]]:
    """The heads with the largest effects, as (layer, head), largest first."""
    indices = effects.flatten().topk(min(count, effects.numel())).indices.tolist()
    return [divmod(index, effects.shape[1]) for index in indices]
