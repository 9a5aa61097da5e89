"""The loop in which the model learns from the demonstrations, and signs that it went out of control.

The weights are put back when it is over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from statistics import mean
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iclgd.common.records import PromptSet, Trace
from iclgd.common.seeding import torch_stream
from iclgd.config import Config, FinetuneConfig
from iclgd.config.bounds import parse_layers
from iclgd.config.enumerations import Batch, Direction, Exit, LossOn, StepPer, Trainable
from iclgd.mechanisms.bench import AfterStep, Bench
from iclgd.mechanisms.objectives import (
    Objective,
    ObjectiveOptions,
    TrainingSequence,
    lcgd,
    refuse_unreached,
    resolve_objective,
)
from iclgd.mechanisms.optimisers import LowRank, optimiser
from iclgd.mechanisms.parameters import Trained, layer_norms, trainable, trained_parameters, update_ranks
from iclgd.models.anatomy import LanguageModel

T = TypeVar("T")
FAR_ABOVE = 1.5  # SmolLM2, SST-2, 32 shots, gd: 0.7 at rates of 0.003 and 0.01, 1.6 at 0.03, where scores are chaotic
FEWEST_STEPS = 4


def training_sequences(prompts: PromptSet, loss_on: LossOn, step: StepPer) -> list[TrainingSequence]:
    """What the model is trained on, one entry a step: `bos + demonstration`, in order.

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


def gradient_descent(bench: Bench) -> AbstractContextManager[Trace]:
    """Finetuning on the demonstrations, with the gradients of `finetune.objective` (see `finetuned`)."""
    bench.refuse_blind()
    steps = len(bench.prompts.training_items()) * bench.options.epochs
    return finetuned(
        bench.model, bench.prompts, bench.config, bench.start_steps(steps), bench.measure_ranks, bench.noise
    )


@contextmanager
def finetuned(
    model: LanguageModel,
    prompts: PromptSet,
    config: Config,
    after_step: AfterStep = lambda _: None,
    ranks: bool = False,
    noise: str = "update noise",
) -> Iterator[Trace]:
    """Within the block, the model is finetuned; afterwards its weights are, bit for bit, what they were.

    Reference protocol (Deutch et al. 2024, app. A): plain SGD, no momentum, no clipping, batch size 1, in order. The
    ranks of changes cost a decomposition of each; `noise` names the random stream of `finetune.noise`.

    Yields:
        What happened; `diverged_at` is set if a loss or gradient was not finite, and training stopped there.
    """
    finetune = config.finetune
    trained = trained_parameters(model, finetune.trainable, parse_layers(finetune.layers))
    sequences = training_sequences(prompts, finetune.loss_on, config.protocol.step)
    batches = [sequences] if finetune.batch is Batch.full else [[sequence] for sequence in sequences]
    with trainable(trained) as before:
        loop = Loop(model, config, trained, before, ranks)
        trace = loop.run(batches * finetune.epochs, loop.gradient, after_step)
        if finetune.noise:
            trace = loop.with_noise(trace, noise)
        steps = [batch[0].demonstration if len(batch) == 1 else -1 for batch in batches] * finetune.epochs
        yield replace(trace, demonstrations=tuple(steps[: len(trace.losses)]))


@dataclass
class Loop:
    """Gradients in, steps out, and a record of both."""

    model: LanguageModel
    config: Config
    trained: list[Trained]
    before: list[Tensor]
    ranks: bool = False

    def run(
        self, batches: Sequence[T], gradient_of: Callable[[T], tuple[float, list[Tensor]]], after_step: AfterStep
    ) -> Trace:
        """A step for each batch, until one is not finite."""
        finetune = self.config.finetune
        # Named after the variant, so that two variants of random directions differ.
        self.noise = torch_stream(finetune.name.replace("_", " "), self.config.seed)
        self.low_rank = LowRank(self.trained, finetune.rank, self.config.seed) if finetune.rank else None
        self.leaves = [] if self.low_rank else [_leaf(item) for item in self.trained]
        leaves = self.low_rank.leaves if self.low_rank else self.leaves
        learner, layers = optimiser(finetune.optimizer, leaves, finetune.lr), [item.layer for item in self.trained]
        history: list[float] = []
        norms: list[Tensor] = []
        diverged_at = None
        for step, batch in enumerate(batches):
            loss, gradients = gradient_of(batch)
            history.append(loss)
            norms.append(layer_norms(self.trained, gradients, self.model.layers))
            if not math.isfinite(loss) or not norms[-1][layers].isfinite().all():
                diverged_at = step
                break
            self._step(learner, gradients)
            after_step(step + 1)
        trace = self._trace(history, norms, diverged_at)
        if diverged_at is not None or not suspicious(history):
            return trace
        return replace(trace, untouched_loss=self._untouched(batches[-last_steps(len(history)) :], gradient_of))

    def _untouched(self, batches: Sequence[T], gradient_of: Callable[[T], tuple[float, list[Tensor]]]) -> float:
        """The mean loss of the model as it was; its weights stay as they are now."""
        now = [item.parameter.detach().clone() for item in self.trained]
        self._put(self.before)
        loss = mean(gradient_of(batch)[0] for batch in batches)
        self._put(now)
        return loss

    @torch.no_grad()
    def _put(self, weights: Sequence[Tensor]) -> None:
        for item, tensor in zip(self.trained, weights, strict=True):
            item.parameter.copy_(tensor)

    @torch.no_grad()
    def with_noise(self, trace: Trace, name: str) -> Trace:
        """Add noise to every trained tensor's whole change, `finetune.noise` times as long as the change."""
        stream = torch_stream(name, self.config.seed)
        for item, original in zip(self.trained, self.before, strict=True):
            part, was = item.part(item.parameter.data), item.part(original)
            noise = torch.randn(part.shape, generator=stream).to(part)
            length = self.config.finetune.noise * (part - was).norm() / noise.norm()
            item.write(item.parameter.data, part + noise * length)
        after = self._trace(trace.losses.tolist(), list(trace.gradient_norms), trace.diverged_at)
        return replace(trace, update_norms=after.update_norms, update_ranks=after.update_ranks)

    def _step(self, learner: torch.optim.Optimizer, gradients: Sequence[Tensor]) -> None:
        if self.low_rank:
            self.low_rank.take(gradients)
        else:
            for item, leaf, gradient in zip(self.trained, self.leaves, gradients, strict=True):
                leaf.grad = (item.part(gradient) if item.rows else gradient).to(leaf)
        learner.step()
        learner.zero_grad(set_to_none=True)
        if self.low_rank:
            self.low_rank.write()
        else:
            for item, leaf in zip(self.trained, self.leaves, strict=True):
                if leaf is not item.parameter:
                    item.write(item.parameter.data, leaf.data)

    def gradient(self, batch: Sequence[TrainingSequence]) -> tuple[float, list[Tensor]]:
        """The objective's gradient on some demonstrations, its norm or direction replaced where the variant says so."""
        finetune = self.config.finetune
        loss, gradients = self._of(resolve_objective(finetune.objective), batch)
        if finetune.norm_of is not None:
            _, others = self._of(resolve_objective(finetune.norm_of, "finetune.norm_of"), batch)
            self._rescale(gradients, layer_norms(self.trained, others, self.model.layers))
        if finetune.direction is Direction.random:
            for item, gradient in zip(self.trained, gradients, strict=True):
                own = item.part(gradient)
                drawn = torch.randn(own.shape, generator=self.noise)
                for matrix, random in zip(item.matrices(own), item.matrices(drawn), strict=True):
                    random.mul_((torch.linalg.vector_norm(matrix) / torch.linalg.vector_norm(random)).to(random))
                item.write(gradient, drawn)
        return loss, gradients

    def _rescale(self, gradients: Sequence[Tensor], wanted: Tensor) -> None:
        have = layer_norms(self.trained, gradients, self.model.layers)
        for item, gradient in zip(self.trained, gradients, strict=True):
            if have[item.layer] > 0:
                gradient.mul_(float(wanted[item.layer] / have[item.layer]))

    def _of(self, objective: Objective, batch: Sequence[TrainingSequence]) -> tuple[float, list[Tensor]]:
        layers = tuple(sorted({item.layer for item in self.trained}))
        options = ObjectiveOptions(layers, self.config.protocol.exit, self.config.finetune.exit_layer)
        total = sum(objective(self.model, sequence, options) for sequence in batch) / len(batch)
        return total, self.collect(len(batch))

    def collect(self, count: int = 1) -> list[Tensor]:
        """The gradients that backward passes have left, over `count`, of the trained numbers only."""
        gradients = []
        for item in self.trained:
            gradient = item.parameter.grad
            item.parameter.grad = None
            if gradient is None:  # a layer that the loss does not depend on, such as one above a short circuit
                gradient = torch.zeros_like(item.parameter)
            elif item.rows:
                whole, gradient = gradient, torch.zeros_like(gradient)
                item.write(gradient, item.part(whole))
            gradients.append(gradient.div_(count) if count > 1 else gradient)
        return gradients

    def _trace(self, history: list[float], norms: list[Tensor], diverged_at: int | None) -> Trace:
        pairs = zip(self.trained, self.before, strict=True)
        changes = [item.parameter.detach().float() - original.float() for item, original in pairs]
        finite = diverged_at is None
        undefined = torch.full((self.model.layers,), float("nan"))
        return Trace(
            losses=torch.tensor(history),
            gradient_norms=torch.stack(norms) if norms else torch.empty(0, self.model.layers),
            update_norms=layer_norms(self.trained, changes, self.model.layers) if finite else undefined,
            update_ranks=update_ranks(self.trained, self.before, self.model.layers)
            if finite and self.ranks
            else undefined,
            diverged_at=diverged_at,
        )


def check_objectives(finetune: FinetuneConfig, exit_at: Exit) -> None:
    """Refuse objectives that do not exist and losses that reach nothing, before a model loads."""
    objectives = [resolve_objective(finetune.objective)]
    if finetune.norm_of is not None:
        objectives.append(resolve_objective(finetune.norm_of, "finetune.norm_of"))
    chosen = finetune.trainable if isinstance(finetune.trainable, list) else [finetune.trainable]
    if lcgd in objectives and exit_at is Exit.attention_output and set(chosen) == {Trainable.mlp}:
        refuse_unreached()


def _leaf(item: Trained) -> nn.Parameter:
    """What the optimiser changes: the parameter itself, or a copy that it may change as a whole.

    Of a fused projection, only what is trained may lose weight to decay; of a half parameter, small steps have to add
    up in float32.
    """
    parameter, half = item.parameter, item.parameter.dtype in (torch.float16, torch.bfloat16)
    if not item.rows and not half:
        return parameter
    part = item.part(parameter.detach())
    return nn.Parameter(part.float() if half else part.clone())


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
