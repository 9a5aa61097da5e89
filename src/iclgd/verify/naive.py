"""The naive implementation: one query at a time, the full context, transformers' eager attention, plain autograd.

It shares no code with the recorder and the mechanisms, which tests, `iclgd-verify` and the benchmark compare with it;
it is given only where a network keeps its parts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from iclgd.common.records import Item, PromptSet, Recording, Trace
from iclgd.config import Config
from iclgd.config.bounds import parse_layers
from iclgd.models.discovery import discover
from iclgd.verify.network import Parts, SoftmaxSpy, as_float, discovered


@dataclass
class Pass:
    """What the network computes for one sequence; lists have an item for each layer."""

    logits: Tensor  # token vocabulary
    queries: list[Tensor]  # head token head_dim, scaled
    scores: list[Tensor]  # head key: of the last token, NaN where it cannot see
    shares: list[Tensor]  # head key: of its attention
    attention: list[Tensor]  # token d_model: what attention adds to the residual stream
    blocks: list[Tensor]  # token d_model: what the block puts out


class Naive:
    """A copy of a model, made of transformers' own modules, with the prompts and settings of a run."""

    def __init__(
        self, network: PreTrainedModel, config: Config, prompts: PromptSet, parts: Parts | None = None
    ) -> None:
        settings = copy.deepcopy(network.config)
        kind: Any = type(network)
        self.network: Any = kind._from_config(settings, dtype=network.dtype, attn_implementation="eager")
        self.network.load_state_dict(network.state_dict())
        self.network.to(network.device).eval().requires_grad_(False)
        self.parts = parts or discovered(discover(self.network, config.model.anatomy)[0])
        self.config, self.prompts = config, prompts
        self.blocks = [self._module(path) for path in self.parts.blocks]
        inputs = [path for score in config.metric.scores.values() for path in score.inputs.values()]
        self.decodes = any(path.endswith(".option_is_greedy") for path in inputs)  # token by token, which is slow

    def _module(self, path: str) -> nn.Module:
        return self.network.get_submodule(path)

    @torch.no_grad()
    def run(self, tokens: Sequence[int]) -> Pass:
        """Run one sequence through the network."""
        spies, width = [SoftmaxSpy() for _ in self.blocks], len(tokens)
        with ExitStack() as stack:
            for path, spy in zip(self.parts.softmax, spies, strict=True):
                if path is not None:
                    stack.enter_context(_spying(self._module(path), spy))
            logits, blocks, attention = self._layers(self._ids(tokens))
        for layer, (path, spy) in enumerate(zip(self.parts.softmax, spies, strict=True)):
            if path is None:
                spy.queries, spy.scores = [torch.full((1, width, 1), torch.nan)], [torch.full((1, width), torch.nan)]
            elif len(spy.scores) != 1:
                raise RuntimeError(f"{len(spy.scores)} softmaxes in the attention of block {layer}")
        scores = [spy.scores[0] for spy in spies]
        shares = [self._shares(path, layer) for path, layer in zip(self.parts.softmax, scores, strict=True)]
        queries = [spy.queries[0] for spy in spies]
        return Pass(logits[0], queries, scores, shares, [x[0] for x in attention], [x[0] for x in blocks])

    def _layers(self, ids: Tensor, cut: bool = False) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Logits, what each block puts out, and what is added in it; gradients are `cut` off between blocks."""
        with ExitStack() as stack:
            blocks = stack.enter_context(_outputs(self.blocks))
            added = [
                [(stack.enter_context(_outputs([self._module(path)])), factor) for path, factor in terms]
                for terms in self.parts.added
            ]
            for block in self.blocks if cut else ():
                stack.callback(block.register_forward_pre_hook(_detach_input, with_kwargs=True).remove)
            logits = self.network(input_ids=ids, use_cache=False).logits
        nothing = torch.zeros_like(blocks[0])  # of a block that mixes no tokens
        return logits, blocks, [sum((factor * outputs[0] for outputs, factor in terms), nothing) for terms in added]

    def _shares(self, path: str | None, scores: Tensor) -> Tensor:
        """Attention from scores: their softmax, of which a sink takes a part where the module has one."""
        if path is None:
            return scores
        sinks = getattr(self._module(path), "sinks", None)
        sink = torch.empty(len(scores), 0) if sinks is None else as_float(sinks.detach())[:, None]
        return torch.cat([scores.nan_to_num(nan=-torch.inf), sink.to(scores)], dim=1).softmax(1)[:, : scores.shape[1]]

    def record(self, context: Sequence[int]) -> Recording:
        """The recording of all queries after `context`."""
        rows = [self._record_query(query, context) for query in self.prompts.queries]
        return Recording(**{name: _stacked([row[name] for row in rows]) for name in rows[0]})

    def _record_query(self, query: Item, context: Sequence[int]) -> dict[str, Tensor]:
        tokens, options = [*context, *query.token_ids], self.prompts.options(query)
        seen, start = self.run(tokens), len(context)
        log_probs = as_float(seen.logits[-1]).log_softmax(-1)
        if self.config.protocol.record_at == "first_label_token":
            seen = self.run([*tokens, options[0][0]])
        # layers with fewer heads than others, or without any, have NaN there
        scores, shares = (pad_sequence(x, True, padding_value=torch.nan) for x in (seen.scores, seen.shares))
        record = {
            "attention_output": torch.stack([output[-1] for output in seen.attention]),
            "block_output": torch.stack([output[-1] for output in seen.blocks]),
            "attention_scores": scores[..., start:],
            "context_scores": torch.stack([layer[:, :start].sum(0) for layer in seen.scores]),
            "context_mass": _sum_where_defined(shares, len(self.prompts.bos), start),
            "query_vectors": torch.stack(_of_one_length([vectors[:, -1].flatten() for vectors in seen.queries])),
            "label_scores": torch.stack([self._label_score(tokens, option, log_probs) for option in options]),
            "next_token_log_probs": log_probs,
        }
        if self.decodes:
            record["option_is_greedy"] = torch.stack([self._is_greedy(tokens, option) for option in options])
        return record

    def _label_score(self, tokens: Sequence[int], option: Sequence[int], next_token: Tensor) -> Tensor:
        if len(option) == 1:
            return next_token[option[0]]
        log_probs = as_float(self.run([*tokens, *option]).logits).log_softmax(-1)
        each = torch.stack([log_probs[len(tokens) - 1 + i, token] for i, token in enumerate(option)])
        return each.mean() if self.config.task.length_normalised else each.sum()

    def _is_greedy(self, tokens: Sequence[int], option: Sequence[int]) -> Tensor:
        written = list(tokens)
        while len(written) < len(tokens) + len(option):
            written.append(int(self.run(written).logits[-1].argmax()))
        return torch.tensor(float(written == [*tokens, *option]))

    @contextmanager
    def finetuned(self) -> Iterator[Trace]:
        """Within the block, the network is finetuned by SGD on the demonstrations; afterwards it is as before."""
        trained, finetune = self.trained(), self.config.finetune
        originals = [parameter.detach().clone() for _, parameter, _ in trained]
        precise = [as_float(original).clone() for original in originals]  # where small steps of half precision add up
        items, layers = self.prompts.training_items(), [layer for layer, *_ in trained]
        batches = [items] if finetune.batch == "full" else [[item] for item in items]
        losses, norms, diverged = [], [torch.empty(0, len(self.blocks))], None
        try:
            for batch in batches * finetune.epochs if finetune.mechanism == "gradient_descent" else []:
                loss, gradients = self.gradients(batch)
                losses.append(loss)
                norms.append(self._norms(layers, gradients)[None])
                if not all(tensor.isfinite().all() for tensor in (torch.tensor(loss), *gradients)):
                    diverged = len(losses) - 1
                    break
                for (_, parameter, _), number, gradient in zip(trained, precise, gradients, strict=True):
                    number -= finetune.lr * gradient.to(number)
                    parameter.data.copy_(number)
            changes = [p.double() - old.double() for (_, p, _), old in zip(trained, originals, strict=True)]
            yield Trace(torch.tensor(losses), torch.cat(norms), self._norms(layers, changes), (), diverged)
        finally:
            for (_, parameter, _), original in zip(trained, originals, strict=True):
                parameter.data.copy_(original)

    def trained(self) -> list[tuple[int, nn.Parameter, Tensor | None]]:
        """The layer of each trained parameter, the parameter, and the mask of keys and values in a fused projection."""
        kind, chosen = self.config.finetune.trainable, parse_layers(self.config.finetune.layers)
        whole = {
            "attention": self.parts.attention,
            "mlp": self.parts.mlp,
            "all": [(path,) for path in self.parts.blocks],
        }
        trained = []
        for layer in range(len(self.blocks)) if chosen is None else chosen:
            if kind == "attn_kv":
                paths = self.parts.key_value[layer]
            else:
                paths = [(path, None) for path in whole[kind][layer]]
            for path, rows in paths:
                module = self._module(path)
                trained += [(layer, weight, _mask(module, weight, rows)) for weight in module.parameters()]
        return trained

    def gradients(self, batch: Sequence[Item]) -> tuple[float, list[Tensor]]:
        """The mean loss of some demonstrations, and its gradient by each trained parameter."""
        trained = self.trained()
        leaves = [parameter.requires_grad_(True) for _, parameter, _ in trained]
        try:
            with torch.enable_grad():
                loss = torch.stack([self._loss(item) for item in batch]).mean()
                gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        finally:
            for leaf in leaves:
                leaf.requires_grad_(False)
        pairs = zip(trained, gradients, strict=True)
        return loss.item(), [gradient if mask is None else gradient * mask for (*_, mask), gradient in pairs]

    def _loss(self, item: Item) -> Tensor:
        """Mean cross-entropy of a demonstration's predicted tokens; of lcgd, summed over the exits of all layers."""
        finetune, bos = self.config.finetune, self.prompts.bos
        ids, causal = self._ids([*bos, *item.token_ids]), finetune.objective == "lcgd"
        start = max(1, len(bos), ids.shape[1] - item.label_length if finetune.loss_on == "label" else 0)
        if finetune.objective == "gd":
            logits = [self.network(input_ids=ids, use_cache=False).logits]
        else:
            _, blocks, added = self._layers(ids, cut=causal)
            exits = added if causal and self.config.protocol.exit == "attention_output" else blocks
            last = len(self.blocks) - 1 if finetune.exit_layer is None else finetune.exit_layer
            layers = sorted({layer for layer, *_ in self.trained()}) if causal else [last]
            logits = [self.unembed(exits[layer]) for layer in layers]
        targets = ids[0, start:]
        return torch.stack([functional.cross_entropy(as_float(x[0, start - 1 : -1]), targets) for x in logits]).sum()

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits of what a block puts out: the network's own, where every block passes on `hidden` instead."""
        if hidden.ndim == 2:
            return self.unembed(hidden[None])[0]
        with ExitStack() as stack:
            for block in self.blocks:
                stack.callback(block.register_forward_hook(partial(_instead, hidden)).remove)
            ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=self.network.device)
            return as_float(self.network(input_ids=ids, use_cache=False).logits)

    def _ids(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor([list(tokens)], device=self.network.device)

    def _norms(self, layers: Sequence[int], tensors: Sequence[Tensor]) -> Tensor:
        squares = torch.full((len(self.blocks),), torch.nan, dtype=torch.float64)
        for layer, tensor in zip(layers, tensors, strict=True):
            squares[layer] = squares[layer].nan_to_num() + tensor.double().square().sum().cpu()
        return squares.sqrt().float()


def _mask(module: nn.Module, parameter: Tensor, rows: Tensor | None) -> Tensor | None:
    """1 where the numbers of a projection's parameter make what is trained, 0 elsewhere."""
    if rows is None:
        return None
    shape = [1] * parameter.ndim
    shape[-1 if isinstance(module, Conv1D) else 0] = -1
    return rows.to(parameter).view(shape).expand(parameter.shape)


@contextmanager
def _spying(module: nn.Module, spy: SoftmaxSpy) -> Iterator[None]:
    """Within the block, the spy sees what the module computes."""
    with ExitStack() as stack:
        stack.callback(module.register_forward_pre_hook(lambda *_: (spy.__enter__(), None)[1]).remove)
        stack.callback(module.register_forward_hook(lambda *_: spy.__exit__(None, None, None)).remove)
        yield


@contextmanager
def _outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Within the block, what the modules put out is appended to a list."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(keep).remove)
        yield outputs


def _instead(hidden: Tensor, _module: nn.Module, _args: Any, output: Any) -> Any:
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _detach_input(_module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    if args:
        return (args[0].detach(), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach()}


def _sum_where_defined(shares: Tensor, first: int, end: int) -> Tensor:
    """The sum of shares from `first` to `end`; NaN where a layer or head has no attention, also of no shares."""
    return shares[..., first:end].sum(-1).masked_fill(shares.isnan().all(-1), torch.nan)


def _of_one_length(vectors: Sequence[Tensor]) -> list[Tensor]:
    """Queries of all layers in one length, with zeros where a layer has fewer."""
    width = max(len(vector) for vector in vectors)
    return [
        functional.pad(vector, (0, width - len(vector)), value=torch.nan if vector.isnan().any() else 0.0)
        for vector in vectors
    ]


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """Stacked, padded at the end of the last axis with NaN."""
    width = max(row.shape[-1] for row in rows)
    return torch.stack(
        [functional.pad(as_float(row), (0, width - row.shape[-1]), value=torch.nan) for row in rows]
    ).cpu()
