"""The ceiling of likeness to ICL: parameters are trained to reproduce ICL's own outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.common.records import PromptSet, Trace
from iclgd.common.seeding import numpy_stream
from iclgd.config import Config
from iclgd.config.bounds import parse_layers
from iclgd.mechanisms.finetuning import AfterStep, Loop
from iclgd.mechanisms.parameters import trainable, trained_parameters
from iclgd.models.attention import AttentionPass
from iclgd.models.forward import forward, padded
from iclgd.models.language_model import LanguageModel
from iclgd.models.offload import read_again
from iclgd.models.recorder import added_outputs

_BATCH = 8  # queries a step


@contextmanager
def activation_matched(
    model: LanguageModel,
    prompts: PromptSet,
    target: Float[Tensor, "example layer d_model"],
    config: Config,
    after_step: AfterStep = lambda _: None,
    ranks: bool = False,
) -> Iterator[Trace]:
    """Within the block, the model without context is trained to give ICL's attention outputs on the queries themselves.

    The loss is, over layers, the mean squared distance to `target` relative to the target's mean square. It follows
    the idea of IA2 (arXiv 2509.22621), but sees the very queries that are measured: a ceiling, not a method. Of
    `config.finetune`, `lr`, `epochs`, `optimizer`, `layers`, `trainable` and `rank` hold.

    Yields:
        What happened; the weights are put back afterwards.
    """
    finetune = config.finetune
    trained = trained_parameters(model, finetune.trainable, parse_layers(finetune.layers))
    order = numpy_stream("activation match", config.seed)
    batches = []
    for _ in range(finetune.epochs):
        shuffled = order.permutation(len(prompts.queries)).tolist()
        batches += [shuffled[start : start + _BATCH] for start in range(0, len(shuffled), _BATCH)]
    scale = target.square().mean(dim=(0, 2)).clamp(min=torch.finfo(torch.float32).tiny)
    with trainable(trained) as before:
        loop = Loop(model, config, trained, before, ranks)

        def gradient(batch: list[int]) -> tuple[float, list[Tensor]]:
            loss = _distance(model, prompts, batch, target[batch], scale)
            loss.backward()
            return loss.item(), loop.collect()

        yield loop.run(batches, gradient, after_step)


def _distance(
    model: LanguageModel, prompts: PromptSet, batch: list[int], target: Tensor, scale: Tensor
) -> Float[Tensor, ""]:
    rows = [(*prompts.bos, *prompts.queries[i].token_ids) for i in batch]
    now = AttentionPass(lengths=torch.tensor([len(row) for row in rows], device=model.device))
    with torch.enable_grad(), read_again(model.network), added_outputs(model, now) as added:
        forward(model, padded(rows), now)
        home = added[model.layers - 1].device  # blocks may lie on several devices
        found = torch.stack([added[layer].to(home) for layer in range(model.layers)], dim=1).float()
        return ((found - target.to(found)).square().mean(dim=(0, 2)) / scale.to(found)).mean()
