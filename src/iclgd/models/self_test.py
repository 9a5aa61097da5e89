"""The check that a model can be recorded: a few tokens through it, against the model's own arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import NoReturn, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from iclgd.models.anatomy import Anatomy, UnsupportedModelError
from iclgd.models.attention import AttentionPass, precise
from iclgd.models.forward import encode_prefix, forward
from iclgd.models.interventions import hidden_of, hooks
from iclgd.models.language_model import LanguageModel

_TOKENS, _PREFIX = 9, 4
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


@torch.inference_mode()
def check(model: LanguageModel, before: Callable[[], None]) -> None:
    """Refuse a model in which a recording would be wrong.

    It computes attention by transformers' own eager code until `before` switches it to recording; the checks
    run after that, against what it did before.
    """
    tokens = some_tokens(model.network)
    expected = _own_logits(model, tokens)
    before()
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
    seen = _Seen(model)
    now = AttentionPass(lengths=torch.tensor([_TOKENS]))
    with seen.watching():
        hidden = forward(model, tokens[None], now)
    _agree(model, "logits differ from the unmodified model's", model.anatomy.unembed(hidden)[0], expected)
    _check_scores(model, now, seen)
    _check_keys_and_values(model, tokens)
    shared = AttentionPass(
        lengths=torch.tensor([_TOKENS - _PREFIX]), prefix=encode_prefix(model, tuple(tokens[:_PREFIX].tolist()))
    )
    tail = forward(model, tokens[None, _PREFIX:], shared)
    _agree(model, "a shared prefix changes the logits", model.anatomy.unembed(tail)[0], expected[_PREFIX:])
    exits = seen.block_output[model.layers - 1][None]
    own = model.anatomy.unembed(model.anatomy.finish(exits))[0]
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


def _check_scores(model: LanguageModel, now: AttentionPass, seen: _Seen) -> None:
    for layer in range(model.layers):
        if now.scores[layer].shape != (1, model.anatomy.shape.heads, _TOKENS):
            _refuse(model, f"layer {layer} recorded scores of shape {tuple(now.scores[layer].shape)}")
        if not now.scores[layer][..., -1].isfinite().all():
            _refuse(model, f"recorded scores of layer {layer} are not finite where they should be")
        rebuilt = _weighted_values(model, now.scores[layer][0], seen.key_values[layer])
        _agree(
            model, f"softmax(scores) V differs from attention's own output in layer {layer}", rebuilt, seen.mixed[layer]
        )


def _check_keys_and_values(model: LanguageModel, tokens: Tensor) -> None:
    """What would be trained is exactly keys and values: seen on two inputs with all of that set to zero.

    That the values lie there is known already, since `_check_scores` reads them there.
    """
    anatomy, shape = model.anatomy, model.anatomy.shape
    wanted = 2 * shape.key_value_heads * shape.head_dim * model.network.config.hidden_size
    names = anatomy.family.key_value
    for layer in range(model.layers):
        weights = [cast(Tensor, anatomy.attention(layer).get_submodule(name).weight) for name in names]
        if (found := sum(anatomy.key_value_view(weight).numel() for weight in weights)) != wanted:
            _refuse(model, f"layer {layer} has {wanted} key and value weights, but {found} would be trained")
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


def _without_keys_and_values(model: LanguageModel) -> AbstractContextManager[None]:
    anatomy = model.anatomy
    names = [(layer, name) for layer in range(model.layers) for name in anatomy.family.key_value]
    projections = [anatomy.attention(layer).get_submodule(name) for layer, name in names]
    return hooks(after=[(projection, partial(_zeroed, anatomy)) for projection in projections])


def _zeroed(anatomy: Anatomy, _module: object, _args: object, output: Tensor) -> Tensor:
    output = output.clone()
    (anatomy.layout.outputs(output, "kv", -1) if anatomy.layout else output).zero_()
    return output


def some_tokens(network: PreTrainedModel) -> Tensor:
    """The tokens of the checks, of shape [token]."""
    return (torch.arange(1, _TOKENS + 1) * 7919) % network.config.vocab_size


def _refuse(model: LanguageModel, what: str) -> NoReturn:
    raise UnsupportedModelError(f"{type(model.network).__name__} failed its self-test: {what}; it is not measured")


def _agree(model: LanguageModel, what: str, found: Tensor, expected: Tensor) -> None:
    expected = expected.to(found.device)
    error = ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
    if not error <= TOLERANCE[model.dtype]:
        _refuse(model, f"{what} (relative error {error:.1e}, allowed {TOLERANCE[model.dtype]:.0e})")


def _weighted_values(model: LanguageModel, scores: Tensor, projected: Tensor) -> Tensor:
    """softmax(scores) V, from what the value projection put out [token, key_value_head, head_dim]."""
    groups = model.anatomy.shape.heads // model.anatomy.shape.key_value_heads
    values = precise(projected).repeat_interleave(groups, dim=1)
    weights = scores.masked_fill(scores.isnan(), float("-inf")).softmax(dim=-1)
    return torch.einsum("ht,thd->hd", weights, values).flatten()


class _Seen:
    """What modules put out during one pass: values, the input of the output projection, block outputs."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.key_values: dict[int, Tensor] = {}
        self.mixed: dict[int, Tensor] = {}
        self.block_output: dict[int, Tensor] = {}

    def watching(self) -> AbstractContextManager[None]:
        anatomy, layers = self.model.anatomy, range(self.model.layers)
        values = [anatomy.attention(layer).get_submodule(anatomy.family.key_value[-1]) for layer in layers]
        return hooks(
            before=[(anatomy.projection(layer, "o"), partial(self._mixed, layer)) for layer in layers],
            after=[
                *((values[layer], partial(self._values, layer)) for layer in layers),
                *((anatomy.blocks[layer], partial(self._block, layer)) for layer in layers),
            ],
        )

    def _values(self, layer: int, _module: object, _args: object, output: Tensor) -> None:
        layout, shape = self.model.anatomy.layout, self.model.anatomy.shape
        if layout is None:
            self.key_values[layer] = output[0].unflatten(-1, (-1, shape.head_dim))
        else:
            self.key_values[layer] = layout.outputs(output[0], "v", -1).flatten(0, 1).permute(2, 0, 1)

    def _mixed(self, layer: int, _module: object, args: tuple[Tensor, ...], _kwargs: object) -> None:
        self.mixed[layer] = precise(args[0][0, -1]).flatten()

    def _block(self, layer: int, _module: object, _args: object, output: object) -> None:
        self.block_output[layer] = hidden_of(output)[0]
