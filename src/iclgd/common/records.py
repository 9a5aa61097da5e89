"""What passes between the rooms: frozen records, tensors named by their axes.

Axes everywhere: `example` a query, `layer` a block from the input side, `head` a query head, `key` a token of the
query itself, `d_model` the residual stream, `label` a label option, `context` a token of the demonstrations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Item:
    """A demonstration or a query: its text and its tokens.

    Attributes:
        text: the filled template; a demonstration's ends with a space and its label word.
        token_ids: tokens of `text`, without bos or separator.
        label: index of the right label option.
        label_length: how many of the last tokens are the label's; 0 for a query.
        options: for multiple choice, the token ids of this query's own options; None where the task's labels serve.
        decoded: what the tokens say, where that is not the text.
        where: the file and line that it comes from, for messages.
    """

    text: str
    token_ids: tuple[int, ...]
    label: int
    label_length: int = 0
    options: tuple[tuple[int, ...], ...] | None = None
    decoded: str | None = field(default=None, compare=False)
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class PromptSet:
    """Every token that a run shows to the model; one set of demonstrations serves ICL and finetuning.

    Attributes:
        bos: what stands first in every sequence: the model's bos, and the task's description if it has one.
        in_context: which demonstrations stand in the ICL context, in order. All of them, unless the protocol drops
            overlong ones from ICL only, as the published code did.
        calibration: queries of the train split, neither demonstrations nor measured; for the static patch.
        training: what finetuning sees where that is not the demonstrations (controls: shuffled labels, another task).
        notes: what a reader of the numbers should know about rows, labels and tokens, a sentence each.
    """

    bos: tuple[int, ...]
    separator: tuple[int, ...]
    demonstrations: tuple[Item, ...]
    queries: tuple[Item, ...]
    label_words: tuple[str, ...]
    label_token_ids: tuple[tuple[int, ...], ...]
    in_context: tuple[int, ...]
    training: tuple[Item, ...] | None = None
    calibration: tuple[Item, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def context(self) -> tuple[int, ...]:
        """The tokens before the query under ICL: bos, then each demonstration and a separator."""
        tokens = list(self.bos)
        for index in self.in_context:
            tokens += [*self.demonstrations[index].token_ids, *self.separator]
        return tuple(tokens)

    def context_spans(self) -> tuple[tuple[int, int], ...]:
        """Where each in-context demonstration lies in `context()`, as (start, end) without its separator."""
        spans, start = [], len(self.bos)
        for index in self.in_context:
            end = start + len(self.demonstrations[index].token_ids)
            spans.append((start, end))
            start = end + len(self.separator)
        return tuple(spans)

    def training_items(self) -> tuple[Item, ...]:
        """What finetuning trains on, in order."""
        return self.demonstrations if self.training is None else self.training

    def options(self, query: Item) -> tuple[tuple[int, ...], ...]:
        """The label options of a query: its own, or the task's."""
        return self.label_token_ids if query.options is None else query.options


@dataclass(frozen=True)
class Recording:
    """What one setting (zsl, icl or ft) did at the last token of every query, in float32 on the CPU.

    Attributes:
        attention_output: what the attention block adds to the residual stream.
        attention_scores: scaled dot products before softmax with the query's own tokens; NaN where a query is shorter
            than the longest, and where a local layer cannot see the token. ALiBi's biases count, from the last token.
        label_scores: mean log-probability of each option's tokens, in nats; NaN where a query has fewer options.
        context_scores: scaled dot products before softmax with the tokens of the context, summed over heads.
        query_vectors: attention queries of all heads, scaled as in attention.
        next_token_log_probs: over the whole vocabulary, at the token that predicts the label.
        option_is_greedy: 1 where each token of an option is the likeliest after those before it, else 0; NaN as above.
        block_output: the residual stream after each block.
        context_mass: share of each head's attention that goes to the context, bos left out.
        losses: training losses of the variant that left this recording, where that variant plays ICL's part.
        untouched_loss: that variant's `untouched_loss` (see `Trace`), where a variant plays ICL's part.
    """

    attention_output: Float[Tensor, "example layer d_model"]
    attention_scores: Float[Tensor, "example layer head key"]
    label_scores: Float[Tensor, "example label"]
    context_scores: Float[Tensor, "example layer context"] | None = None
    query_vectors: Float[Tensor, "example layer heads_x_head_dim"] | None = None
    next_token_log_probs: Float[Tensor, "example vocabulary"] | None = None
    option_is_greedy: Float[Tensor, "example label"] | None = None
    block_output: Float[Tensor, "example layer d_model"] | None = None
    context_mass: Float[Tensor, "example layer head"] | None = None
    losses: Float[Tensor, " step"] | None = None
    untouched_loss: Float[Tensor, ""] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What was taken, by name."""
        every = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: tensor for name, tensor in every.items() if tensor is not None}


_OF_MECHANISMS = ("losses", "untouched_loss")
# What is taken only where a score names it.
OPTIONAL_RECORDS = tuple(
    field.name for field in fields(Recording) if field.default is None and field.name not in _OF_MECHANISMS
)


@dataclass(frozen=True)
class Trace:
    """What happened while finetuning.

    Attributes:
        losses: training loss of each step, in nats per predicted token.
        gradient_norms: l2 norm of the trained parameters' gradient; NaN in layers that are not trained.
        update_norms: Frobenius norm of the whole change of each layer's trained weights.
        demonstrations: which demonstration each step was for; -1 where a step is for several.
        diverged_at: the step whose loss or gradient was not finite, or None.
        untouched_loss: mean loss of the untouched model on what the last quarter of the steps saw; NaN where training
            shows no sign of trouble (`mechanisms.stability`).
    """

    losses: Float[Tensor, " step"]
    gradient_norms: Float[Tensor, "step layer"]
    update_norms: Float[Tensor, " layer"]
    demonstrations: tuple[int, ...] = ()
    diverged_at: int | None = None
    untouched_loss: float = math.nan

    @classmethod
    def without_steps(cls, layers: int) -> Trace:
        """The trace of what changes no weights."""
        return cls(torch.empty(0), torch.empty(0, layers), torch.zeros(layers))


def axes_of(record: type) -> dict[str, str]:
    """The axes of each tensor of a record, such as "example layer d_model"."""
    annotations = {each.name: re.search(r"['\"]([^'\"]*)['\"]", str(each.type)) for each in fields(record)}
    return {name: " ".join(axes[1].split()) for name, axes in annotations.items() if axes}


@dataclass(frozen=True)
class Evidence:
    """All that metrics may look at. A metric names its inputs by path, such as `icl.attention_output`.

    Attributes:
        recordings: by setting: zsl, icl, ft, and whatever else a run records (`other`, `reordered`, ...).
        trace: what finetuning did.
        facts: further tensors by name, such as `labels` (the right option of every query).
    """

    recordings: Mapping[str, Recording]
    trace: Trace
    facts: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """What was recorded, as SETTING.FIELD."""
        pairs = [(setting, *pair) for setting, one in self.recordings.items() for pair in one.tensors().items()]
        return {f"{setting}.{name}": tensor for setting, name, tensor in pairs}

    def lookup(self, path: str) -> Any:
        """The value at a dotted path: `SETTING.FIELD`, `trace.FIELD` or the name of a fact.

        Raises:
            KeyError: nothing is there; the message lists what could have been named.
        """
        head, _, tail = path.partition(".")
        if not tail and head in self.facts:
            return self.facts[head]
        owner = self.trace if head == "trace" else self.recordings.get(head)
        value = getattr(owner, tail, None) if tail and owner is not None else None
        if value is None:
            names = [*self.recordings, "trace", *self.facts]
            raise KeyError(f"no input {path!r} was recorded; the first word can be one of {', '.join(names)}")
        return value


@dataclass(frozen=True)
class Score:
    """One metric's values, unaveraged, NaN where undefined.

    Attributes:
        values: a tensor whose axes are named by `axes`.
        axes: such as ("example", "layer").
    """

    values: Tensor
    axes: tuple[str, ...]
