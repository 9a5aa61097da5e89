"""An independent, slow reference: one query at a time, whole sequences, transformers' own eager attention.

Nothing here comes from iclgd.models or iclgd.mechanisms. Queries and keys are rebuilt by plain arithmetic from what the
projections put out; what attention adds is read off the residual stream. `naive_finetuning` trains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# By family: blocks, attention, its projections, and the module (in a block) that reads the residual stream right after
# attention was added; None where attention and MLP run in parallel.
_LLAMA = ("model.layers", "self_attn", ("q_proj", "k_proj", "v_proj"), "post_attention_layernorm")
PARTS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), (*_LLAMA[:3], "pre_feedforward_layernorm")),
    "olmo2": (*_LLAMA[:3], "mlp"),
    "phi": (*_LLAMA[:3], None),
    "phi3": ("model.layers", "self_attn", ("qkv_proj",), "post_attention_layernorm"),
    "opt": ("model.decoder.layers", *_LLAMA[1:3], "final_layer_norm"),
    "xglm": (*_LLAMA[:3], "final_layer_norm"),
    "gpt2": ("transformer.h", "attn", ("c_attn",), "ln_2"),
    "gpt_neo": ("transformer.h", "attn.attention", ("q_proj", "k_proj", "v_proj"), "ln_2"),
    "gptj": ("transformer.h", "attn", ("q_proj", "k_proj", "v_proj"), None),
    "gpt_neox": ("gpt_neox.layers", "attention", ("query_key_value",), None),
    "bloom": ("transformer.h", "self_attention", ("query_key_value",), "post_attention_layernorm"),
    "falcon": ("transformer.h", "self_attention", ("query_key_value",), None),
}


@dataclass
class Seen:
    """One sequence: logits [token, vocabulary]; by layer queries and keys [head, token, head_dim] (queries scaled),
    scores [head, query, key] with NaN where not visible, weights (transformers' own), added, blocks [token, d]."""

    logits: Tensor
    queries: list[Tensor]
    keys: list[Tensor]
    scores: list[Tensor]
    weights: list[Tensor]
    added: list[Tensor]
    blocks: list[Tensor]


class Naive:
    def __init__(self, network):
        self.network, self.config, self.kind = network, network.config, network.config.model_type
        assert self.config._attn_implementation == "eager"
        blocks, self.attention, self.projections, self.after = PARTS[self.kind]
        self.blocks = network.get_submodule(blocks)
        if self.kind == "opt" and not self.config.do_layer_norm_before:
            self.after = "self_attn_layer_norm"
        self.heads = self.config.num_attention_heads
        self.head_dim = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.heads

    @torch.no_grad()
    def run(self, tokens) -> Seen:
        kept, handles = {}, []

        def keep(key, which):
            def hook(_module, args, kwargs, output):
                value = args[0] if args else kwargs["hidden_states"]
                value = value if which == "in" else output[0] if isinstance(output, tuple) else output
                kept[key] = value.detach().clone().reshape(len(tokens), -1)

            return hook

        for i, block in enumerate(self.blocks):
            names = {"": block, **{p: block.get_submodule(f"{self.attention}.{p}") for p in self.projections}}
            names["after"] = block.get_submodule(self.after or "mlp")
            for name, module in names.items():
                for which in ("in", "out"):
                    handles.append(module.register_forward_hook(keep((i, name, which), which), with_kwargs=True))
        output = self.network(input_ids=torch.tensor([tokens]), use_cache=False, output_attentions=True)
        for handle in handles:
            handle.remove()
        seen = Seen(output.logits[0], [], [], [], [w[0] for w in output.attentions], [], [])
        for i in range(len(self.blocks)):
            query, key = self.queries_and_keys(i, kept)
            seen.queries.append(query)
            seen.keys.append(key)
            seen.scores.append(self.scores(i, query, key))
            seen.blocks.append(kept[i, "", "out"])
            into, out = kept[i, "", "in"], kept[i, "", "out"]
            seen.added.append(kept[i, "after", "in"] - into if self.after else out - into - kept[i, "after", "out"])
        return seen

    def queries_and_keys(self, layer, kept):
        """[head, token, head_dim], position and scale applied."""
        attention = self.blocks[layer].get_submodule(self.attention)
        query, key = self.split([kept[layer, p, "out"] for p in self.projections])
        if self.kind == "olmo2":  # norms over all heads at once
            query = attention.q_norm(query.flatten(1)).view_as(query)
            key = attention.k_norm(key.flatten(1)).view_as(key)
        if self.kind in ("qwen3", "gemma3_text"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        query, key = query.transpose(0, 1), key.transpose(0, 1)
        query, key = self.rotate(layer, query), self.rotate(layer, key)
        key = key.repeat_interleave(self.heads // key.shape[0], dim=0)
        return query * self.scale(), key

    def split(self, outputs):
        """Queries and keys [token, head, head_dim] from what the projections put out [token, features]."""
        size = self.head_dim
        if len(outputs) > 1:
            return tuple(x.unflatten(-1, (-1, size)) for x in outputs[:2])
        fused = outputs[0]
        if self.kind in ("gpt2", "phi3"):
            after = self.heads * size
            width = (fused.shape[-1] - after) // 2
            return fused[:, :after].unflatten(-1, (-1, size)), fused[:, after : after + width].unflatten(-1, (-1, size))
        fused = fused.unflatten(-1, (-1, size))  # rows of head_dim
        index = torch.arange(fused.shape[1])
        queries, keys = self.rows(index)
        return fused[:, queries], fused[:, keys]

    def rows(self, index):
        """Which rows of head_dim numbers are queries, and which keys, in per-head fused projections."""
        if self.kind == "falcon" and self.config.new_decoder_architecture:
            group = self.heads // self.config.num_kv_heads + 2
            return index[index % group < group - 2], index[index % group == group - 2]
        if self.kind == "falcon" and self.config.multi_query:
            return index[:-2], index[-2:-1]
        return index[index % 3 == 0], index[index % 3 == 1]

    def scale(self):
        if self.kind == "gpt_neo":
            return 1.0
        if self.kind.startswith("gemma"):
            return self.config.query_pre_attn_scalar**-0.5
        return self.head_dim**-0.5

    def rotate(self, layer, x):
        if self.kind in ("opt", "gpt2", "xglm", "gpt_neo", "bloom") or getattr(self.config, "alibi", False):
            return x
        if self.kind == "smollm3" and not self.config.no_rope_layers[layer]:
            return x
        rotary = getattr(self.config, "rope_parameters", None) or {}
        if self.kind == "gemma3_text":
            rotary = rotary[self.config.layer_types[layer]]
        if self.kind == "gptj":
            count, theta = self.config.rotary_dim, 10000.0
        else:
            count, theta = int(self.head_dim * rotary.get("partial_rotary_factor", 1.0)), rotary["rope_theta"]
        frequency = theta ** (-torch.arange(0, count, 2, dtype=torch.float64) / count)
        angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequency
        cos, sin = angle.cos().to(x), angle.sin().to(x)
        turned = x.clone()
        if self.kind == "gptj":  # neighbours are a pair
            first, second = slice(0, count, 2), slice(1, count, 2)
        else:  # halves are a pair
            first, second = slice(0, count // 2), slice(count // 2, count)
        turned[..., first] = x[..., first] * cos - x[..., second] * sin
        turned[..., second] = x[..., second] * cos + x[..., first] * sin
        return turned

    def window(self, layer):
        if self.kind == "gpt_neo":
            return self.config.window_size if self.config.attention_layers[layer] == "local" else None
        types = getattr(self.config, "layer_types", None)
        if types is not None:
            return self.config.sliding_window if types[layer] == "sliding_attention" else None
        return getattr(self.config, "sliding_window", None)

    def scores(self, layer, query, key):
        scores = query @ key.transpose(-1, -2)
        cap = getattr(self.config, "attn_logit_softcapping", None)
        if cap is not None:
            scores = torch.tanh(scores / cap) * cap
        tokens = torch.arange(scores.shape[-1])
        distance = tokens[:, None] - tokens
        if self.kind == "bloom":  # Press et al. (2022), for a power of two heads: slopes 2^(-8/H), 2^(-16/H), ...
            assert math.log2(self.heads).is_integer()
            slopes = 2.0 ** (-8 / self.heads * torch.arange(1, self.heads + 1))
            scores = scores - slopes[:, None, None] * distance
        visible = distance >= 0
        if (window := self.window(layer)) is not None:
            visible &= distance < window
        return scores.masked_fill(~visible, float("nan"))


def naive_recording(network, questions, context, at_first_label_token=False, bos=1):
    """What `iclgd.models.record` should give: a dict of tensors, padded with NaN."""
    naive = Naive(network)
    columns = {name: [] for name in ("attention_output", "attention_scores", "context_scores", "query_vectors")}
    columns |= {"block_output": [], "context_mass": []}
    label_scores, next_tokens = [], []
    for tokens, options in questions:
        whole = [*context, *tokens]
        log_probs = naive.run(whole).logits.float().log_softmax(-1)
        next_tokens.append(log_probs[-1])
        label_scores.append(torch.tensor([mean_log_probability(naive, whole, option) for option in options]))
        seen = naive.run([*whole, options[0][0]]) if at_first_label_token else naive.run(whole)
        columns["attention_output"].append(torch.stack([x[-1] for x in seen.added]))
        last = torch.stack([x[:, -1] for x in seen.scores])
        columns["attention_scores"].append(last[..., len(context) :])
        columns["context_scores"].append(last[..., : len(context)].sum(1))
        columns["block_output"].append(torch.stack([x[-1] for x in seen.blocks]))
        weights = torch.stack([x[:, -1] for x in seen.weights])  # of transformers' own eager attention
        columns["context_mass"].append(weights[..., bos : len(context)].sum(-1))
        columns["query_vectors"].append(torch.stack([x[:, -1].flatten() for x in seen.queries]))
    return {
        **{name: stack_ragged(rows) for name, rows in columns.items()},
        "label_scores": stack_ragged(label_scores),
        "next_token_log_probs": torch.stack(next_tokens),
    }


def mean_log_probability(naive, tokens, option):
    log_probs = naive.run([*tokens, *option]).logits.float().log_softmax(-1)
    start = len(tokens) - 1
    return sum(log_probs[start + i, token].item() for i, token in enumerate(option)) / len(option)


def stack_ragged(rows):
    """Stacked, padded at the end of the last axis with NaN."""
    width = max(row.shape[-1] for row in rows)
    return torch.stack([nn.functional.pad(row, (0, width - row.shape[-1]), value=float("nan")) for row in rows]).float()
