"""The loop in which the model learns from the demonstrations, and signs that it went out of control.

The weights are put back when it is over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import mean
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.common.records import PromptSet, Trace
from iclgd.common.seeding import torch_stream
from iclgd.config import Config
from iclgd.config.bounds import parse_layers
from iclgd.config.enumerations import Batch, Direction, LossOn, StepPer
from iclgd.mechanisms.bench import AfterStep, Bench
from iclgd.mechanisms.objectives import (
    Objective,
    ObjectiveOptions,
    TrainingSequence,
    resolve_objective,
)
from iclgd.mechanisms.optimisers import OPTIMISERS, leaves_of
from iclgd.mechanisms.parameters import Trained, layer_norms, trainable, trained_parameters
from iclgd.models.anatomy import LanguageModel

T = TypeVar("T")
FAR_ABOVE = 1.5  # SmolLM2, SST-2, 32 shots, gd: 0.7 at rates of 0.003 and 0.01, 1.6 at 0.03, where scores are chaotic
FEWEST_STEPS = 4


def training_sequences(prompts: PromptSet, loss_on: LossOn, step: StepPer) -> list[TrainingSequence]:
    """What the model is trained on, one sequence a step: `bos + demonstration`, in order.

    With a step for each token, every predicted token makes a sequence of its own that ends with it (the paper's text;
    its code takes a step for each demonstration).
    """
    sequences = []
    for number, item in enumerate(prompts.training_items()):
        token_ids = torch.tensor([*prompts.bos, *item.token_ids])
        predicted = torch.ones(len(token_ids), dtype=torch.bool)
        predicted[: max(1, len(prompts.bos))] = False
        if loss_on is LossOn.label:
            predicted[: len(token_ids) - item.label_length] = False
        if step is StepPer.demonstration:
            sequences.append(TrainingSequence(token_ids, predicted, number))
            continue
        for end in predicted.nonzero().squeeze(1).tolist():
            last = torch.zeros(end + 1, dtype=torch.bool)
            last[end] = True
            sequences.append(TrainingSequence(token_ids[: end + 1], last, number))
    return sequences


@contextmanager
def gradient_descent(bench: Bench) -> Iterator[Trace]:
    """Finetuning on the demonstrations, with the gradients of `finetune.objective`.

    Reference protocol (Deutch et al. 2024, app. A): plain SGD, no momentum, no clipping, batch size 1, in order.

    Yields:
        What happened; `diverged_at` is set if a loss or gradient was not finite, and training stopped there.
    """
    bench.refuse_blind()
    model, config, finetune = bench.model, bench.config, bench.options
    trained = trained_parameters(model, finetune.trainable, parse_layers(finetune.layers))
    sequences = training_sequences(bench.prompts, finetune.loss_on, config.protocol.step)
    batches = [sequences] if finetune.batch is Batch.full else [[sequence] for sequence in sequences]
    batches *= finetune.epochs
    with trainable(trained) as before:
        gradient_of = objective_gradient(model, config, trained)
        trace = train(model, config, trained, before, batches, gradient_of, bench.start_steps(len(batches)))
        numbers = tuple(batch[0].demonstration if len(batch) == 1 else -1 for batch in batches)
        trace = with_changes(trace, trained, before)
        yield replace(trace, demonstrations=numbers[: len(trace.losses)])


def train(
    model: LanguageModel,
    config: Config,
    trained: Sequence[Trained],
    before: Sequence[Tensor],
    batches: Sequence[T],
    gradient_of: Callable[[T], tuple[float, list[Tensor]]],
    after_step: AfterStep,
    norms_of: Callable[[Sequence[Trained], Sequence[Tensor], int], Float[Tensor, " layer"]] = layer_norms,
) -> Trace:
    """Take a step of the optimiser for each batch, until a loss or gradient is not finite.

    Args:
        model: the language model.
        config: the run's.
        trained: what is trained.
        before: what it was.
        batches: what each step is for.
        gradient_of: gives a batch's loss, and the gradient of each trained parameter.
        after_step: called after each step.
        norms_of: the norms of gradients by layer.

    Returns:
        A trace of the steps, without what has become of the weights.
    """
    leaves = leaves_of(trained, config.finetune.rank, config.seed)
    learned = [parameter for leaf in leaves.values() for parameter in leaf.parameters]
    learner = OPTIMISERS[config.finetune.optimizer](learned, lr=config.finetune.lr)
    layers = [item.layer for item in trained]
    losses: list[float] = []
    norms: list[Tensor] = []
    diverged_at = None
    for number, batch in enumerate(batches):
        loss, gradients = gradient_of(batch)
        losses.append(loss)
        norms.append(norms_of(trained, gradients, model.layers))
        if not math.isfinite(loss) or not norms[-1][layers].isfinite().all():
            diverged_at = number
            break
        for index, leaf in leaves.items():
            leaf.take(gradients[index])
        learner.step()
        learner.zero_grad(set_to_none=True)
        for leaf in leaves.values():
            leaf.write()
        after_step()
    untouched_loss = math.nan
    if diverged_at is None and suspicious(losses):
        after = [item.parameter.detach().clone() for item in trained]
        _put(trained, before)
        untouched_loss = mean(gradient_of(batch)[0] for batch in batches[-last_steps(len(losses)) :])
        _put(trained, after)
    undefined = torch.full((model.layers,), torch.nan)
    gradient_norms = torch.stack(norms) if norms else torch.empty(0, model.layers)
    return Trace(torch.tensor(losses), gradient_norms, undefined, (), diverged_at, untouched_loss)


@torch.no_grad()
def _put(trained: Sequence[Trained], weights: Sequence[Tensor]) -> None:
    for item, tensor in zip(trained, weights, strict=True):
        item.parameter.copy_(tensor)


def with_changes(trace: Trace, trained: Sequence[Trained], before: Sequence[Tensor]) -> Trace:
    """The trace with the norms of each layer's whole change, which are undefined after divergence."""
    if trace.diverged_at is not None:
        return trace
    changes = [item.parameter.detach().float() - was.float() for item, was in zip(trained, before, strict=True)]
    return replace(trace, update_norms=layer_norms(trained, changes, len(trace.update_norms)))


def objective_gradient(
    model: LanguageModel, config: Config, trained: Sequence[Trained]
) -> Callable[[Sequence[TrainingSequence]], tuple[float, list[Tensor]]]:
    """The loss and gradient of `finetune.objective` on some demonstrations.

    The gradient's norm or direction is another where the variant says so.
    """
    finetune, layers = config.finetune, tuple(sorted({item.layer for item in trained}))
    options = ObjectiveOptions(layers, config.protocol.exit, finetune.exit_layer)
    # Named after the variant, so that two variants of random directions differ.
    noise = torch_stream(finetune.name.replace("_", " "), config.seed)

    def of(objective: Objective, batch: Sequence[TrainingSequence]) -> tuple[float, list[Tensor]]:
        loss = sum(objective(model, sequence, options) for sequence in batch) / len(batch)
        return loss, collected(trained, len(batch))

    def gradient(batch: Sequence[TrainingSequence]) -> tuple[float, list[Tensor]]:
        loss, gradients = of(resolve_objective(finetune.objective), batch)
        if finetune.norm_of is not None:
            _, others = of(resolve_objective(finetune.norm_of, "finetune.norm_of"), batch)
            wanted, have = (layer_norms(trained, each, model.layers) for each in (others, gradients))
            for item, own in zip(trained, gradients, strict=True):
                if have[item.layer] > 0:
                    own.mul_(float(wanted[item.layer] / have[item.layer]))
        if finetune.direction is Direction.random:
            for item, whole in zip(trained, gradients, strict=True):
                item.write(whole, _random_direction(item, item.part(whole), noise))
        return loss, gradients

    return gradient


def _random_direction(item: Trained, gradient: Tensor, noise: torch.Generator) -> Tensor:
    """Gaussian directions, in each matrix as long as the gradient."""
    drawn = torch.randn(gradient.shape, generator=noise)
    for matrix, random in zip(item.matrices(gradient), item.matrices(drawn), strict=True):
        random.mul_((torch.linalg.vector_norm(matrix) / torch.linalg.vector_norm(random)).to(random))
    return drawn


def collected(trained: Sequence[Trained], count: int = 1) -> list[Tensor]:
    """The gradients that backward passes have left, over `count`, of the trained numbers only."""
    gradients = []
    for item in trained:
        gradient = item.parameter.grad
        item.parameter.grad = None
        if gradient is None:  # a layer that the loss does not depend on, such as one above a short circuit
            gradient = torch.zeros_like(item.parameter)
        elif item.rows:
            whole, gradient = gradient, torch.zeros_like(gradient)
            item.write(gradient, item.part(whole))
        gradients.append(gradient.div_(count) if count > 1 else gradient)
    return gradients


def last_steps(count: int) -> int:
    """How many of so many steps count as the end: a quarter, two at least."""
    return max(2, count // 4)


def suspicious(losses: Sequence[float]) -> bool:
    """Whether finetuning may have gone out of control: the loss ends far above that of its first or second step.

    Demonstrations differ, so this is no more than a reason to ask what the untouched model loses at those of the end.
    """
    return len(losses) >= FEWEST_STEPS and mean(losses[-last_steps(len(losses)) :]) > FAR_ABOVE * min(losses[:2])


def instability(losses: Float[Tensor, " step"], untouched: float) -> str | None:
    """Why finetuning counts as unstable by its losses, in words; None if it does not.

    It does where the mean loss of the last quarter of the steps (two at least) is more than `FAR_ABOVE` times what the
    model lost on the same demonstrations before it was finetuned (`untouched`; NaN where the losses were not
    `suspicious`). Nothing is said of fewer than `FEWEST_STEPS` steps.
    """
    if not suspicious(losses.tolist()):
        return None
    end = losses[-last_steps(len(losses)) :].double().mean().item()
    if not end > FAR_ABOVE * untouched:
        return None
    return f"the loss ends at {end:.3g}, {end / untouched:.1f} times that of the untouched model ({untouched:.3g})"
