"""Finds a layer's parts in a traced pass: attention, what it adds, other modules that mix tokens, and projections."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from iclgd.models.anatomy import Layer, refuse
from iclgd.models.interventions import hidden_of
from iclgd.models.placement import device_of
from iclgd.models.projections import Projection, Projections, is_projection
from iclgd.models.trace import Attention, BlockTrace, Call, multiples
from iclgd.models.tracing import implementation

Description = Mapping[str, Any]  # `model.anatomy`
Terms = tuple[tuple[nn.Module, float], ...]
NO_PROJECTIONS: Projections = {part: () for part in "qkvo"}
_LEAST = 1e-3  # by how much of its size an output has to change; grouped experts change by rounding


def attention_term(attention: nn.Module, added: Terms) -> nn.Module:
    """Of the modules whose outputs are added, the one that attention's output goes through."""
    modules = [module for module, _ in added]
    holding = [module for module in modules if any(part is attention for part in module.modules())]
    return holding[0] if len(modules) > 1 and holding else modules[0]


class LayerDiscovery:
    """Finds the parts of one layer after the other, by identities 2 and 3 of `models.discovery`."""

    def __init__(
        self,
        network: PreTrainedModel,
        tokens: Int[Tensor, " token"],
        blocks: Sequence[BlockTrace],
        description: Description,
    ) -> None:
        self.network, self.tokens, self.blocks, self.description = network, tokens, blocks, description
        values = network.config.get_text_config().to_dict().values()
        # What the config states, by which what is computed may be scaled.
        self.numbers = sorted({float(v) for v in values if type(v) in (int, float) and v > 0})

    @cached_property
    def mixing(self) -> dict[nn.Module, list[nn.Module]]:
        """By block, the modules that mix tokens."""
        return mixing_modules(self.network, self.tokens, [block.call.module for block in self.blocks])

    def layer(self, number: int) -> Layer:
        """The parts of one layer."""
        block, attention, mixers = self.blocks[number], self.blocks[number].attention, ()
        added = self._described_terms(block) or self._added_by_attention(block) or self._added_by_mixers(number)
        if attention is None or len(added) > 1:  # otherwise attention alone mixes tokens
            mixers = tuple(self.mixing[block.call.module])
        if attention is None:
            return Layer(None, added, mixers, NO_PROJECTIONS)
        is_local = getattr(attention.module, "attention_type", None) == "local"  # GPT-Neo's, whose mask is a buffer
        return Layer(
            attention=attention.module,
            added=added,
            mixers=tuple(dict.fromkeys((attention.module, *mixers))),
            projections=self._projections(block, attention, attention_term(attention.module, added)),
            scale=attention.scale,
            biased=attention.biased,
            window=self.network.config.window_size if is_local else attention.reach.window,
            chunk=attention.reach.chunk,
        )

    def _described_terms(self, block: BlockTrace) -> Terms:
        if "added" not in self.description:
            return ()
        module = block.call.module.get_submodule(self.description["added"])
        return ((module, float(self.description.get("factor", 1.0))),)

    def _added_by_attention(self, block: BlockTrace) -> Terms:
        """What attention adds, alone or beside what does not depend on it."""
        behind = [call for call in block.inner if call.attends and call.output is not None]
        terms = self._terms(block, [(call,) for call in behind])
        if terms:
            return terms
        for call, other in itertools.product(filter(block.in_attention, behind), block.beside):
            outputs = [cast(Tensor, call.output), cast(Tensor, other.output)]
            factors = multiples(block.output, block.input, outputs, self.numbers)
            if factors:
                return ((call.module, factors[0]),)
        return ()

    def _added_by_mixers(self, number: int) -> Terms:
        """What modules that mix tokens add, alone or beside each other; nothing where there are none."""
        block = self.blocks[number]
        mixing = [cast(Call, block.call_of(module)) for module in self.mixing[block.call.module]]
        if not mixing:
            return ()
        start = min(call.start for call in mixing)
        later = [call for call in block.inner if call.start >= start and call.output is not None]
        terms = self._terms(block, [tuple(mixing), *((call,) for call in later)])
        if not terms:
            refuse(
                self.network,
                f"in layer {number} no module's output, times a number, adds up with the block's input to what is read "
                "next, so that what attention adds to the residual stream is not known (part `added`)",
            )
        return terms

    def _terms(self, block: BlockTrace, candidates: Iterable[tuple[Call, ...]]) -> Terms:
        """The first of these calls whose outputs add up with the block's input to what is read next."""
        for calls in candidates:
            outputs = [cast(Tensor, call.output) for call in calls]
            for total in block.read_after(max(calls, key=lambda call: call.end)):
                factors = multiples(total, block.input, outputs, self.numbers)
                if factors:
                    return tuple((call.module, factor) for call, factor in zip(calls, factors, strict=True))
        return ()

    def _projections(self, block: BlockTrace, attention: Attention, added: nn.Module) -> Projections:
        """What makes attention's queries, keys, values and output, which goes through the module that is added."""
        end = next((call.end for call in block.inner if call.module is added), block.call.end)
        output = [
            Projection(call.module)
            for call in block.inner
            if call.attends and is_projection(call.module) and attention.time < call.start and call.end <= end
        ]
        projections = {**attention.projections, "o": tuple(output)}
        for part, name in {"q": "query", "k": "key", "v": "value", "o": "output"}.items():
            if name in self.description:
                projections[part] = _described(block.call.module, self.description[name])
        return projections


def _described(block: nn.Module, paths: Mapping[str, Any]) -> tuple[Projection, ...]:
    """Projections as `model.anatomy` describes them: a path from the block, with pairs [first row, row behind]."""
    projections = []
    for path, spans in paths.items():
        rows = None if spans is None else torch.cat([torch.arange(*span) for span in spans])
        projections.append(Projection(block.get_submodule(path), rows))
    return tuple(projections)


@torch.no_grad()
def mixing_modules(
    network: PreTrainedModel, tokens: Int[Tensor, " token"], blocks: Sequence[nn.Module]
) -> dict[nn.Module, list[nn.Module]]:
    """The children of each block that mix tokens, in the order of their calls.

    Each is called a second time with other hidden states at all tokens but the last, and the last is compared.
    """
    mixing: dict[nn.Module, list[nn.Module]] = {block: [] for block in blocks}
    again = False  # whether a second call goes on

    def watch(block: nn.Module, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal again
        before = hidden_of(output)
        if again or not _is_hidden(before, tokens) or module in mixing[block]:
            return
        again = True
        try:
            named = {name: moved(value) if name == "hidden_states" else value for name, value in kwargs.items()}
            after = hidden_of(module(*map(moved, args), **named))
        finally:
            again = False
        if (after - before)[0, -1].abs().max() > _LEAST * before[0, -1].abs().max():
            mixing[block].append(module)

    def moved(value: Any) -> Any:
        if not _is_hidden(value, tokens):
            return value
        other = value.clone()
        other[:, :-1] = value[:, :-1].flip(-1) + value.abs().mean()
        return other

    with ExitStack() as stack:
        for block in blocks:
            for child in block.children():
                stack.callback(child.register_forward_hook(partial(watch, block), with_kwargs=True).remove)
        with implementation(network, "eager"):
            network(input_ids=tokens[None].to(device_of(network.get_input_embeddings())), use_cache=False)
    return mixing


def _is_hidden(value: Any, tokens: Tensor) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.shape[:2] == (1, len(tokens))
        and value.ndim == 3
    )
