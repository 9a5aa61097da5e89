"""The slow and plain way: one query at a time, the whole context each time, transformers' own modules and attention.

Nothing here is shared with the recorder or the finetuning loop but the table that says where a family keeps its
parts. Attention scores are what transformers hands to its softmax; gradients are autograd's, of losses on the logits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from iclgd.common.records import Item, PromptSet, Recording, Trace
from iclgd.config import Config, FinetuneConfig
from iclgd.config.bounds import parse_layers
from iclgd.config.enumerations import Batch, Direction, Exit, LossOn, Placement, Procedure, RecordAt, StepPer
from iclgd.config.variants import reference_config
from iclgd.models.anatomy import FAMILIES
from iclgd.models.language_model import LanguageModel
from iclgd.runs.inputs import LOOKS

_OBJECTIVES = ("gd", "lcgd", "short_circuit")
_KNOWN = {  # by setting of finetune, the values that are known here; of all others only the default is
    "procedure": (Procedure.train, Procedure.none, Procedure.replay),
    "objective": _OBJECTIVES,
    "optimizer": ("sgd",),
    "trainable": ("attn_kv", "attention", "mlp", "all"),
    "direction": (Direction.own,),
    **dict.fromkeys(("lr", "layers", "epochs", "loss_on", "batch", "exit_layer", "data", "other_task")),
}


def unknown_to_it(config: Config) -> list[str]:
    """The settings of a run that the naive way does not know."""
    found, shown = [], ("name", *LOOKS["finetune"])
    for entry in fields(FinetuneConfig):
        value = getattr(config.finetune, entry.name)
        default = entry.default if entry.default is not MISSING else None
        known = _KNOWN.get(entry.name, (default,))
        if entry.name not in shown and known is not None and value not in known and value != default:
            found.append(f"finetune.{entry.name}={value}")
    if config.protocol.step is not StepPer.demonstration:
        found.append(f"protocol.step={config.protocol.step}")
    if config.runtime.placement is not Placement.single:
        found.append(f"runtime.placement={config.runtime.placement}")
    if "_from_" in config.runtime.dtype:
        found.append(f"runtime.dtype={config.runtime.dtype}")
    if reference_config(config) is not config:
        found.append(f"reference={config.reference.name}")
    return found


class _Softmax(TorchFunctionMode):
    """Keeps what every softmax is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") == "softmax":
            self.given.append(args[0].detach())
        return function(*args, **(kwargs or {}))


class Naive:
    """The same weights in a network of transformers' own modules."""

    def __init__(self, model: LanguageModel, config: Config, prompts: PromptSet) -> None:
        source = model.network
        settings = copy.deepcopy(source.config)
        settings._attn_implementation = "eager"
        maker = cast(Any, type(source))
        self.network: Any = maker._from_config(settings, dtype=source.dtype, attn_implementation="eager")
        self.network.load_state_dict(source.state_dict())
        self.network.to(model.device).eval().requires_grad_(False)
        self.family, self.config, self.prompts = FAMILIES[settings.model_type], config, prompts
        self.blocks: list[nn.Module] = list(self.network.get_submodule(self.family.blocks))
        self.cannot = {"query_vectors", "update_ranks"}  # fields that are not had here
        if settings.model_type == "bloom" or getattr(settings, "alibi", False):
            self.cannot |= {"attention_scores", "context_scores"}  # transformers counts biases from the first token

    def record(self, context: Sequence[int]) -> Recording:
        """What the network as it is now does at the last token of each query after a context."""
        rows = [self._query(query, context) for query in self.prompts.queries]
        columns = {name: _stacked([row[name] for row in rows]) for name in rows[0]}
        known = {entry.name for entry in fields(Recording)}
        return Recording(**{name: column for name, column in columns.items() if name in known})

    @torch.no_grad()
    def _query(self, query: Item, context: Sequence[int]) -> dict[str, Tensor]:
        options = self.prompts.options(query)
        tokens = [*context, *query.token_ids]
        first = self.config.protocol.record_at is RecordAt.first_label_token
        added, blocks, spy = {}, {}, _Softmax()
        with ExitStack() as stack:
            for layer, block in enumerate(self.blocks):
                stack.enter_context(_kept(self._added(layer), added, layer))
                stack.enter_context(_kept(block, blocks, layer))
            with spy:
                self.network(input_ids=self._ids([*tokens, options[0][0]] if first else tokens), use_cache=False)
        if len(spy.given) != len(self.blocks):
            raise RuntimeError(f"{len(spy.given)} softmaxes were seen in {len(self.blocks)} attention blocks")
        scores = torch.stack([given.reshape(-1, *given.shape[-2:])[:, -1].float() for given in spy.given]).cpu()
        lowest = torch.finfo(self.network.dtype).min  # what masks hold
        scores[scores < max(lowest / 2, -1e38)] = torch.nan
        return {
            "attention_output": torch.stack([added[i][0, -1].float() for i in range(len(self.blocks))]).cpu(),
            "block_output": torch.stack([blocks[i][0, -1].float() for i in range(len(self.blocks))]).cpu(),
            "attention_scores": scores[..., len(context) :],
            "context_scores": scores[..., : len(context)].sum(1),
            "label_scores": torch.tensor([self._score(tokens, option) for option in options]),
            "next_token_log_probs": self._log_probs(tokens)[-1].cpu(),
        }

    def _score(self, tokens: Sequence[int], option: Sequence[int]) -> float:
        log_probs = self._log_probs([*tokens, *option])
        each = [log_probs[len(tokens) - 1 + i, token].item() for i, token in enumerate(option)]
        return sum(each) / (len(each) if self.config.task.length_normalised else 1)

    def _log_probs(self, tokens: Sequence[int]) -> Tensor:
        return self.network(input_ids=self._ids(tokens), use_cache=False).logits[0].float().log_softmax(-1)

    def _ids(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor([list(tokens)], device=self.network.device)

    def _added(self, layer: int) -> nn.Module:
        return self.blocks[layer].get_submodule(self.family.added or self.family.projection)

    @contextmanager
    def finetuned(self) -> Iterator[Trace]:
        """Within the block the network is finetuned as the run's `finetune` says; afterwards it is what it was."""
        finetune, parameters = self.config.finetune, self._parameters()
        originals = [parameter.detach().clone() for _, parameter, _ in parameters]
        precise = [_full(original).clone() for original in originals]  # a half one's small steps add up here
        losses, norms, diverged, items = [], [], None, self.prompts.training_items()
        batches = [items] if finetune.batch is Batch.full else [[item] for item in items]
        try:
            for batch in batches * finetune.epochs if finetune.procedure is Procedure.train else []:
                loss, gradients = self._gradients(batch, parameters)
                losses.append(loss)
                norms.append(self._by_layer(parameters, gradients))
                if not torch.isfinite(torch.tensor(loss)) or any(not g.isfinite().all() for g in gradients):
                    diverged = len(losses) - 1
                    break
                for (_, parameter, _), number, gradient in zip(parameters, precise, gradients, strict=True):
                    number -= finetune.lr * gradient.to(number)
                    parameter.data.copy_(number)
            changes = [p.detach().double() - old.double() for (_, p, _), old in zip(parameters, originals, strict=True)]
            layers = len(self.blocks)
            yield Trace(
                losses=torch.tensor(losses),
                gradient_norms=torch.stack(norms) if norms else torch.empty(0, layers),
                update_norms=self._by_layer(parameters, changes) if losses else torch.zeros(layers),
                update_ranks=torch.full((layers,), torch.nan),
                diverged_at=diverged,
            )
        finally:
            for (_, parameter, _), original in zip(parameters, originals, strict=True):
                parameter.data.copy_(original)

    def _parameters(self) -> list[tuple[int, nn.Parameter, Tensor | None]]:
        """What is trained: layer, parameter, and the mask of keys and values in a projection that has queries too."""
        kind, family = self.config.finetune.trainable, self.family
        paths = {
            "attn_kv": [f"{family.attention}.{name}" for name in family.key_value],
            "attention": [family.attention],
            "mlp": list(family.mlp),
            "all": [""],
        }[kind]
        chosen = parse_layers(self.config.finetune.layers)
        found = []
        for layer in range(len(self.blocks)) if chosen is None else chosen:
            for path in paths:
                for parameter in self.blocks[layer].get_submodule(path).parameters():
                    fused = kind == "attn_kv" and family.layout != "separate"
                    found.append((layer, parameter, self._key_value_mask(parameter) if fused else None))
        return found

    def _key_value_mask(self, parameter: Tensor) -> Tensor:
        settings = self.network.config
        heads = settings.num_attention_heads
        size = getattr(settings, "head_dim", None) or settings.hidden_size // heads
        if self.family.layout == "columns":  # queries, keys, values side by side, [in, out]
            place = torch.arange(parameter.shape[-1], device=parameter.device)
            return (place >= heads * size).to(parameter.dtype).expand(parameter.shape)
        row = torch.arange(len(parameter), device=parameter.device) // size
        falcon = self.family.layout == "falcon"
        if falcon and settings.new_decoder_architecture:
            group = heads // settings.num_kv_heads + 2
            mask = row % group >= group - 2
        elif self.family.layout == "rows" or (falcon and settings.multi_query):
            mask = row >= heads
        else:  # query, key and value of each head in turn
            mask = row % 3 > 0
        return mask.to(parameter.dtype).reshape(-1, *[1] * (parameter.ndim - 1)).expand(parameter.shape)

    def _gradients(self, batch: Sequence[Item], parameters: list[Any]) -> tuple[float, list[Tensor]]:
        leaves = [parameter for _, parameter, _ in parameters]
        for leaf in leaves:
            leaf.requires_grad_(True)
        try:
            with torch.enable_grad():
                loss = torch.stack([self._loss(item) for item in batch]).mean()
                found = torch.autograd.grad(loss, leaves, allow_unused=True)
        finally:
            for leaf in leaves:
                leaf.requires_grad_(False)
        gradients = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]
        masked = [g if mask is None else g * mask for g, (*_, mask) in zip(gradients, parameters, strict=True)]
        return loss.item(), masked

    def _loss(self, item: Item) -> Tensor:
        """Mean cross-entropy of a demonstration's predicted tokens, where the objective reads it."""
        finetune, last = self.config.finetune, len(self.blocks) - 1
        tokens = [*self.prompts.bos, *item.token_ids]
        start = max(1, len(self.prompts.bos))
        if finetune.loss_on is LossOn.label:
            start = max(start, len(tokens) - item.label_length)
        targets = self._ids(tokens)[0, start:]
        if finetune.objective == "gd":
            logits = self.network(input_ids=self._ids(tokens), use_cache=False).logits
            return functional.cross_entropy(_full(logits[0, start - 1 : -1]), targets)
        causal = finetune.objective == "lcgd"
        exits: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for layer, block in enumerate(self.blocks):
                if causal:
                    stack.callback(block.register_forward_pre_hook(_cut, with_kwargs=True).remove)
                at_attention = causal and self.config.protocol.exit is Exit.attention_output
                stack.enter_context(_kept(self._added(layer) if at_attention else block, exits, layer, detach=False))
            self.network.base_model(input_ids=self._ids(tokens), use_cache=False)
        chosen = parse_layers(finetune.layers) or range(last + 1)
        layers = chosen if causal else [last if finetune.exit_layer is None else finetune.exit_layer]
        each = [functional.cross_entropy(self._unembed(exits[i])[0, start - 1 : -1], targets) for i in layers]
        return torch.stack(each).sum()

    def _unembed(self, hidden: Tensor) -> Tensor:
        for path in self.family.final:
            owner, _, name = path.rstrip("?").rpartition(".")
            module = getattr(self.network.get_submodule(owner), name)
            hidden = hidden if module is None else module(hidden)
        logits = _full(self.network.get_output_embeddings()(hidden))
        cap = getattr(self.network.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _by_layer(self, parameters: list[Any], tensors: Sequence[Tensor]) -> Tensor:
        squares = torch.full((len(self.blocks),), torch.nan, dtype=torch.float64)
        for (layer, *_), tensor in zip(parameters, tensors, strict=True):
            squares[layer] = squares[layer].nan_to_num() + tensor.double().square().sum().cpu()
        return squares.sqrt().float()


def _full(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _cut(_module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    if args:
        return (args[0].detach(), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach()}


@contextmanager
def _kept(module: nn.Module, kept: dict[int, Tensor], layer: int, detach: bool = True) -> Iterator[None]:
    """Within the block, what a module puts out is kept under its layer."""

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        kept[layer] = hidden.detach() if detach else hidden

    handle = module.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """Stacked, padded at the end of the last axis with NaN."""
    width = max(row.shape[-1] for row in rows)
    return torch.stack([functional.pad(row.float(), (0, width - row.shape[-1]), value=torch.nan) for row in rows])
