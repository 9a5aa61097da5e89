"""The naive implementation: one query at a time, the full context, transformers' eager attention, plain autograd.

It shares no code with the recorder and the mechanisms, which tests, `iclgd-verify` and the benchmark compare with it;
only where the parts of a model lie, which is found in a copy of it and proven at every load.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from iclgd.common.records import Item, PromptSet, Recording, Trace
from iclgd.config import Config
from iclgd.config.bounds import parse_layers
from iclgd.models.discovery import discover


@dataclass
class Pass:
    """What the network computes for one sequence; lists have an item for each layer."""

    logits: Tensor  # token vocabulary
    queries: list[Tensor]  # head token head_dim, scaled
    scores: list[Tensor]  # head key: of the last token, NaN where it cannot see
    attention: list[Tensor]  # token d_model: what attention adds to the residual stream
    blocks: list[Tensor]  # token d_model: what the block puts out


class Naive:
    """A copy of a model, made of transformers' own modules, with the prompts and settings of a run."""

    def __init__(self, network: PreTrainedModel, config: Config, prompts: PromptSet) -> None:
        settings = copy.deepcopy(network.config)
        self.network: Any = AutoModelForCausalLM.from_config(settings, dtype=network.dtype, attn_implementation="eager")
        self.network.load_state_dict(network.state_dict())
        self.network.to(network.device).eval().requires_grad_(False)
        self.anatomy, _ = discover(self.network, config.model.anatomy)
        self.config, self.prompts = config, prompts
        self.blocks: list[nn.Module] = list(self.anatomy.blocks)
        self.added = [layer.added for layer in self.anatomy.layers]
        inputs = [path for score in config.metric.scores.values() for path in score.inputs.values()]
        self.decodes = any(path.endswith(".option_is_greedy") for path in inputs)  # token by token, which is slow
        heads = settings.num_attention_heads
        self.head_dim = getattr(settings, "head_dim", None) or settings.hidden_size // heads
        self.scale = getattr(settings, "query_pre_attn_scalar", self.head_dim) ** -0.5
        if settings.model_type in ("gpt_neo", "opt", "xglm"):  # which scale queries before the product, or not at all
            self.scale = 1.0

    @torch.no_grad()
    def run(self, tokens: Sequence[int]) -> Pass:
        """Run one sequence through the network."""
        with _outputs(self.added) as attention, _outputs(self.blocks) as blocks, _Attention() as spy:
            logits = self.network(input_ids=self._ids(tokens), use_cache=False).logits[0]
        if len(spy.scores) != len(self.blocks):
            raise RuntimeError(f"{len(spy.scores)} softmaxes in {len(self.blocks)} attention blocks")
        queries = [query * self.scale for query in spy.queries]
        return Pass(logits, queries, spy.scores, [x[0] for x in attention], [x[0] for x in blocks])

    def record(self, context: Sequence[int]) -> Recording:
        """The recording of all queries after `context`."""
        rows = [self._record_query(query, context) for query in self.prompts.queries]
        return Recording(**{name: _stacked([row[name] for row in rows]) for name in rows[0]})

    def _record_query(self, query: Item, context: Sequence[int]) -> dict[str, Tensor]:
        tokens, options = [*context, *query.token_ids], self.prompts.options(query)
        seen, start = self.run(tokens), len(context)
        log_probs = _float(seen.logits[-1]).log_softmax(-1)
        if self.config.protocol.record_at == "first_label_token":
            seen = self.run([*tokens, options[0][0]])
        scores = torch.stack(seen.scores)
        record = {
            "attention_output": torch.stack([output[-1] for output in seen.attention]),
            "block_output": torch.stack([output[-1] for output in seen.blocks]),
            "attention_scores": scores[..., start:],
            "context_scores": scores[..., :start].sum(1),
            "context_mass": scores.nan_to_num(-torch.inf).softmax(-1)[..., len(self.prompts.bos) : start].sum(-1),
            "query_vectors": torch.stack([vectors[:, -1].flatten() for vectors in seen.queries]),
            "label_scores": torch.stack([self._label_score(tokens, option, log_probs) for option in options]),
            "next_token_log_probs": log_probs,
        }
        if self.decodes:
            record["option_is_greedy"] = torch.stack([self._is_greedy(tokens, option) for option in options])
        return record

    def _label_score(self, tokens: Sequence[int], option: Sequence[int], next_token: Tensor) -> Tensor:
        if len(option) == 1:
            return next_token[option[0]]
        log_probs = _float(self.run([*tokens, *option]).logits).log_softmax(-1)
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
        precise = [_float(original).clone() for original in originals]  # where small steps of half precision add up
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
            ranks = torch.full((len(self.blocks),), torch.nan)
            yield Trace(torch.tensor(losses), torch.cat(norms), self._norms(layers, changes), ranks, (), diverged)
        finally:
            for (_, parameter, _), original in zip(trained, originals, strict=True):
                parameter.data.copy_(original)

    def trained(self) -> list[tuple[int, nn.Parameter, Tensor | None]]:
        """The layer of each trained parameter, the parameter, and the mask of keys and values in a fused projection."""
        kind, chosen = self.config.finetune.trainable, parse_layers(self.config.finetune.layers)
        trained = []
        for layer in range(len(self.blocks)) if chosen is None else chosen:
            if kind == "attn_kv":
                modules = {module: None for part in "kv" for module in self._makers(layer, part)}
            elif kind == "mlp":
                modules = {self.anatomy.part(layer, path): None for path in self.anatomy.feed_forward.modules}
            else:
                modules = {self.anatomy.attention(layer) if kind == "attention" else self.blocks[layer]: None}
            for module in modules:
                for parameter in module.parameters():
                    mask = self._key_value_mask(layer, module, parameter) if kind == "attn_kv" else None
                    trained.append((layer, parameter, mask))
        return trained

    def _makers(self, layer: int, part: str) -> list[nn.Module]:
        return [projection.module for projection in self.anatomy.layers[layer].projections[part]]

    def _key_value_mask(self, layer: int, module: nn.Module, parameter: Tensor) -> Tensor:
        """1 where a projection makes keys and values, 0 where it makes something else."""
        mask = torch.zeros_like(parameter)
        axis = 1 if isinstance(module, Conv1D) and parameter.ndim > 1 else 0
        for part in "kv":
            for projection in self.anatomy.layers[layer].projections[part]:
                if projection.module is module:
                    mask.index_fill_(axis, projection.outputs().to(mask.device), 1)
        return mask

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
            at_attention = causal and self.config.protocol.exit == "attention_output"
            with _outputs(self.added if at_attention else self.blocks) as exits, ExitStack() as stack:
                for block in self.blocks if causal else ():
                    stack.callback(block.register_forward_pre_hook(_detach_input, with_kwargs=True).remove)
                self.network.base_model(input_ids=ids, use_cache=False)
            last = len(self.blocks) - 1 if finetune.exit_layer is None else finetune.exit_layer
            layers = (parse_layers(finetune.layers) or range(len(self.blocks))) if causal else [last]
            logits = [self.unembed(exits[layer]) for layer in layers]
        targets = ids[0, start:]
        return torch.stack([functional.cross_entropy(_float(x[0, start - 1 : -1]), targets) for x in logits]).sum()

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits of what a block puts out."""
        for module in self.anatomy.final:
            hidden = module(hidden)
        logits = _float(self.network.get_output_embeddings()(hidden)) * self.anatomy.exit.scale
        cap = self.anatomy.exit.softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _ids(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor([list(tokens)], device=self.network.device)

    def _norms(self, layers: Sequence[int], tensors: Sequence[Tensor]) -> Tensor:
        squares = torch.full((len(self.blocks),), torch.nan, dtype=torch.float64)
        for layer, tensor in zip(layers, tensors, strict=True):
            squares[layer] = squares[layer].nan_to_num() + tensor.double().square().sum().cpu()
        return squares.sqrt().float()


class _Attention(TorchFunctionMode):
    """Within the block, keeps what transformers hands to each softmax, and the queries in the product before it."""

    def __init__(self) -> None:
        super().__init__()
        self.queries: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.factor, self.alibi = torch.empty(0), torch.zeros(())

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        if name in ("matmul", "bmm"):
            self.factor = args[0]
        elif name == "baddbmm":  # Bloom's, which adds ALiBi's biases as counted from the first token
            self.factor, self.alibi = kwargs["batch1"], args[0][..., -1]
        elif name == "softmax":
            scores = args[0].reshape(-1, *args[0].shape[-2:])[:, -1]
            masked = scores < max(torch.finfo(scores.dtype).min / 2, -1e38)
            self.scores.append(_float(scores - self.alibi).masked_fill(masked, torch.nan))
            self.queries.append(self.factor.reshape(-1, *self.factor.shape[-2:]))
        return function(*args, **kwargs)


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


def _detach_input(_module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    if args:
        return (args[0].detach(), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach()}


def _float(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """Stacked, padded at the end of the last axis with NaN."""
    width = max(row.shape[-1] for row in rows)
    return torch.stack([functional.pad(_float(row), (0, width - row.shape[-1]), value=torch.nan) for row in rows]).cpu()
