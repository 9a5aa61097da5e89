"""Demonstrations one at a time: attention's outputs after each of them alone, averaged or summed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.common.records import Trace
from iclgd.config.enumerations import Site
from iclgd.mechanisms.bench import Bench, Tokens
from iclgd.models.anatomy import LanguageModel
from iclgd.models.attention import precise
from iclgd.models.attention_pass import AttentionPass, KeyValues
from iclgd.models.forward import forward, padded
from iclgd.models.interventions import intervening, last_tokens, own_tokens, reading, rewriting

ByLayer = dict[int, Float[Tensor, "token d_model"]]

_HELD = 2**27  # numbers in keys and values of queries, which are kept for labels behind them


@contextmanager
def one_shot_mean(bench: Bench) -> Iterator[Trace]:
    """Attention's output becomes its mean over demonstrations that stand in the context alone (arXiv 2401.06469).

    `finetune.layer` is the first layer in which it does; null: all (of `finetune.layers`).
    """
    count = len(bench.demonstrations)
    with _from_single_demonstrations(bench, [1 / count] * count, alone=0):
        yield bench.no_steps()


@contextmanager
def one_shot_sum(bench: Bench) -> Iterator[Trace]:
    """Attention's output becomes h(x) + the sum over demonstrations i of h(C_i, x) - h(x).

    This is ICL where the updates of single demonstrations add up, as single steps of gradient descent from one start
    do (linear attention, von Oswald et al. 2023).
    """
    count = len(bench.demonstrations)
    with _from_single_demonstrations(bench, [1] * count, alone=1 - count):
        yield bench.no_steps()


def _from_single_demonstrations(bench: Bench, weights: Sequence[float], alone: float) -> AbstractContextManager[None]:
    """Attention's outputs become weighted sums of those after each demonstration alone, and after none."""
    bench.refuse_other_states()
    first = 0 if bench.options.layer is None else bench.checked_layer(bench.options.layer)
    layers = [layer for layer in bench.layers if layer >= first]
    contexts = [(bench.context(only=index), weight) for index, weight in enumerate(weights)]
    if alone:
        contexts.append((bench.prompts.bos, alone))
    reader = _Reader(bench.model, contexts, layers)

    def intervention(token_ids: Tensor, state: AttentionPass) -> AbstractContextManager[None]:
        sums = reader.outputs(_own(token_ids, state), state.query_ends().tolist())
        chosen = last_tokens(state, token_ids.shape[1])
        return rewriting(bench.model, Site.attention_output, layers, chosen, lambda layer, _rows: sums[layer])

    return intervening(bench.model, intervention)


def _own(token_ids: Tensor, state: AttentionPass) -> list[Tokens]:
    """Each sequence's own tokens."""
    rows = zip(token_ids.tolist(), state.lengths.tolist(), strict=True)
    return [tuple(row[:length]) for row, length in rows]


@dataclass(frozen=True)
class _Query:
    """What a query leaves."""

    outputs: ByLayer  # the weighted sum of attention's outputs at its last token
    keys_and_values: list[list[KeyValues]]  # by context and layer, the context's included
    has_keys: bool  # whether these are there


class _Reader:
    """Reads sequences after several contexts; a query is read once for all labels behind it."""

    def __init__(self, model: LanguageModel, contexts: Sequence[tuple[Tokens, float]], layers: Sequence[int]) -> None:
        self.model, self.layers = model, layers
        self.prefixes = list(self._encoded(contexts))
        self.queries: dict[Tokens, _Query] = {}
        self.held = 0

    def _encoded(self, contexts: Sequence[tuple[Tokens, float]]) -> Iterator[tuple[list[KeyValues] | None, int, float]]:
        """Keys and values of each context, all from one pass, its length and its weight."""
        tokens = [context for context, _ in contexts if context]
        state, _ = self._pass(tokens, None, [len(each) - 1 for each in tokens])
        layers = [state.keys_and_values[layer] for layer in range(self.model.layers)]
        for context, weight in contexts:
            row, end = tokens.index(context) if context else 0, len(context)
            own = slice(row, row + 1), slice(None), slice(end)
            yield [(key[own], value[own]) for key, value in layers] if context else None, end, weight

    def outputs(self, sequences: Sequence[Tokens], ends: Sequence[int]) -> ByLayer:
        """The weighted sums of attention's outputs from each query's last token on, in order of sequences.

        The first `ends` tokens of each sequence are its query's, and what follows is the beginning of a label.
        """
        queries = [tokens[:end] for tokens, end in zip(sequences, ends, strict=True)]
        labels = [tokens[end:] for tokens, end in zip(sequences, ends, strict=True)]
        half = len(queries) // 2
        if any(labels) and half and self._size(queries) > _HELD:
            parts = [self.outputs(sequences[part], ends[part]) for part in (slice(half), slice(half, None))]
            return {layer: torch.cat([part[layer] for part in parts]) for layer in self.layers}
        self._read(queries, keep=any(labels))
        starts = [row + sum(map(len, labels[:row])) for row in range(len(labels))]
        sums = {}
        for layer in self.layers:
            last = torch.cat([self.queries[query].outputs[layer] for query in queries])
            sums[layer] = last.new_zeros(len(labels) + sum(map(len, labels)), last.shape[1])
            sums[layer][starts] = last
        # What stands before a label has to be equally long in a pass, so that no keys are hidden.
        passes: dict[int, list[tuple[int, int]]] = {}
        for context, (_, length, _) in enumerate(self.prefixes):
            for row in (row for row, label in enumerate(labels) if label):
                passes.setdefault(length + ends[row], []).append((context, row))
        for pairs in passes.values():
            held = [self.queries[queries[row]].keys_and_values[context] for context, row in pairs]
            prefix = [_joined([own[layer] for own in held]) for layer in range(self.model.layers)]
            outputs = self._pass([labels[row] for _, row in pairs], prefix, [0] * len(pairs))[1]
            tokens = [(starts[row] + 1 + at, context) for context, row in pairs for at in range(len(labels[row]))]
            slots, weights = torch.tensor([slot for slot, _ in tokens]), [self.prefixes[i][2] for _, i in tokens]
            for layer, rows in outputs.items():
                weighted = precise(rows) * torch.tensor(weights, device=rows.device)[:, None]
                sums[layer].index_add_(0, slots.to(rows.device), weighted.to(sums[layer]))
        return sums

    def _size(self, queries: Sequence[Tokens]) -> int:
        """How many numbers keys and values of these queries have after all contexts."""
        prefix, length, _ = self.prefixes[0]
        each = sum(key.numel() + value.numel() for key, value in prefix or []) // length
        return each * sum(before + len(query) for query in dict.fromkeys(queries) for _, before, _ in self.prefixes)

    def _read(self, queries: Sequence[Tokens], keep: bool) -> None:
        """Read the queries that were not read before after each context, and keep keys and values."""
        if self.held + self._size(queries) > _HELD:
            self.queries, self.held = {}, 0
        missing = [q for q in dict.fromkeys(queries) if q not in self.queries or keep > self.queries[q].has_keys]
        if not missing:
            return
        sums: ByLayer = {}
        held: list[list[list[KeyValues]]] = [[] for _ in missing]
        for prefix, before, weight in self.prefixes:
            state, outputs = self._pass(missing, prefix, [len(query) - 1 for query in missing])
            for layer, rows in outputs.items():
                sums[layer] = sums.get(layer, 0) + weight * precise(rows)  # sums round in half precision
            whole = [state.keys_and_values[layer] for layer in range(self.model.layers)] if keep else []
            if prefix is not None and self.model.anatomy.interface:  # others' caches hold the context too
                both = zip(prefix[: len(whole)], whole, strict=True)
                whole = [(_after(shared[0], key), _after(shared[1], value)) for shared, (key, value) in both]
            for row, query in enumerate(missing):
                own = slice(row, row + 1), slice(None), slice(before + len(query))
                held[row].append([(key[own], value[own]) for key, value in whole])
        for row, query in enumerate(missing):
            self.queries[query] = _Query({layer: rows[row : row + 1] for layer, rows in sums.items()}, held[row], keep)
        self.held += self._size(missing) * keep

    @torch.inference_mode()
    def _pass(
        self, sequences: Sequence[Tokens], prefix: list[KeyValues] | None, first: Sequence[int]
    ) -> tuple[AttentionPass, ByLayer]:
        """A pass, and attention's outputs from each sequence's token `first` on."""
        lengths = torch.tensor([len(tokens) for tokens in sequences], device=self.model.device)
        state, token_ids, outputs = AttentionPass(lengths=lengths, prefix=prefix, keep_keys=True), padded(sequences), {}
        chosen = own_tokens(state, token_ids.shape[1], torch.tensor(first))
        with reading(self.model, Site.attention_output, self.layers, chosen, outputs):
            forward(self.model, token_ids, state)
        return state, outputs


def _joined(rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Keys and values of several sequences as a batch."""
    return torch.cat([key for key, _ in rows]), torch.cat([value for _, value in rows])


def _after(shared: Tensor, own: Tensor) -> Tensor:
    """Keys or values of the prefix before those of each sequence."""
    return torch.cat([shared.expand(len(own), -1, -1, -1), own], dim=2)
