"""The check that a model can be recorded: a few tokens through it, against the model's own arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from iclgd.models.anatomy import UnsupportedModelError
from iclgd.models.attention import INTERFACE_NAME, AttentionPass, precise
from iclgd.models.forward import encode_prefix, forward
from iclgd.models.interventions import hidden_of, hooks
from iclgd.models.language_model import LanguageModel
from iclgd.models.products import use_linear

_TOKENS, _PREFIX = 9, 4
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


@torch.inference_mode()
def check(model: LanguageModel) -> None:
    """Switch a model from transformers' own eager attention to recording, and refuse it if a record would be wrong."""
    tokens = some_tokens(model.network)
    expected = _own_logits(model, tokens)
    use_linear(model.network)
    if model.anatomy.family.interface:
        model.network.config._attn_implementation = INTERFACE_NAME
    try:
        _check(model, tokens, expected)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, AttributeError, KeyError, IndexError) as error:
        _refuse(model, f"its parts are not what iclgd/models/anatomy.py says ({' '.join(str(error).split())[:200]})")


@torch.inference_mode()
def first_layer_sees_context(model: LanguageModel) -> bool:
    """Whether the first layer's attention scores with own tokens depend on what stands before them.

    Under rotary positions or ALiBi they cannot: they are products of the tokens' own embeddings and distances, and
    differ between contexts by rounding alone. Learned or sinusoidal positions are added to the embeddings, and depend.
    """
    tokens, scores = some_tokens(model.network), []
    for context in (tokens[:_PREFIX], tokens[:1]):
        now = AttentionPass(lengths=torch.tensor([_TOKENS - _PREFIX]))
        now.prefix = encode_prefix(model, tuple(context.tolist()))
        forward(model, tokens[None, _PREFIX:], now)
        scores.append(now.scores[0].nan_to_num())
    moved = (scores[0] - scores[1]).abs().max()
    return bool(moved > TOLERANCE[model.network.dtype] * scores[0].abs().max())


def _check(model: LanguageModel, tokens: Tensor, expected: Tensor) -> None:
    now = AttentionPass(lengths=torch.tensor([_TOKENS]))
    with _watching(model) as seen:
        hidden = forward(model, tokens[None], now)
    _agree(model, "logits differ from the unmodified model's", model.anatomy.unembed(hidden)[0], expected)
    _check_scores(model, now, seen)
    _check_keys_and_values(model, tokens)
    shared = AttentionPass(
        lengths=torch.tensor([_TOKENS - _PREFIX]), prefix=encode_prefix(model, tuple(tokens[:_PREFIX].tolist()))
    )
    tail = forward(model, tokens[None, _PREFIX:], shared)
    _agree(model, "a shared prefix changes the logits", model.anatomy.unembed(tail)[0], expected[_PREFIX:])
    own = model.anatomy.unembed(model.anatomy.finish(seen.last_block))[0]
    _agree(model, "the last block's early exit differs from the model's output", own, expected)


def _own_logits(model: LanguageModel, tokens: Tensor) -> Tensor:
    """The unmodified model's logits, by its eager attention.

    Where eager attention is what is recorded, it has to agree with the model's default: in transformers 5.23 that of
    Falcon with ALiBi adds the biases twice.
    """
    network = model.network
    inputs = tokens[None].to(model.device)
    try:
        expected = precise(network(input_ids=inputs, use_cache=False).logits[0])
    except RuntimeError as error:
        _refuse(model, f"it does not run in {model.dtype} ({error}); choose another runtime.dtype")
    if not model.anatomy.family.interface and network._supports_sdpa:
        try:
            network.config._attn_implementation = "sdpa"
            default = precise(network(input_ids=inputs, use_cache=False).logits[0])
        finally:
            network.config._attn_implementation = "eager"
        _agree(model, "eager attention differs from the model's default attention", expected, default)
    return expected


def _check_scores(model: LanguageModel, now: AttentionPass, seen: _Outputs) -> None:
    for layer in range(model.layers):
        if now.scores[layer].shape != (1, model.anatomy.shape.heads, _TOKENS):
            _refuse(model, f"layer {layer} recorded scores of shape {tuple(now.scores[layer].shape)}")
        if not now.scores[layer][..., -1].isfinite().all():
            _refuse(model, f"recorded scores of layer {layer} are not finite where they should be")
        rebuilt = _weighted_values(model, now.scores[layer][0], seen.values[layer])
        _agree(
            model, f"softmax(scores) V differs from attention's own output in layer {layer}", rebuilt, seen.mixed[layer]
        )


def _check_keys_and_values(model: LanguageModel, tokens: Tensor) -> None:
    """What would be trained is exactly keys and values: seen on two inputs with all of that set to zero.

    That the values lie there is known already, since `_check_scores` reads them there.
    """
    anatomy, shape = model.anatomy, model.anatomy.shape
    wanted = 2 * shape.key_value_heads * shape.head_dim * model.network.config.hidden_size
    for layer in range(model.layers):
        weights = [cast(Tensor, projection.weight) for projection in _key_value_projections(model, layer)]
        if (trained := sum(anatomy.key_value_view(weight).numel() for weight in weights)) != wanted:
            _refuse(model, f"layer {layer} has {wanted} key and value weights, but {trained} would be trained")
    other = (tokens * 3 + 1) % model.network.config.vocab_size
    now = AttentionPass(lengths=torch.tensor([_TOKENS, _TOKENS]), keep_queries="last")
    with _without_keys_and_values(model):
        forward(model, torch.stack([tokens, other]), now)
    for layer in range(model.layers):
        first, second = now.scores[layer].nan_to_num()
        if not torch.equal(first, second):
            _refuse(model, f"layer {layer} has keys outside the part that would be trained as keys and values")
        first, second = now.queries[layer]
        if (first == second).float().mean() > 0.5:
            _refuse(model, f"layer {layer} has queries in the part that would be trained as keys and values")


def _key_value_projections(model: LanguageModel, layer: int) -> list[nn.Module]:
    attention = model.anatomy.attention(layer)
    return [attention.get_submodule(name) for name in model.anatomy.family.key_value]


def _without_keys_and_values(model: LanguageModel) -> AbstractContextManager[None]:
    layout = model.anatomy.layout

    def erase(_module: object, _args: object, output: Tensor) -> Tensor:
        output = output.clone()
        (layout.outputs(output, "kv", -1) if layout else output).zero_()
        return output

    layers = range(model.layers)
    return hooks(after=[(each, erase) for layer in layers for each in _key_value_projections(model, layer)])


def some_tokens(network: PreTrainedModel) -> Tensor:
    """The tokens of the checks, of shape [token]."""
    return (torch.arange(1, _TOKENS + 1) * 7919) % network.config.vocab_size


def _refuse(model: LanguageModel, what: str) -> NoReturn:
    raise UnsupportedModelError(f"{type(model.network).__name__} failed its self-test: {what}; it is not measured")


def _agree(model: LanguageModel, what: str, actual: Tensor, expected: Tensor) -> None:
    expected = expected.to(actual.device)
    error = ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
    if not error <= TOLERANCE[model.dtype]:
        _refuse(model, f"{what} (relative error {error:.1e}, allowed {TOLERANCE[model.dtype]:.0e})")


def _weighted_values(model: LanguageModel, scores: Tensor, projected: Tensor) -> Tensor:
    """softmax(scores) V, from what the value projection put out [token, key_value_head, head_dim]."""
    groups = model.anatomy.shape.heads // model.anatomy.shape.key_value_heads
    values = precise(projected).repeat_interleave(groups, dim=1)
    weights = scores.masked_fill(scores.isnan(), float("-inf")).softmax(dim=-1)
    return torch.einsum("ht,thd->hd", weights, values).flatten()


@dataclass
class _Outputs:
    """What modules put out during one pass, some of it by layer."""

    values: dict[int, Float[Tensor, "token key_value_head head_dim"]] = field(default_factory=dict)
    mixed: dict[int, Float[Tensor, " heads_x_head_dim"]] = field(
        default_factory=dict
    )  # what the output projection reads
    last_block: Tensor = field(default_factory=lambda: torch.empty(0))


@contextmanager
def _watching(model: LanguageModel) -> Iterator[_Outputs]:
    anatomy, layers, seen = model.anatomy, range(model.layers), _Outputs()

    def value(layer: int, _module: object, _args: object, output: Tensor) -> None:
        if anatomy.layout is None:
            seen.values[layer] = output[0].unflatten(-1, (-1, anatomy.shape.head_dim))
        else:
            seen.values[layer] = anatomy.layout.outputs(output[0], "v", -1).flatten(0, 1).permute(2, 0, 1)

    def mixed(layer: int, _module: object, args: tuple[Tensor, ...], _kwargs: object) -> None:
        seen.mixed[layer] = precise(args[0][0, -1]).flatten()

    def block(_module: object, _args: object, output: object) -> None:
        seen.last_block = hidden_of(output)

    before = [(anatomy.projection(layer, "o"), partial(mixed, layer)) for layer in layers]
    values = [(_key_value_projections(model, layer)[-1], partial(value, layer)) for layer in layers]
    with hooks(before, [*values, (anatomy.blocks[-1], block)]):
        yield seen
