"""Proofs that a model's parts are what its anatomy says, by identities of what modules read and put out.

Every refusal names the identity that failed, the layer, and by how much.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iclgd.models.anatomy import LanguageModel, refuse
from iclgd.models.attention_pass import AttentionPass
from iclgd.models.forward import forward
from iclgd.models.interventions import hidden_of, hooks
from iclgd.models.layer_discovery import attention_term
from iclgd.models.projections import rows_of
from iclgd.models.trace import BlockTrace, Trace, is_sum, multiples
from iclgd.models.tracing import some_tokens

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
_PARTS = {"q": "queries", "k": "keys", "v": "values", "o": "attention's output"}


def prove_stream(model: LanguageModel, passed: Trace) -> None:
    """A block's input + what attention adds is what the block reads next, or its output without its other part."""
    anatomy = model.anatomy
    blocks = [passed.block(block) for block in anatomy.blocks]
    for number, (block, layer) in enumerate(zip(blocks, anatomy.layers, strict=True)):
        if number and not is_sum(block.input, (blocks[number - 1].output,)):
            refuse(model.network, f"block {number} does not read what block {number - 1} has put out")
        if not layer.added:
            continue
        calls = [(block.call_of(module), factor) for module, factor in layer.added]
        terms = [call.output * factor for call, factor in calls if call is not None and call.output is not None]
        of_attention = [call is not None and call.attends for call, _ in calls]
        if len(terms) < len(calls) or not (any(of_attention) or layer.attention is None):
            refuse(
                model.network, f"in layer {number} what is taken for attention's output does not depend on attention"
            )
        added = max((call for call, _ in calls if call is not None), key=lambda call: call.end)
        if any(is_sum(total, (block.input, *terms)) for total in block.read_after(added)):
            continue
        others = [cast(Tensor, call.output) for call in block.beside]
        if not any(_is_parallel(block, terms, other) for other in others):
            rest = sum(terms, block.input)
            totals = [(total, rest) for total in block.read_after(added)]
            totals += [(block.output, rest + other) for other in others]
            error = min(relative_error(total, expected) for total, expected in totals)
            refuse(
                model.network,
                f"in layer {number} the block's input + what attention adds is not what the block reads next (off by "
                f"{error:.1e} of its size)",
            )


def _is_parallel(block: BlockTrace, terms: list[Tensor], other: Tensor) -> bool:
    """Whether a block puts out its input + what attention adds + what a module beside it puts out, times a factor.

    Each term is judged by itself: a sum of them is rounded, which shows where they nearly cancel.
    """
    factors = multiples(block.output, block.input, [*terms, other], (1.0,))
    return factors is not None and set(factors[:-1]) == {1.0}


def prove_rows(model: LanguageModel, passed: Trace) -> None:
    """Every row that is taken for queries, keys or values has a gradient of these."""
    for number, (block, layer) in enumerate(zip(model.anatomy.blocks, model.anatomy.layers, strict=True)):
        attention = passed.block(block).attention
        gradients = attention.projections if attention else {}
        for part in "qkv" if attention else "":
            rows = {each.module: each.outputs() for each in gradients[part]}
            for projection in layer.projections[part] if rows else ():
                own = rows.get(projection.module, torch.empty(0, dtype=torch.long))
                if not torch.isin(projection.outputs(), own).all():
                    refuse(model.network, f"in layer {number} rows that make no {_PARTS[part]} are taken for them")


def prove_projections(model: LanguageModel, tokens: Tensor) -> None:
    """Without the rows that make queries, queries are the same for all tokens, and keys and values what they were.

    So too for keys, values and attention's output. Two sequences are run as they are, and again without each of them;
    every block reads for the latter what it reads for the former.
    """
    anatomy, letters = model.anatomy, list(_PARTS)
    pair = torch.stack([tokens[:3], (tokens[:3] * 3 + 1) % model.network.config.get_text_config().vocab_size])
    batch = pair.repeat(1 + len(letters), 1)
    seen: dict[tuple[int, str], Tensor] = {}
    now = AttentionPass(lengths=torch.full((len(batch),), 3), watch=lambda i, part, x: seen.update({(i, part): x}))

    def reset(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        hidden = hidden[:2].repeat(1 + len(letters), 1, 1)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def keep(layer: int, _module: nn.Module, _args: Any, output: Any) -> None:
        seen[layer, "o"] = hidden_of(output)

    erasing = [
        (module, partial(_erase, 2 + 2 * place, rows))
        for layer in range(model.layers)
        for place, letter in enumerate(letters)
        for module, rows in rows_of(anatomy.layers[layer].projections, letter).items()
    ]
    layers = sorted(anatomy.layer_of.values())
    parts = [anatomy.layers[layer] for layer in layers]
    terms = [attention_term(cast(nn.Module, each.attention), each.added) for each in parts]
    added = [(module, partial(keep, layer)) for layer, module in zip(layers, terms, strict=True)]
    with hooks([(block, reset) for block in anatomy.blocks], [*erasing, *added]):
        forward(model, batch, now)
    for layer in layers:
        tensors = {letter: seen[layer, letter].flatten(1).unflatten(0, (-1, 2)) for letter in letters}
        _check_letters(model, layer, tensors)


def _erase(first: int, rows: Any, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    """In two rows of the batch, a projection puts out nothing in the rows that make a part."""
    output = output.clone()
    index = slice(None) if rows is None else torch.cat(rows.groups).to(output.device)
    output[first : first + 2, ..., index] = 0
    return output


def _check_letters(model: LanguageModel, layer: int, tensors: dict[str, Float[Tensor, "without pair number"]]) -> None:
    projections = model.anatomy.layers[layer].projections
    makers = {letter: rows_of(projections, letter) for letter in tensors}
    for place, erased in enumerate(tensors):
        if not makers[erased]:
            if erased in "qo":
                refuse(model.network, f"no projection of layer {layer} makes {_PARTS[erased]}")
            continue
        for letter, tensor in tensors.items():
            apart = (tensor[0, 0] - tensor[0, 1]).abs().max()
            allowed = TOLERANCE[model.dtype] * max(apart, torch.finfo(torch.float32).tiny)
            if letter == erased:
                error = (tensor[1 + place, 0] - tensor[1 + place, 1]).abs().max()
                what = f"layer {layer} has {_PARTS[letter]} outside the part that would be trained as {_PARTS[erased]}"
            elif letter == "o" or (erased != "o" and _overlap(makers[erased], makers[letter])):
                continue
            else:
                error = (tensor[1 + place] - tensor[0]).abs().max()
                what = f"layer {layer} has {_PARTS[letter]} in the part that would be trained as {_PARTS[erased]}"
            if not error <= allowed:
                refuse(model.network, f"{what} (they move by {(error / apart).item():.1e} of their size)")


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
        terms = [
            *(block.call_of(part) for part, _ in anatomy.layers[number].added),
            block.call_of(anatomy.part(number, parts.adds)),
        ]
        outputs = [call.output for call in terms if call is not None and call.output is not None]
        if len(outputs) < 2 or not is_sum(block.output, (block.input, *outputs)):
            refuse(
                model.network,
                f"block {number} puts out something else than its input, attention and {parts.adds} (off by "
                f"{relative_error(block.output, sum(outputs, block.input)):.1e} of its size)",
            )
        calls = [block.call_of(anatomy.part(number, path)) for path in parts.reads]
        reads = [call.inputs[0] for call in calls if call is not None]
        if not reads or len(reads) < len(calls) or not all(torch.equal(each, reads[0]) for each in reads):
            refuse(model.network, f"in layer {number} {', '.join(parts.reads)} do not read the same")
    if (worst := reads_decide(model)) is not None:
        refuse(model.network, f"in layer {worst} {parts.adds} reads more than {', '.join(parts.reads)} put out")


def reads_decide(model: LanguageModel) -> int | None:
    """The first layer in which what the last projection reads depends on more than the projections before it.

    They put out for a second sequence what they do for the first.
    """
    anatomy, parts, tokens = model.anatomy, model.anatomy.feed_forward, some_tokens(model.network)[:6]
    last: dict[int, Tensor] = {}

    def first(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output.unflatten(0, (2, -1))[:1].expand(2, *[-1] * output.ndim).flatten(0, 1)

    def keep(layer: int, _module: nn.Module, args: Any, _kwargs: Any) -> None:
        last[layer] = args[0].unflatten(0, (2, -1))

    layers = range(model.layers)
    before = [(anatomy.part(layer, str(parts.adds)), partial(keep, layer)) for layer in layers]
    after = [(anatomy.part(layer, path), first) for layer in layers for path in parts.reads]
    with hooks(before, after):
        forward(model, tokens.view(2, 3), AttentionPass(lengths=torch.tensor([3, 3])))
    allowed = TOLERANCE[model.dtype]
    return next((i for i in layers if not relative_error(last[i][1], last[i][0]) <= allowed), None)


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
