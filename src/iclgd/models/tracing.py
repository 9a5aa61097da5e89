"""Runs a few tokens through a model and sees what every module read and put out, and what made q, k and v."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from iclgd.models.anatomy import UnsupportedModelError
from iclgd.models.attention import recorded_attention
from iclgd.models.attention_pass import Reach, mask_reach
from iclgd.models.interception import EagerAttention
from iclgd.models.placement import device_of
from iclgd.models.projections import Projection, is_projection
from iclgd.models.trace import Attention, Call, Trace

_NAME = "iclgd_traced"


def some_tokens(network: PreTrainedModel, count: int = 9) -> Int[Tensor, " token"]:
    """The tokens of the checks."""
    return (torch.arange(1, count + 1) * 7919) % network.config.get_text_config().vocab_size


def trace(network: PreTrainedModel, tokens: Int[Tensor, " token"]) -> Trace:
    """Run a model once on a few tokens; its parameters are frozen, so that gradients begin where the trace lets them.

    Attention that bypasses transformers' AttentionInterface is seen as the two products around a softmax.

    Raises:
        RuntimeError: the model does not run on these tokens, or another error of its code.
    """
    network.requires_grad_(False)
    try:
        through_interface = _run(network, tokens, _NAME)
    except UnsupportedModelError:
        raise
    except (RuntimeError, TypeError, AttributeError, ValueError, KeyError):  # it misses the mask that eager has
        through_interface = None
    if through_interface is not None and through_interface.attentions:
        return through_interface
    return _run(network, tokens, "eager")


def _run(network: PreTrainedModel, tokens: Tensor, name: str) -> Trace:
    tracer, interface = _Tracer(), name != "eager"
    token_ids = tokens[None].to(device_of(network.get_input_embeddings()))
    products = nullcontext() if interface else _Products(tracer)
    with torch.enable_grad(), implementation(network, name), tracer.watching(network):
        reset = _tracer.set(tracer)
        try:
            with products:
                logits = network(input_ids=token_ids, use_cache=False).logits[0].detach().cpu()
        finally:
            _tracer.reset(reset)
    calls = sorted(tracer.calls, key=lambda call: call.end)
    return Trace(tokens, interface, calls, tracer.attentions, logits)


@contextmanager
def implementation(network: PreTrainedModel, name: str) -> Iterator[None]:
    """Within the block transformers computes attention by this function."""
    before = network.config._attn_implementation
    network.config._attn_implementation = name
    try:
        yield
    finally:
        network.config._attn_implementation = before


class _Tracer:
    """Collects a trace.

    In each block, gradients begin at the outputs of projections, so that those of attention's queries, keys and values
    say what made them. Behind attention they begin at its output alone, so that they say what depends on it.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.attentions: list[Attention] = []
        self.time = 0
        self.open: list[Call] = []
        self.block: Call | None = None  # the call of a block that is going on
        self.attended = False  # whether it has computed attention
        self.outputs: list[tuple[nn.Module, Tensor]] = []  # its projections and what they put out

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        """Within the block all calls of modules are collected."""
        items = {id(item) for each in network.modules() if isinstance(each, nn.ModuleList) for item in each}
        with ExitStack() as stack:
            for name, module in network.named_modules():
                enter = partial(self.enter, name, id(module) in items)
                stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(self.leave).remove)
            yield

    def enter(self, name: str, in_list: bool, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A module is called."""
        self.time += 1
        call = Call(name, module, self.time, _rows((*args, *kwargs.values())))
        self.open.append(call)
        if self.block is not None or not in_list:
            return None
        self.block, self.attended, self.outputs = call, False, []
        return tuple(map(_cut, args)), {key: _cut(value) for key, value in kwargs.items()}

    def leave(self, module: nn.Module, _args: Any, output: Any) -> Any:
        """A module has put out something."""
        self.time += 1
        call = self.open.pop()
        tensors: Any = output if isinstance(output, tuple | list) else (output,)
        call.end, call.outputs = self.time, _rows(tensors)
        call.attends = self.attended and any(isinstance(each, Tensor) and each.requires_grad for each in tensors)
        self.calls.append(call)
        if call is self.block:
            self.block, self.attended, self.outputs = None, False, []
        elif self.block is not None and not self.attended and is_projection(module):
            start = tensors[0] if tensors[0].requires_grad else tensors[0].detach().requires_grad_(True)
            self.outputs.append((module, start.clone()))  # a copy, for the model may change in place what it gets
            return self.outputs[-1][1]
        return None

    def begin_attention(self, query: Tensor, key: Tensor, scale: float, module: nn.Module) -> Attention:
        """Queries and keys, each [head, token, head_dim], have met."""
        self.time += 1
        name = next(call.name for call in reversed(self.open) if call.module is module)
        makers = {"q": self._makers(query), "k": self._makers(key)}
        attention = Attention(module, name, self.time, _recorded(query), _recorded(key), scale, makers)
        self.attentions.append(attention)
        return attention

    def end_attention(self, attention: Attention, value: Tensor, output: Tensor) -> Tensor:
        """Values [head, token, size] have been mixed; returns the output as what gradients begin at."""
        attention.projections["v"] = self._makers(value)
        attention.value, self.attended, self.outputs = _recorded(value), True, []
        return output.detach().requires_grad_(True)

    def _makers(self, tensor: Tensor) -> tuple[Projection, ...]:
        """The projections that a tensor depends on, with the rows that have a gradient."""
        if not tensor.requires_grad or not self.outputs:
            return ()
        noise = torch.linspace(0.5, 1.5, tensor.numel(), device=tensor.device).view(tensor.shape)
        outputs = [output for _, output in self.outputs]
        total = (tensor * noise.to(tensor.dtype)).sum()
        gradients = torch.autograd.grad(total, outputs, retain_graph=True, allow_unused=True)
        makers = []
        for (module, _), gradient in zip(self.outputs, gradients, strict=True):
            if gradient is None:
                continue
            rows = (gradient.flatten(0, -2) != 0).any(0).nonzero().squeeze(1).cpu()
            if len(rows):
                makers.append(Projection(module, None if len(rows) == gradient.shape[-1] else rows))
        return tuple(makers)


_tracer: ContextVar[_Tracer | None] = ContextVar("tracer", default=None)


def _rows(values: Iterable[Any]) -> list[Tensor]:
    """Copies of the floating-point tensors among these values, as [token, size]."""
    tensors = [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]
    return [_recorded(tensor).flatten(0, -2) for tensor in tensors if tensor.ndim > 1]


def _recorded(tensor: Tensor) -> Tensor:
    """A copy on the CPU, where what blocks on several devices put out can be compared."""
    return tensor.detach().to("cpu", copy=True)


def _cut(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _traced_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """The AttentionInterface function of a traced pass."""
    tracer = _tracer.get()
    if tracer is None or tracer.block is None or tracer.attended:
        raise RuntimeError("attention is computed more than once in a block, or outside of the list of blocks")
    scaling = kwargs.get("scaling")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    attention = tracer.begin_attention(query[0], key[0], scale, module)
    with torch.no_grad():
        output, _ = recorded_attention(module, query, key, value, attention_mask, **kwargs)
    attention.output, attention.sink = _recorded(output[0]), kwargs.get("s_aux")
    attention.reach = attention_mask or Reach(window=kwargs.get("sliding_window"))
    return tracer.end_attention(attention, value[0], output), None


class _Products(EagerAttention):
    """Sees attention that bypasses the interface."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer
        self.attention: Attention | None = None  # waits for its values

    def watches(self) -> bool:
        """Whether a block goes on that has computed no attention yet."""
        return self.tracer.block is not None and not self.tracer.attended

    def scored(self, scores: Tensor, query: Tensor, key: Tensor) -> bool:
        """Whether a softmax is attention's: its argument has the shape of the product before it."""
        if scores.shape[-2:] != (query.shape[-2], key.shape[-1]) or not query.requires_grad:
            return False
        module = next(call.module for call in reversed(self.tracer.open) if list(call.module.children()))
        slope = torch.autograd.grad(_by_head(scores)[0, -1, -1], query, retain_graph=True)[0]
        slope, own = _by_head(slope)[0, -1].detach(), _by_head(key)[0, :, -1].detach()  # of the last token with itself
        scale = (slope @ own / own.square().sum()).item()
        query, key, scores = _by_head(query), _by_head(key).transpose(1, 2), _by_head(scores)
        self.attention = self.tracer.begin_attention(query, key, scale, module)
        products = (query * key).sum(-1).detach() * scale
        own_scores = scores.diagonal(dim1=1, dim2=2).detach().to(products)
        self.attention.biased = not torch.allclose(own_scores, products, rtol=1e-2, atol=1e-4)
        return True

    def mixed(self, value: Tensor, output: Tensor) -> Tensor:
        """Attention's output, at which gradients begin."""
        assert self.attention is not None
        self.attention.output = _recorded(_by_head(output)).transpose(0, 1)
        return self.tracer.end_attention(self.attention, _by_head(value), output)


def _by_head(tensor: Tensor) -> Float[Tensor, "head rows columns"]:
    return tensor.reshape(-1, *tensor.shape[-2:])


AttentionInterface.register(_NAME, _traced_attention)
AttentionMaskInterface.register(_NAME, mask_reach)
