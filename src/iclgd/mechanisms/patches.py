"""Changes of feed-forward weights that do what the context does: exactly for a token, or on average for all tokens.

What context adds in attention can be moved into the feed-forward weights (Dherin et al. 2025, arXiv 2507.16003; for
gated units arXiv 2511.17864). Let n be what the feed-forward part reads, g the inner activation that its last matrix
reads, and r the rest of what the block puts out (its input and attention's output), without context; n', g' and r' the
same with it. Then dW_in = W_in (n' - n) n^T / |n|^2 and dW_out = (r' - r) g'^T / |g'|^2 make the block put out for this
token without context what it puts out with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from iclgd.common.records import PromptSet, Trace
from iclgd.config import Config
from iclgd.config.bounds import parse_layers
from iclgd.config.enumerations import PatchTokens, Trainable
from iclgd.mechanisms.bench import Bench
from iclgd.mechanisms.finetuning import with_changes
from iclgd.mechanisms.parameters import trainable, trained_parameters
from iclgd.models.anatomy import LanguageModel
from iclgd.models.attention_pass import AttentionPass
from iclgd.models.feed_forward import refuse_without_exact_form, watching, weight_of, without_bias
from iclgd.models.forward import Prefix, encode_prefix, forward, padded
from iclgd.models.interventions import intervening, last_tokens, own_tokens


class ExactPatch:
    """Rank-1 changes of each token's own feed-forward weights, after which ICL's block outputs come without context.

    It is an intervention, made for one batch at a time. The label tokens that are scored after a query are patched too,
    each by its own change, so that scores of labels of several tokens are ICL's.
    """

    def __init__(self, model: LanguageModel, context: tuple[int, ...], config: Config) -> None:
        refuse_without_exact_form(model, config.finetune.name)
        self.model, self.which = model, config.finetune.patch
        self.layers = parse_layers(config.finetune.layers) or tuple(range(model.layers))
        self.prefix = encode_prefix(model, context)
        self.squares, self.tokens = torch.zeros(model.layers, dtype=torch.float64), 0

    def __call__(self, token_ids: Int[Tensor, "example token"], state: AttentionPass) -> AbstractContextManager[None]:
        """Within the block a pass over these tokens without context is patched."""
        chosen = patched_tokens(self.which, state, token_ids.shape[1])
        rows = chosen.flatten().nonzero().squeeze(1).to(self.model.device)
        target = observed(self.model, token_ids, state, self.prefix, rows, self.layers)
        self.tokens += len(rows)
        return watching(self.model, self.layers, _Patched(self, target, rows))

    def trace(self) -> Trace:
        """No steps; norms are the root mean square over patched tokens of each layer's whole change."""
        norms = (self.squares / max(1, self.tokens)).sqrt().float()
        norms[[layer for layer in range(self.model.layers) if layer not in self.layers]] = float("nan")
        return Trace(torch.empty(0), torch.empty(0, self.model.layers), norms)


def patched_tokens(
    which: PatchTokens, state: AttentionPass, width: int, lead: int = 0
) -> Bool[Tensor, "example token"]:
    """The tokens from the query's last (`last`) or first (`query`) on, label tokens behind it included.

    `lead` tokens that stand before the query, in its length, are left out.
    """
    if which is PatchTokens.last:
        return last_tokens(state, width)
    return own_tokens(state, width, torch.full_like(state.lengths.cpu(), lead))


@dataclass
class Observed:
    """What the feed-forward parts met at some tokens, by layer."""

    rows: Int[Tensor, " row"]
    entering: dict[int, Float[Tensor, "row d_model"]] = field(default_factory=dict)
    inner: dict[int, Float[Tensor, "row d_ff"]] = field(default_factory=dict)
    rest: dict[int, Float[Tensor, "row d_model"]] = field(default_factory=dict)
    added: dict[int, Float[Tensor, "row d_model"]] = field(default_factory=dict)

    def take(self, other: Observed, times: int) -> None:
        """Put another's tokens, several times, behind these."""
        for name in ("entering", "inner", "rest", "added"):
            mine, its = getattr(self, name), getattr(other, name)
            for layer in mine:
                mine[layer] = torch.cat([mine[layer], its[layer].repeat(times, 1)])

    def reads(self, layer: int, name: str, entering: Tensor, output: Tensor) -> None:
        """Keep what the feed-forward part reads."""
        self.entering[layer] = entering[self.rows]

    def adds(self, layer: int, inner: Tensor, rest: Tensor, output: Tensor) -> None:
        """Keep its inner activation, and both parts of what the block puts out."""
        self.inner[layer], self.rest[layer] = inner[self.rows], rest[self.rows]
        self.added[layer] = output[self.rows]


def observed(
    model: LanguageModel,
    token_ids: Int[Tensor, "example token"],
    state: AttentionPass,
    prefix: Prefix | None,
    rows: Int[Tensor, " row"],
    layers: Sequence[int],
) -> Observed:
    """What happens at these rows of a batch when it is read after another prefix."""
    seen = Observed(rows)
    with watching(model, layers, seen):
        forward(model, token_ids, AttentionPass(lengths=state.lengths, prefix=prefix))
    return seen


class _Patched:
    """Adds each patched token's own change of weights to what the projections put out."""

    def __init__(self, patch: ExactPatch, target: Observed, rows: Tensor) -> None:
        self.patch, self.target, self.rows = patch, target, rows

    def reads(self, layer: int, name: str, entering: Tensor, output: Tensor) -> Tensor:
        here, module = entering[self.rows], self.patch.model.anatomy.part(layer, name)
        change = without_bias(module, self.target.entering[layer] - here)
        return self._changed(layer, here, output, change, here)

    def adds(self, layer: int, inner: Tensor, rest: Tensor, output: Tensor) -> Tensor:
        change = self.target.rest[layer] - rest[self.rows]
        return self._changed(layer, inner[self.rows], output, change, self.target.inner[layer])

    def _changed(self, layer: int, reading: Tensor, output: Tensor, change: Tensor, direction: Tensor) -> Tensor:
        """`output` with (change direction^T / |direction|^2) reading added, for each patched token."""
        squares = direction.square().sum(-1, keepdim=True)
        weights = direction / squares.where(squares > 0, 1)
        output = output.clone()
        output[self.rows] += change * (weights * reading).sum(-1, keepdim=True)
        norms = change.double().square().sum(-1) * weights.double().square().sum(-1)
        self.patch.squares[layer] += norms.sum().cpu()
        return output


@contextmanager
def exact_patch(bench: Bench) -> Iterator[Trace]:
    """Each token's own rank-1 change of the feed-forward weights, after which ICL's block outputs come without context.

    `finetune.patch` says which tokens are patched (see `ExactPatch`).

    Yields:
        A trace without steps; the norms of the changes are there when the block has ended.
    """
    patch = ExactPatch(bench.model, bench.context(), bench.config)
    trace = patch.trace()
    with intervening(bench.model, patch):
        yield trace
    trace.update_norms.copy_(patch.trace().update_norms)


@contextmanager
def static_patch(bench: Bench) -> Iterator[Trace]:
    """Within the block one change of feed-forward weights, the same for all tokens, stands in for the context.

    Ridge least squares over calibration queries (arXiv 2510.08734), from the input side up, each layer with those
    below it changed: first dW_in maps n to W_in (n' - n), then dW_out makes up what is still missing of the block's
    output. The ridge is a multiple of the median squared length of what is mapped: some tokens are a thousand times as
    long as others. Calibration queries are rows of the train split that are neither demonstrations nor measured; their
    labels are not used.

    Yields:
        A trace without steps; the weights are put back afterwards.
    """
    model = bench.model
    trained = trained_parameters(model, Trainable.mlp, bench.layers)
    changes = static_changes(model, bench.prompts, bench.config)
    with trainable(trained) as before:
        for (layer, name), change in changes.items():
            weight_of(model.anatomy.part(layer, name)).data.add_(change)
        yield with_changes(bench.no_steps(), trained, before)


@torch.inference_mode()
def static_changes(
    model: LanguageModel, prompts: PromptSet, config: Config
) -> dict[tuple[int, str], Float[Tensor, "d_out d_in"]]:
    """The static patch's change of each feed-forward matrix, by layer and module."""
    refuse_without_exact_form(model, config.finetune.name)
    layers = parse_layers(config.finetune.layers) or tuple(range(model.layers))
    queries, which = [item.token_ids for item in prompts.calibration], config.finetune.patch
    token_ids, state, rows = _batch(model, queries, which)
    target = observed(model, token_ids, state, encode_prefix(model, prompts.context()), rows, layers)
    # What stands first is read with changed weights too, so it is not a prefix here. Context does nothing to it, and
    # every later token attends to it (the attention sink), so that it must stay what it is: it is fitted to itself.
    first = len(prompts.bos)
    token_ids, state, rows = _batch(model, [prompts.bos + tokens for tokens in queries], which, first)
    if first:
        alone = AttentionPass(lengths=torch.tensor([first], device=model.device))
        itself = torch.arange(first, device=model.device)
        own = observed(model, torch.tensor([prompts.bos]), alone, None, itself, layers)
        starts = torch.arange(len(queries), device=model.device)[:, None] * token_ids.shape[1] + itself
        target.take(own, len(queries))
        rows = torch.cat([rows, starts.flatten()])
    fit = _Fitted(model, target, rows, config.finetune.ridge)
    with watching(model, layers, fit):
        forward(model, token_ids, state)
    return fit.changes


def _batch(
    model: LanguageModel, sequences: Sequence[tuple[int, ...]], which: PatchTokens, lead: int = 0
) -> tuple[Int[Tensor, "example token"], AttentionPass, Int[Tensor, " row"]]:
    """Sequences padded on the right, and which rows of the flattened batch are to be patched."""
    token_ids, lengths = padded(sequences), torch.tensor([len(tokens) for tokens in sequences])
    state = AttentionPass(lengths=lengths.to(model.device))
    chosen = patched_tokens(which, state, token_ids.shape[1], lead)
    return token_ids, state, chosen.flatten().nonzero().squeeze(1).to(model.device)


class _Fitted:
    """Finds each layer's change while the pass goes through it, and lets the layers above see it."""

    def __init__(self, model: LanguageModel, target: Observed, rows: Tensor, ridge: float) -> None:
        self.model, self.target, self.rows, self.ridge = model, target, rows, ridge
        self.changes: dict[tuple[int, str], Tensor] = {}
        self.maps: dict[int, Tensor] = {}

    def reads(self, layer: int, name: str, entering: Tensor, output: Tensor) -> Tensor:
        if layer not in self.maps:  # one map of n serves every matrix that reads it
            here = entering[self.rows]
            self.maps[layer] = ridge_map(here, self.target.entering[layer] - here, self.ridge)
        change = weight_of(self.model.anatomy.part(layer, name)) @ self.maps[layer]
        return self._taken(layer, name, change, entering, output)

    def adds(self, layer: int, inner: Tensor, rest: Tensor, output: Tensor) -> Tensor:
        missing = self.target.rest[layer] + self.target.added[layer] - (rest + output)[self.rows]
        change = ridge_map(inner[self.rows], missing, self.ridge)
        return self._taken(layer, str(self.model.anatomy.feed_forward.adds), change, inner, output)

    def _taken(self, layer: int, name: str, change: Tensor, reading: Tensor, output: Tensor) -> Tensor:
        self.changes[layer, name] = change
        return output + reading @ change.T


def ridge_map(
    inputs: Float[Tensor, "row d_in"], outputs: Float[Tensor, "row d_out"], ridge: float
) -> Float[Tensor, "d_out d_in"]:
    """The matrix M of least |inputs M^T - outputs|^2 + ridge median(|input|^2) |M|^2, from the smaller Gram matrix."""
    x, y = inputs.double(), outputs.double()
    penalty = ridge * x.square().sum(-1).median().clamp(min=torch.finfo(torch.float64).tiny)
    rows, columns = x.shape
    if rows <= columns:
        gram = x @ x.T
        solution = torch.linalg.solve(gram + penalty * torch.eye(rows, dtype=x.dtype, device=x.device), y).T @ x
    else:
        gram = x.T @ x
        solution = torch.linalg.solve(gram + penalty * torch.eye(columns, dtype=x.dtype, device=x.device), x.T @ y).T
    return solution.to(outputs.dtype)
