"""Proofs that a model's parts are what its anatomy says, by identities of what modules read and put out.

Every refusal names the identity that failed, the layer, and by how much.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iclgd.models.anatomy import LanguageModel, Layer, refuse
from iclgd.models.attention_pass import AttentionPass
from iclgd.models.forward import forward
from iclgd.models.interventions import hidden_of, hooks
from iclgd.models.layer_discovery import attention_term
from iclgd.models.projections import Rows, rows_of
from iclgd.models.trace import BlockTrace, Trace, is_sum, multiples
from iclgd.models.tracing import some_tokens

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
_PARTS = {"q": "queries", "k": "keys", "v": "values", "o": "attention's output"}


def prove_stream(model: LanguageModel, passed: Trace) -> None:
    """A block's input + what attention adds is what the block reads next, or its output without its other part."""
    blocks = [passed.block(block) for block in model.anatomy.blocks]
    for number, (block, layer) in enumerate(zip(blocks, model.anatomy.layers, strict=True)):
        if number and not is_sum(block.input, (blocks[number - 1].output,)):
            refuse(model.network, f"block {number} does not read what block {number - 1} has put out")
        if layer.added:
            _prove_added(model, number, block, layer)


def _prove_added(model: LanguageModel, number: int, block: BlockTrace, layer: Layer) -> None:
    calls = [call for call in (block.call_of(module) for module, _ in layer.added) if call is not None]
    terms = [cast(Tensor, call.output) * factor for call, (_, factor) in zip(calls, layer.added, strict=False)]
    depends = layer.attention is None or any(call.attends for call in calls)
    if len(calls) < len(layer.added) or not depends:
        refuse(model.network, f"in layer {number} what is taken for attention's output does not depend on attention")
    sums = [(total, terms) for total in block.read_after(max(calls, key=lambda call: call.end))]
    sums += [(block.output, [*terms, cast(Tensor, other.output)]) for other in block.beside]
    for total, others in sums:
        # Each term is judged by itself: a sum of them is rounded, which shows where they nearly cancel. What a module
        # beside attention puts out may have a factor.
        factors = multiples(total, block.input, others, (1.0,))
        if factors is not None and set(factors[: len(terms)]) == {1.0}:
            return
    error = min(relative_error(total, sum(others, block.input)) for total, others in sums)
    refuse(
        model.network,
        f"in layer {number} the block's input + what attention adds is not what the block reads next (off by "
        f"{error:.1e} of its size)",
    )


def prove_rows(model: LanguageModel, passed: Trace) -> None:
    """Every row that is taken for queries, keys or values has a gradient of these."""
    for number, (block, layer) in enumerate(zip(model.anatomy.blocks, model.anatomy.layers, strict=True)):
        attention = passed.block(block).attention
        for part, makers in (attention.projections if attention else {}).items():
            rows = {maker.module: maker.outputs() for maker in makers}
            for projection in layer.projections[part] if rows else ():
                own = rows.get(projection.module, torch.empty(0, dtype=torch.long))
                if not torch.isin(projection.outputs(), own).all():
                    refuse(model.network, f"in layer {number} rows that make no {_PARTS[part]} are taken for them")


def prove_projections(model: LanguageModel, tokens: Tensor) -> None:
    """Without the rows that make queries, queries are the same for all tokens, and keys and values what they were.

    So too for keys, values and attention's output. Two sequences are run as they are, and again without each of them;
    every block reads for the latter what it reads for the former.
    """
    anatomy, runs = model.anatomy, 1 + len(_PARTS)
    pair = torch.stack([tokens[:3], (tokens[:3] * 3 + 1) % model.network.config.get_text_config().vocab_size])
    outputs: dict[int, Tensor] = {}

    def reset(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        hidden = (args[0] if args else kwargs["hidden_states"])[:2].repeat(runs, 1, 1)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def erase(run: int, rows: Rows | None, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        index = slice(None) if rows is None else torch.cat(rows.groups).to(output.device)
        output[2 * run : 2 * run + 2, ..., index] = 0
        return output

    def keep(layer: int, _module: nn.Module, _args: Any, output: Any) -> None:
        outputs[layer] = hidden_of(output)

    after: list[tuple[nn.Module, Any]] = []
    for layer in anatomy.layers:
        for run, part in enumerate(_PARTS, start=1):
            after += [(module, partial(erase, run, rows)) for module, rows in rows_of(layer.projections, part).items()]
    for attention, number in anatomy.layer_of.items():
        term = attention_term(attention, anatomy.layers[number].added)
        after.append((term, partial(keep, number)))
    state = AttentionPass(lengths=torch.full((2 * runs,), 3), keep_keys=True, wanted=frozenset({"token_queries"}))
    with hooks([(block, reset) for block in anatomy.blocks], after):
        forward(model, pair.repeat(runs, 1), state)
    for number, output in outputs.items():
        tensors = (state.records["token_queries"][number], *state.keys_and_values[number], output)
        by_run = [tensor.flatten(1).unflatten(0, (-1, 2)) for tensor in tensors]  # run, which of the pair, number
        _check_parts(model, number, dict(zip(_PARTS, by_run, strict=True)))


def _check_parts(model: LanguageModel, layer: int, tensors: dict[str, Float[Tensor, "run pair number"]]) -> None:
    makers = {part: rows_of(model.anatomy.layers[layer].projections, part) for part in _PARTS}
    for run, erased in enumerate(_PARTS, start=1):
        if not makers[erased] and erased in "qo":
            refuse(model.network, f"no projection of layer {layer} makes {_PARTS[erased]}")
        for part, tensor in tensors.items() if makers[erased] else ():
            apart = (tensor[0, 0] - tensor[0, 1]).abs().max()
            if part == erased:
                error, where = (tensor[run, 0] - tensor[run, 1]).abs().max(), "outside"
            elif part == "o" or (erased != "o" and _overlap(makers[erased], makers[part])):
                continue
            else:
                error, where = (tensor[run] - tensor[0]).abs().max(), "in"
            if not error <= TOLERANCE[model.dtype] * max(apart, torch.finfo(torch.float32).tiny):
                refuse(
                    model.network,
                    f"layer {layer} has {_PARTS[part]} {where} the part that would be trained as {_PARTS[erased]} "
                    f"(they move by {(error / apart).item():.1e} of their size)",
                )


def _overlap(ones: dict[nn.Module, Any], others: dict[nn.Module, Any]) -> bool:
    """Whether rows of a projection make both: those of latent attention, or keys that are values."""
    for module in ones.keys() & others.keys():
        one, other = ones[module], others[module]
        if one is None or other is None or torch.isin(torch.cat(one.groups), torch.cat(other.groups)).any():
            return True
    return False


def prove_feed_forward(model: LanguageModel, passed: Trace) -> None:
    """A block puts out its input + attention + the last projection, which depends on those that read alone."""
    anatomy, parts = model.anatomy, model.anatomy.feed_forward
    if parts.adds is None:
        return
    for number, module in enumerate(anatomy.blocks):
        block = passed.block(module)
        added = [*(part for part, _ in anatomy.layers[number].added), anatomy.part(number, parts.adds)]
        calls = [call for call in map(block.call_of, added) if call is not None]
        terms = [block.input, *(cast(Tensor, call.output) for call in calls)]
        if len(calls) < 2 or not is_sum(block.output, terms):
            refuse(
                model.network,
                f"block {number} puts out something else than its input, attention and {parts.adds} (off by "
                f"{relative_error(block.output, sum(terms[1:], block.input)):.1e} of its size)",
            )
        readers = [block.call_of(anatomy.part(number, path)) for path in parts.reads]
        reads = [call.inputs[0] for call in readers if call is not None]
        if not reads or len(reads) < len(readers) or not all(torch.equal(each, reads[0]) for each in reads):
            refuse(model.network, f"in layer {number} {', '.join(parts.reads)} do not read the same")
    _prove_reads(model)


def _prove_reads(model: LanguageModel) -> None:
    """What the last projection reads is the same for two sequences if the projections before it put out the same."""
    anatomy, parts, layers = model.anatomy, model.anatomy.feed_forward, range(model.layers)
    last: dict[int, Tensor] = {}

    def first(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output.unflatten(0, (2, -1))[:1].expand(2, *[-1] * output.ndim).flatten(0, 1)

    def keep(layer: int, _module: nn.Module, args: Any, _kwargs: Any) -> None:
        last[layer] = args[0].unflatten(0, (2, -1))

    before = [(anatomy.part(layer, str(parts.adds)), partial(keep, layer)) for layer in layers]
    after = [(anatomy.part(layer, path), first) for layer in layers for path in parts.reads]
    with hooks(before, after):
        tokens = some_tokens(model.network)[:6].view(2, 3)
        forward(model, tokens, AttentionPass(lengths=torch.tensor([3, 3])))
    for layer in layers:
        if not relative_error(last[layer][1], last[layer][0]) <= TOLERANCE[model.dtype]:
            refuse(model.network, f"in layer {layer} {parts.adds} reads more than {', '.join(parts.reads)} put out")


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, over the largest of what is expected."""
    expected = expected.to(actual.device)
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()


def agree(model: LanguageModel, what: str, actual: Tensor, expected: Tensor) -> None:
    """Refuse a model whose numbers differ from what is expected by more than rounding, or are not finite."""
    error = relative_error(actual, expected)
    if not error <= TOLERANCE[model.dtype]:
        refuse(model.network, f"{what} (relative error {error:.1e}, allowed {TOLERANCE[model.dtype]:.0e})")


def agree_scores(model: LanguageModel, what: str, actual: Tensor, expected: Tensor) -> None:
    """The same for attention scores, which must be undefined (NaN) in the same places."""
    hidden = expected.isnan()
    if not torch.equal(actual.isnan(), hidden):
        refuse(model.network, f"{what} (others of them are undefined)")
    agree(model, what, actual.masked_fill(hidden, 0), expected.masked_fill(hidden, 0))
