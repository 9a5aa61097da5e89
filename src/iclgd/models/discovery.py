"""Finds the parts of a model from one traced pass, each by an identity between what its modules read and put out.

1. Blocks are the items of the list of modules that holds all attention.
2. Attention's queries, keys and values have gradients by the rows of the projections that make them
   (`models.tracing`, `models.layer_discovery`).
3. What attention adds to the residual stream is the output with which a block's input adds up to what is read next, or,
   beside a parallel feed-forward part, to what the block puts out. So it is with other modules that mix tokens
   (`models.mixing`), where a block has no softmax attention, or has them beside it.
4. From the last block's output to what the unembedding reads, each module reads what the one before has put out.
5. Logits are the unembedding's products, scaled or bent by numbers of the config.
6. A block's output is its input + attention + the output of one projection, where it has such a form.

What cannot be found can be described (`model.anatomy`). `models.proofs` proves what was found or described.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from iclgd.config import ConfigError
from iclgd.models.anatomy import Anatomy, Exit, FeedForward, Layer, Shape, UnsupportedModelError, refuse
from iclgd.models.layer_discovery import Description, LayerDiscovery
from iclgd.models.projections import is_projection
from iclgd.models.trace import Attention, BlockTrace, Call, Trace, bent, is_sum, multiples, same
from iclgd.models.tracing import some_tokens, trace

_DESCRIBED = (
    *("blocks", "added", "factor", "query", "key", "value", "output"),
    *("final", "logit_scale", "softcap", "positions", "mlp", "mlp_in", "mlp_out"),
)


def discover(network: PreTrainedModel, description: Description | None = None) -> tuple[Anatomy, Trace]:
    """The anatomy of a model, which is left as it was, and the pass that it was found in.

    Parts of `description` (`model.anatomy`) are taken as they are described.

    Raises:
        UnsupportedModelError: a part is not found.
        ConfigError: a part is described that does not exist, or half of a description is missing.
    """
    described = description or {}
    _check_description(described)
    passed = _traced(network)
    if not passed.logits.isfinite().all():
        what = f"its logits for a few tokens are not finite in {network.dtype}: choose another runtime.dtype"
        refuse(network, what)
    try:
        return _Discovery(network, passed, described).anatomy(), passed
    except AttributeError as error:
        if not described:
            raise
        raise ConfigError(f"model.anatomy describes a part that {type(network).__name__} lacks: {error}") from error


def _check_description(described: Description) -> None:
    unknown = set(described) - set(_DESCRIBED)
    if unknown:
        raise ConfigError(
            f"model.anatomy has no part {', '.join(sorted(unknown))}: its parts are {', '.join(_DESCRIBED)}"
        )
    for part, other in (("factor", "added"), ("mlp_in", "mlp_out")):
        if part in described and other not in described:
            raise ConfigError(f"model.anatomy describes {part} without {other}: describe both")


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
    return passed


class _Discovery:
    def __init__(self, network: PreTrainedModel, passed: Trace, description: Description) -> None:
        self.network, self.trace, self.description = network, passed, description
        self.list, self.blocks = self._blocks()
        self.layers = LayerDiscovery(network, passed.tokens, self.blocks, description)

    def anatomy(self) -> Anatomy:
        layers = tuple(map(self.layers.layer, range(len(self.blocks))))
        return Anatomy(
            network=self.network,
            interface=self.trace.interface or not self.trace.attentions,
            shape=shape_of(self.network, self.trace.attentions),
            blocks=tuple(block.call.module for block in self.blocks),
            layers=layers,
            exit=self._exit(),
            feed_forward=self._feed_forward(layers),
            positions=self._positions(),
        )

    # 1. Blocks

    def _blocks(self) -> tuple[str, list[BlockTrace]]:
        names = [f"{attention.name}." for attention in self.trace.attentions]
        count = self.network.config.get_text_config().num_hidden_layers
        lists = [
            path
            for path, module in self.network.named_modules()
            if isinstance(module, nn.ModuleList) and all(name.startswith(f"{path}.") for name in names)
            if names or len(module) == count
        ]
        path = self.description.get("blocks") or (min(lists, key=len) if lists else None)
        if path is None:
            refuse(self.network, "the modules that mix tokens do not lie in one list of blocks")
        calls = [call for call in self.trace.calls if call.name.rpartition(".")[0] == path]
        blocks = [self.trace.block(call.module) for call in sorted(calls, key=lambda call: call.start)]
        for number, block in enumerate(blocks):
            if len(block.attentions) > 1:
                refuse(
                    self.network,
                    f"block {number} computes softmax attention {len(block.attentions)} times, expected at most once",
                )
        owners: dict[nn.Parameter, int] = {}
        for number, block in enumerate(blocks):
            for parameter in block.call.module.parameters():
                if owners.setdefault(parameter, number) != number:
                    refuse(
                        self.network,
                        f"blocks {owners[parameter]} and {number} share weights, so that no layer has its own",
                    )
        return path, blocks

    # 4. and 5. From the last block to the logits

    def _exit(self) -> Exit:
        unembedding = cast(nn.Module, self.network.get_output_embeddings())
        head = next((call for call in self.trace.calls if call.module is unembedding), None)
        if head is None or head.output is None:
            refuse(self.network, "its unembedding is not called as a module")
        modules, hidden = self._chain(head)
        scale, softcap = self._bend(head, hidden)
        return Exit(
            tuple(modules),
            unembedding,
            float(self.description.get("logit_scale", scale)),
            self.description.get("softcap", softcap),
        )

    def _chain(self, head: Call) -> tuple[list[nn.Module], Tensor]:
        hidden, modules = self.blocks[-1].output, []
        if "final" in self.description:
            modules = [self.network.get_submodule(path) for path in self.description["final"]]
            return modules, head.inputs[0]
        later = [call for call in self.trace.calls if self.blocks[-1].call.end < call.start < head.start]
        for call in sorted(later, key=lambda call: call.start):
            if call.output is not None and call.inputs and same(call.inputs[0], hidden):
                if not same(call.output, hidden):  # as dropout's is
                    modules.append(call.module)
                hidden = call.output
        return modules, hidden

    def _bend(self, head: Call, hidden: Tensor) -> tuple[float, float | None]:
        factors = multiples(head.inputs[0], torch.zeros_like(hidden), [hidden], self.layers.numbers)
        if not factors:
            refuse(
                self.network,
                "what the unembedding reads is not what the last block has put out after the modules behind it (part "
                "`final`)",
            )
        found = bent(cast(Tensor, head.output), self.trace.logits, self.layers.numbers)
        if not found:
            refuse(self.network, "its logits are not a multiple of the unembedding's products, nor bent by one softcap")
        return factors[0] * found[0], found[1]

    def _positions(self) -> tuple[nn.Module, ...]:
        if "positions" in self.description:
            return tuple(self.network.get_submodule(path) for path in self.description["positions"])
        words, blocks = self.network.get_input_embeddings(), f"{self.list}."
        modules = [call.module for call in self.trace.calls if not call.name.startswith(blocks)]
        return tuple(dict.fromkeys(each for each in modules if isinstance(each, nn.Embedding) and each is not words))

    # 6. The feed-forward part

    def _feed_forward(self, layers: Sequence[Layer]) -> FeedForward:
        described, modules = self.description, self.feed_forward_modules(layers)
        if "mlp_out" in described:
            return FeedForward(modules, tuple(described.get("mlp_in", ())), described["mlp_out"])
        forms = {self._form(block, layer) for block, layer in zip(self.blocks, layers, strict=True)}
        reads, adds = forms.pop() if len(forms) == 1 else ((), None)
        return FeedForward(modules, reads, adds)

    def feed_forward_modules(self, layers: Sequence[Layer]) -> tuple[str, ...]:
        if "mlp" in self.description:
            return tuple(self.description["mlp"])
        blocks = zip(self.blocks, layers, strict=True)
        return tuple(dict.fromkeys(path for block, layer in blocks for path in _matrices(block, layer)))

    def _form(self, block: BlockTrace, layer: Layer) -> tuple[tuple[str, ...], str | None]:
        if len(layer.added) != 1 or layer.added[0][1] != 1:
            return (), None
        (module, _), *_ = layer.added
        added = next((call.output for call in block.inner if call.module is module), None)
        mixing = {part for mixer in layer.mixers for part in mixer.modules()}
        outside = [call for call in block.inner if is_projection(call.module) and call.module not in mixing]
        for call in outside:
            if added is None or call.output is None or call.output.shape != block.output.shape:
                continue
            if call.module is not module and is_sum(block.output, (block.input, added, call.output)):
                before = [each for each in outside if each.end < call.start]
                reads = [each for each in before if same(each.inputs[0], before[0].inputs[0])]
                return tuple(map(block.path, reads)), block.path(call)
        return (), None


def _matrices(block: BlockTrace, layer: Layer) -> Iterator[str]:
    """Paths of what has matrices in a block and is not attention, nor the projection of its output."""

    def outside(module: nn.Module, path: str) -> Iterator[str]:
        for name, child in module.named_children():
            if child in layer.mixing:
                continue
            if any(each in layer.mixing for each in child.modules()):
                yield from outside(child, f"{path}{name}.")
            elif any(parameter.ndim > 1 for parameter in child.parameters()):
                yield f"{path}{name}"

    return outside(block.call.module, "")


def shape_of(network: PreTrainedModel, attentions: Sequence[Attention]) -> Shape:
    """The sizes of a model."""
    config: Any = network.config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "max_target_positions")  # the last is Whisper's
    window = next((size for size in (getattr(config, name, None) for name in names) if size), None)

    def largest(size: Callable[[Attention], int]) -> int:
        return max(map(size, attentions), default=1)

    return Shape(
        layers=int(config.num_hidden_layers),
        heads=largest(lambda each: each.query.shape[0]),
        head_dim=largest(lambda each: each.query.shape[-1]),
        window=None if config.model_type == "bloom" else window,
    )
