"""Finds the parts of a model from one traced pass, each by an identity between what its modules read and put out.

1. Blocks are the items of the list of modules that holds all attention.
2. Attention's queries, keys and values have gradients by the rows of the projections that make them
   (`models.tracing`, `models.layer_discovery`).
3. What attention adds to the residual stream is the output with which a block's input adds up to what is read next, or,
   beside a parallel feed-forward part, to what the block puts out. So it is with other modules that mix tokens, where
   a block has no softmax attention, or has them beside it.
4. From the last block's output to what the unembedding reads, each module reads what the one before has put out.
5. Logits are the unembedding's products, scaled or softcapped by numbers of the config.
6. A block's output is its input + attention + the output of one projection, where it has such a form.

What cannot be found can be described (`model.anatomy`). `models.proofs` proves what was found or described.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from iclgd.config import ConfigError
from iclgd.models.anatomy import Anatomy, Exit, FeedForward, Layer, Shape, UnsupportedModelError, refuse
from iclgd.models.layer_discovery import Description, LayerDiscovery
from iclgd.models.projections import is_projection
from iclgd.models.trace import Attention, BlockTrace, Trace, is_sum, multiples, scale_and_softcap
from iclgd.models.tracing import some_tokens, trace

_DESCRIBED = (
    *("blocks", "added", "factor", "query", "key", "value", "output"),
    *("final", "logit_scale", "softcap", "positions", "mlp", "mlp_in", "mlp_out"),
)


def discover(network: PreTrainedModel, description: Description | None = None) -> tuple[Anatomy, Trace]:
    """The anatomy of a model, whose parameters are frozen, and the pass that it was found in.

    Parts of `description` (`model.anatomy`) are taken as they are described.

    Raises:
        UnsupportedModelError: a part is not found.
        ConfigError: a part is described that does not exist, or half of a description is missing.
    """
    described = description or {}
    unknown = set(described) - set(_DESCRIBED)
    if unknown:
        raise ConfigError(
            f"model.anatomy has no part {', '.join(sorted(unknown))}: its parts are {', '.join(_DESCRIBED)}"
        )
    for part, other in (("factor", "added"), ("mlp_in", "mlp_out")):
        if part in described and other not in described:
            raise ConfigError(f"model.anatomy describes {part} without {other}: describe both")
    passed = _traced(network)
    try:
        return _anatomy(network, passed, described), passed
    except AttributeError as error:
        if not described:
            raise
        raise ConfigError(f"model.anatomy describes a part that {type(network).__name__} lacks: {error}") from error


def _traced(network: PreTrainedModel) -> Trace:
    try:
        passed = trace(network, some_tokens(network))
    except torch.OutOfMemoryError:
        raise
    except UnsupportedModelError as error:
        refuse(network, str(error))
    except (RuntimeError, TypeError, AttributeError, ValueError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        refuse(network, f"it does not run in {network.dtype} on a few tokens ({reason}); choose another runtime.dtype")
    if not passed.logits.isfinite().all():
        what = f"its logits for a few tokens are not finite in {network.dtype}: choose another runtime.dtype"
        refuse(network, what)
    return passed


def _anatomy(network: PreTrainedModel, passed: Trace, described: Description) -> Anatomy:
    path, blocks = _blocks(network, passed, described)
    finder = LayerDiscovery(network, passed.tokens, blocks, described)
    layers = tuple(map(finder.layer, range(len(blocks))))
    return Anatomy(
        network=network,
        interface=passed.interface or not passed.attentions,
        shape=_shape(network, passed.attentions),
        blocks=tuple(block.call.module for block in blocks),
        layers=layers,
        exit=_exit(network, passed, blocks[-1], described, finder.numbers),
        feed_forward=_feed_forward(list(zip(blocks, layers, strict=True)), described),
        positions=_positions(network, passed, path, described),
    )


def _blocks(network: PreTrainedModel, passed: Trace, described: Description) -> tuple[str, list[BlockTrace]]:
    """Step 1: the path of the list of blocks, and what happened in each of them."""
    names = [f"{attention.name}." for attention in passed.attentions]
    count = network.config.get_text_config().num_hidden_layers
    lists = [
        path
        for path, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and all(name.startswith(f"{path}.") for name in names)
        if names or len(module) == count
    ]
    path = described.get("blocks") or (min(lists, key=len) if lists else None)
    if path is None:
        refuse(network, "the modules that mix tokens do not lie in one list of blocks")
    calls = [call for call in passed.calls if call.name.rpartition(".")[0] == path]
    blocks = [passed.block(call.module) for call in sorted(calls, key=lambda call: call.start)]
    owners: dict[nn.Parameter, int] = {}
    for number, block in enumerate(blocks):
        attentions = len(block.attentions)
        if attentions > 1:
            refuse(network, f"block {number} computes softmax attention {attentions} times, expected at most once")
        for parameter in block.call.module.parameters():
            owner = owners.setdefault(parameter, number)
            if owner != number:
                refuse(network, f"blocks {owner} and {number} share weights, so that no layer has its own")
    return path, blocks


def _exit(
    network: PreTrainedModel, passed: Trace, last: BlockTrace, described: Description, numbers: Sequence[float]
) -> Exit:
    """Steps 4 and 5: from the last block to the logits."""
    unembedding = cast(nn.Module, network.get_output_embeddings())
    head = next((call for call in passed.calls if call.module is unembedding), None)
    if head is None or head.output is None:
        refuse(network, "its unembedding is not called as a module")
    hidden, modules = last.output, []
    if "final" in described:
        hidden, modules = head.inputs[0], [network.get_submodule(path) for path in described["final"]]
    for call in sorted(passed.calls, key=lambda call: call.start):
        is_between = last.call.end < call.start < head.start and "final" not in described
        if is_between and call.output is not None and call.inputs and torch.equal(call.inputs[0], hidden):
            if not torch.equal(call.output, hidden):  # as dropout's is
                modules.append(call.module)
            hidden = call.output
    factors = multiples(head.inputs[0], torch.zeros_like(hidden), [hidden], numbers)
    if not factors:
        what = "what the unembedding reads is not what the last block has put out after the modules behind it"
        refuse(network, f"{what} (part `final`)")
    form = scale_and_softcap(head.output, passed.logits, numbers)
    if not form:
        refuse(network, "its logits are not a multiple of the unembedding's products, nor softcapped by one number")
    scale = float(described.get("logit_scale", factors[0] * form[0]))
    return Exit(tuple(modules), unembedding, scale, described.get("softcap", form[1]))


def _positions(network: PreTrainedModel, passed: Trace, path: str, described: Description) -> tuple[nn.Module, ...]:
    if "positions" in described:
        return tuple(network.get_submodule(path) for path in described["positions"])
    words = network.get_input_embeddings()
    outside = [call.module for call in passed.calls if not call.name.startswith(f"{path}.")]
    return tuple(dict.fromkeys(each for each in outside if isinstance(each, nn.Embedding) and each is not words))


def _feed_forward(pairs: Sequence[tuple[BlockTrace, Layer]], described: Description) -> FeedForward:
    """Step 6: the feed-forward part."""
    modules = tuple(dict.fromkeys(path for block, layer in pairs for path in _matrices(block.call.module, layer)))
    modules = tuple(described.get("mlp", modules))
    if "mlp_out" in described:
        return FeedForward(modules, tuple(described.get("mlp_in", ())), described["mlp_out"])
    forms = {_form(block, layer) for block, layer in pairs}
    reads, adds = forms.pop() if len(forms) == 1 else ((), None)
    return FeedForward(modules, reads, adds)


def _form(block: BlockTrace, layer: Layer) -> tuple[tuple[str, ...], str | None]:
    """The projections that read the feed-forward part's input, and the one that is added."""
    if len(layer.added) != 1 or layer.added[0][1] != 1:
        return (), None
    attention = block.call_of(layer.added[0][0])
    mixing = {part for mixer in layer.mixers for part in mixer.modules()}
    outside = [call for call in block.inner if is_projection(call.module) and call.module not in mixing]
    for call in outside:
        if attention is None or attention.output is None or call is attention:
            continue
        if call.output is None or call.output.shape != block.output.shape:
            continue
        if is_sum(block.output, (block.input, attention.output, call.output)):
            before = [each for each in outside if each.end < call.start]
            reads = [each for each in before if torch.equal(each.inputs[0], before[0].inputs[0])]
            return tuple(map(block.path, reads)), block.path(call)
    return (), None


def _matrices(module: nn.Module, layer: Layer, path: str = "") -> Iterator[str]:
    """Paths of what has matrices in a block and is not attention, nor the projection of its output."""
    for name, child in module.named_children():
        if child in layer.mixing:
            continue
        if any(each in layer.mixing for each in child.modules()):
            yield from _matrices(child, layer, f"{path}{name}.")
        elif any(parameter.ndim > 1 for parameter in child.parameters()):
            yield f"{path}{name}"


def _shape(network: PreTrainedModel, attentions: Sequence[Attention]) -> Shape:
    config: Any = network.config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "max_target_positions")  # the last is Whisper's
    window = next((size for size in (getattr(config, name, None) for name in names) if size), None)
    return Shape(
        layers=int(config.num_hidden_layers),
        heads=max((attention.query.shape[0] for attention in attentions), default=1),
        head_dim=max((attention.query.shape[-1] for attention in attentions), default=1),
        window=None if config.model_type == "bloom" else window,
    )
