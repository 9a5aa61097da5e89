"""The check that recordings of a loaded model are right: its parts are proven, and logits and scores compared.

Every refusal names the identity that failed, the layer, and by how much.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iclgd.models.anatomy import LanguageModel, UnsupportedModelError, refuse
from iclgd.models.attention import INTERFACE_NAME, precise, with_sink
from iclgd.models.attention_pass import AttentionPass
from iclgd.models.forward import encode_prefix, forward, padded
from iclgd.models.interventions import ending_at
from iclgd.models.placement import device_of
from iclgd.models.products import use_linear
from iclgd.models.proofs import (
    TOLERANCE,
    agree,
    agree_scores,
    prove_feed_forward,
    prove_projections,
    prove_rows,
    prove_stream,
)
from iclgd.models.trace import Trace
from iclgd.models.tracing import implementation, some_tokens

_PREFIX = 4
_LONGEST = 768  # tokens of a pass that reaches beyond every window, where the windows are small enough


@torch.inference_mode()
def check(model: LanguageModel, passed: Trace) -> None:
    """Switch a model from transformers' own eager attention to recording, and refuse it if a record would be wrong.

    Raises:
        UnsupportedModelError: the message says which identity failed, in which layer and by how much.
    """
    tokens = passed.tokens
    try:
        expected = _own_logits(model, tokens)
        far = _beyond_every_window(model)
        use_linear(model.network)
        if model.anatomy.interface:
            model.network.config._attn_implementation = INTERFACE_NAME
        agree(model, "logits differ from the unmodified model's", passed.logits, expected)
        prove_stream(model, passed)
        _check_attention(model, passed, expected)
        _check_exit(model, passed, expected)
        prove_rows(model, passed)
        prove_projections(model, tokens)
        _check_prefix_and_padding(model, tokens, expected)
        if far is not None:
            _check_reach(model, *far)
        prove_feed_forward(model, passed)
    except (torch.OutOfMemoryError, UnsupportedModelError):
        raise
    except (RuntimeError, TypeError, AttributeError, KeyError, IndexError) as error:
        refuse(model.network, f"a part of it is not what it was taken for ({' '.join(str(error).split())[:200]})")


@torch.inference_mode()
def first_layer_sees_context(model: LanguageModel) -> bool:
    """Whether the first layer's attention scores with own tokens depend on what stands before them.

    Under rotary positions or ALiBi they cannot: they are products of the tokens' own embeddings and distances, and
    differ between contexts by rounding alone. Learned or sinusoidal positions are added to the embeddings, and depend.
    """
    tokens, scores = some_tokens(model.network), []
    for context in (_PREFIX, 1):
        state = AttentionPass(lengths=torch.tensor([len(tokens) - _PREFIX]), first_position=context)
        with ending_at(model.anatomy.blocks[0]):
            forward(model, tokens[None, _PREFIX:], state)
        recorded = state.records["attention_scores"]
        if 0 not in recorded:  # it has no attention
            return True
        scores.append(recorded[0].nan_to_num())
    moved = (scores[0] - scores[1]).abs().max()
    return bool(moved > TOLERANCE[model.network.dtype] * scores[0].abs().max())


def _own_logits(model: LanguageModel, tokens: Tensor) -> Float[Tensor, "token vocabulary"]:
    """The unmodified model's logits, by its eager attention.

    Where eager attention is what is recorded, it has to agree with the model's default: in transformers 5.23 that of
    Falcon with ALiBi adds the biases twice.
    """
    network, inputs = model.network, tokens[None].to(model.device)
    with implementation(network, "eager"):
        expected = precise(network(input_ids=inputs, use_cache=False).logits[0])
    if model.anatomy.interface or not network._supports_sdpa:
        return expected
    with implementation(network, "sdpa"):
        default = precise(network(input_ids=inputs, use_cache=False).logits[0])
    agree(model, "eager attention differs from the model's default attention", expected, default)
    return expected


def _check_attention(model: LanguageModel, passed: Trace, expected: Tensor) -> None:
    """The softmax of the recorded scores, times values, is what attention has put out."""
    tokens = passed.tokens
    state = AttentionPass(lengths=torch.tensor([len(tokens)]))
    hidden = forward(model, tokens[None], state)
    agree(model, "logits differ from the unmodified model's", model.anatomy.unembed(hidden)[0], expected)
    for number, block in enumerate(model.anatomy.blocks):
        attention = passed.block(block).attention
        if attention is None:
            continue
        scores = state.records["attention_scores"][number]
        heads = len(attention.query)
        if scores.shape != (1, heads, len(tokens)):
            refuse(model.network, f"layer {number} recorded scores of shape {tuple(scores.shape)}")
        if not scores[..., -1].isfinite().all():
            refuse(model.network, f"recorded scores of layer {number} are not finite where they should be")
        values = precise(attention.value).repeat_interleave(heads // len(attention.value), dim=0)
        shares = with_sink(scores[0].cpu().nan_to_num(nan=-torch.inf), attention.sink).softmax(-1)[:, : len(tokens)]
        rebuilt = torch.einsum("ht,htd->hd", shares, values)
        what = f"softmax(scores) V differs from attention's own output in layer {number}"
        agree(model, what, rebuilt, attention.output[-1])


def _check_exit(model: LanguageModel, passed: Trace, expected: Tensor) -> None:
    """The last block's output, finished and unembedded, gives the model's logits."""
    last = passed.block(model.anatomy.blocks[-1]).output
    last = last[None].to(device_of(model.anatomy.blocks[-1]))
    logits = model.anatomy.unembed(model.anatomy.finish(last))[0]
    agree(model, "the last block's early exit differs from the model's output", logits, expected)


def _check_prefix_and_padding(model: LanguageModel, tokens: Tensor, expected: Tensor) -> None:
    """After a shared prefix, sequences of unequal length beside each other are what they are alone."""
    prefix = encode_prefix(model, tuple(tokens[:_PREFIX].tolist()))
    lengths = torch.tensor([len(tokens) - _PREFIX, 2])
    rows = [tuple(tokens[_PREFIX : _PREFIX + length].tolist()) for length in lengths.tolist()]
    alone = AttentionPass(lengths=torch.tensor([_PREFIX + 2]))
    forward(model, tokens[None, : _PREFIX + 2], alone)
    state = AttentionPass(lengths=lengths, prefix=prefix)
    logits = model.anatomy.unembed(state.last(forward(model, padded(rows), state), 1))
    ends = expected[_PREFIX + lengths - 1]
    agree(model, "a shared prefix changes the logits", logits[0], ends[0])
    agree(model, "padding changes the logits", logits[1], ends[1])
    for layer, scores in state.records["attention_scores"].items():
        own = alone.records["attention_scores"][layer][0, :, _PREFIX:]
        agree_scores(model, f"padding changes the scores in layer {layer}", scores[1, :, :2], own)


def _beyond_every_window(model: LanguageModel) -> tuple[Int[Tensor, " token"], Tensor] | None:
    """Tokens beyond every window and chunk, and the unmodified model's logits; None without windows of this size.

    Larger windows and chunks are read from transformers' own rule in every pass (`attention.mask_reach`).
    """
    sizes = [size for layer in model.anatomy.layers for size in (layer.window, layer.chunk) if size]
    count = 2 * max(sizes, default=0) + 3
    if not sizes or count > min(_LONGEST, model.window or _LONGEST):
        return None
    tokens = some_tokens(model.network, count)
    return tokens, _own_logits(model, tokens)


def _check_reach(model: LanguageModel, tokens: Tensor, expected: Tensor) -> None:
    """Beyond every window and chunk, with and without a prefix, logits are the model's."""
    before = len(tokens) // 2
    for length in (0, before):
        prefix = encode_prefix(model, tuple(tokens[:length].tolist()))
        state = AttentionPass(lengths=torch.tensor([len(tokens) - length]), prefix=prefix)
        logits = model.anatomy.unembed(forward(model, tokens[None, length:], state))[0]
        agree(model, f"beyond its windows ({len(tokens)} tokens) logits are not the model's", logits, expected[length:])
