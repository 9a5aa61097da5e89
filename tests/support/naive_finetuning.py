"""An independent, slow reference of finetuning: autograd on whole or truncated models with their own loss."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import torch

from naive import PARTS, Naive


class NaiveFinetuning:
    """Plain SGD on keys and values of every layer by autograd on whole models and their own loss."""

    def __init__(self, network):
        self.network = copy.deepcopy(network)
        self.network.requires_grad_(False)
        self.naive = Naive(self.network)

    def parameters(self):
        """(layer, name, parameter, mask of what is trained) of every key and value projection."""
        for layer, block in enumerate(self.naive.blocks):
            for projection in self.naive.projections[-2:]:
                module = block.get_submodule(f"{self.naive.attention}.{projection}")
                for name, parameter in module.named_parameters():
                    yield layer, f"{projection}.{name}", parameter, self.mask(parameter)

    def mask(self, parameter):
        """1 where keys and values lie."""
        naive, mask = self.naive, torch.ones_like(parameter)
        if len(naive.projections) > 1:
            return mask
        if naive.kind == "gpt2":
            mask[..., : naive.heads * naive.head_dim] = 0
        elif naive.kind == "phi3":
            mask[: naive.heads * naive.head_dim] = 0
        else:
            rows = torch.arange(len(parameter)) // naive.head_dim
            queries, _ = naive.rows(rows.unique())
            mask[torch.isin(rows, queries)] = 0
        return mask

    def truncated(self, layers):
        """Within the block, the network has only its first blocks."""
        owner, _, name = PARTS[self.naive.kind][0].rpartition(".")
        return _truncated(self.network, self.network.get_submodule(owner), name, layers)

    def gradients(self, objective, tokens, unpredicted, exit_layer=None, exit_attention=None):
        """One gradient a parameter, queries' part zeroed."""
        items = list(self.parameters())
        depth = len(self.naive.blocks)
        if objective == "gd":
            return self.masked(items, self.loss_gradient([p for _, _, p, _ in items], tokens, unpredicted, depth))
        if objective == "short_circuit":
            inside = [p for layer, _, p, _ in items if layer <= exit_layer]
            found = self.loss_gradient(inside, tokens, unpredicted, exit_layer + 1)
            return self.masked(
                items, [*found, *(torch.zeros_like(p) for layer, _, p, _ in items if layer > exit_layer)]
            )
        found = []
        for layer in range(depth):
            own = [p for at, _, p, _ in items if at == layer]
            found += self.loss_gradient(own, tokens, unpredicted, layer + 1, exit_attention)
        return self.masked(items, found)

    def masked(self, items, gradients):
        return [gradient * mask for (*_, mask), gradient in zip(items, gradients, strict=True)]

    def loss_gradient(self, parameters, tokens, unpredicted, depth, exit_attention=None):
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            loss = self.loss(tokens, unpredicted, depth, exit_attention)
            return list(torch.autograd.grad(loss, parameters))
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)

    def loss(self, tokens, unpredicted, depth, exit_attention=None):
        ids = torch.tensor([tokens])
        labels = ids.clone()
        labels[:, :unpredicted] = -100
        with self.truncated(depth):
            if exit_attention is None:
                return self.network(input_ids=ids, labels=labels, use_cache=False).loss
            # The last block is bypassed: only what its attention adds goes on.
            kept = {}
            module = self.naive.blocks[depth - 1].get_submodule(exit_attention)
            first = module.register_forward_hook(lambda _m, _a, output: kept.update(added=output))

            def replace(_module, _args, output):
                return (kept["added"], *output[1:]) if isinstance(output, tuple) else kept["added"]

            second = self.naive.blocks[depth - 1].register_forward_hook(replace)
            try:
                return self.network(input_ids=ids, labels=labels, use_cache=False).loss
            finally:
                first.remove()
                second.remove()

    def step(self, gradients, lr):
        with torch.no_grad():
            for (_, _, parameter, _), gradient in zip(self.parameters(), gradients, strict=True):
                parameter -= lr * gradient


@contextmanager
def _truncated(network, owner, name, layers):
    whole, depth = getattr(owner, name), network.config.num_hidden_layers
    setattr(owner, name, whole[:layers])
    network.config.num_hidden_layers = layers
    try:
        yield
    finally:
        setattr(owner, name, whole)
        network.config.num_hidden_layers = depth
