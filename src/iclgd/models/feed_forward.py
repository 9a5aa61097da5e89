"""The feed-forward part of a block between what it reads and what it adds, open to changes while the model runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from iclgd.config import ConfigError
from iclgd.config.enumerations import Site
from iclgd.models.anatomy import LanguageModel
from iclgd.models.interventions import at_site, hooks
from iclgd.models.products import linear


@runtime_checkable
class Watcher(Protocol):
    """Sees every token of a pass, batch and place flattened, and may return a changed output."""

    def reads(
        self, layer: int, name: str, entering: Float[Tensor, "token d_model"], output: Float[Tensor, "token d_out"]
    ) -> Tensor | None:
        """A projection of the feed-forward part's input has put out `output`."""
        ...

    def adds(
        self,
        layer: int,
        inner: Float[Tensor, "token d_ff"],
        rest: Float[Tensor, "token d_model"],
        output: Float[Tensor, "token d_model"],
    ) -> Tensor | None:
        """The last projection has put out `output`; `rest` is what else the block puts out: its input and attention."""
        ...


@contextmanager
def watching(model: LanguageModel, layers: Iterable[int], watcher: Watcher) -> Iterator[None]:
    """Within this block a watcher sees and changes the feed-forward part of these layers.

    It works on any family whose blocks put out input + attention + feed-forward part, one after another or in parallel.
    """
    anatomy, inputs, added = model.anatomy, {}, {}

    def enter(layer: int, _module: nn.Module, args: Any, kwargs: Any) -> None:
        inputs[layer] = args[0] if args else kwargs["hidden_states"]

    def attended(layer: int, output: Tensor) -> None:
        added[layer] = output

    def reads(layer: int, name: str, _module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        changed = watcher.reads(layer, name, args[0].flatten(0, -2), output.flatten(0, -2))
        return None if changed is None else changed.view(output.shape)

    def adds(layer: int, _module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        rest = (inputs.pop(layer) + added.pop(layer)).flatten(0, -2)
        changed = watcher.adds(layer, args[0].flatten(0, -2), rest, output.flatten(0, -2))
        return None if changed is None else changed.view(output.shape)

    chosen, parts = list(layers), anatomy.feed_forward
    before = [(anatomy.blocks[layer], partial(enter, layer)) for layer in chosen]
    after = [
        *((anatomy.part(layer, n), partial(reads, layer, n)) for layer in chosen for n in parts.reads),
        *((anatomy.part(layer, str(parts.adds)), partial(adds, layer)) for layer in chosen),
    ]
    with at_site(model, Site.attention_output, chosen, attended), hooks(before, after):
        yield


def weight_of(module: nn.Module) -> Float[Tensor, "d_out d_in"]:
    """A projection's weight as [out, in], a view, whichever way the family keeps it."""
    weight: Tensor = module.weight  # pyright: ignore[reportAssignmentType]
    return weight.T if isinstance(module, Conv1D) else weight


def without_bias(module: nn.Module, rows: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_out"]:
    """A projection's product with its weight alone."""
    return linear(rows, weight_of(module).to(rows.dtype))


def refuse_without_exact_form(model: LanguageModel, name: str) -> None:
    """Refuse a model whose blocks do not put out input + attention + feed-forward part (`proofs.prove_feed_forward`).

    Raises:
        ConfigError: a norm stands behind attention or the feed-forward part, or not every layer has attention.
    """
    kind = type(model.network).__name__
    refusal = f"finetune={name} has no exact form for {kind}"
    if model.anatomy.feed_forward.adds is None:
        raise ConfigError(
            f"{refusal}: its blocks do not put out input + attention + one projection; choose another variant"
        )
    if not model.shares_prefix:
        raise ConfigError(f"{refusal}: not every layer has softmax attention; choose another variant")
