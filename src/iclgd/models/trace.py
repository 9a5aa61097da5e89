"""What was seen of a traced pass, and the equations between its tensors by which parts are found and proven."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from iclgd.models.attention_pass import Reach
from iclgd.models.projections import Projection

_ROUNDINGS = 4  # how many roundings of each term a sum may be off by


@dataclass
class Call:
    """One call of a module."""

    name: str
    module: nn.Module
    start: int  # by a clock that counts beginnings and ends of calls
    inputs: list[Tensor]  # each [token, size]
    outputs: list[Tensor] = field(default_factory=list)  # each [token, size]
    end: int = 0
    attends: bool = False  # whether what it puts out depends on its block's attention

    @property
    def output(self) -> Tensor | None:
        """The first tensor that it put out."""
        return self.outputs[0] if self.outputs else None


@dataclass
class Attention:
    """One computation of attention, inside the module that made it."""

    module: nn.Module
    name: str
    time: int
    query: Float[Tensor, "head token head_dim"]
    key: Float[Tensor, "key_value_head token head_dim"]
    scale: float  # of the product of a query and a key
    projections: dict[str, tuple[Projection, ...]]  # what makes `q`, `k` and `v`
    value: Tensor = field(default_factory=lambda: torch.empty(0))  # key_value_head token value_dim
    output: Tensor = field(default_factory=lambda: torch.empty(0))  # token head value_dim
    reach: Reach = field(default_factory=Reach)  # how far tokens see
    sink: Float[Tensor, " head"] | None = None  # a score that takes its share of attention without a value
    biased: bool = False  # whether something is added to a token's score with itself (ALiBi)


@dataclass
class Trace:
    """What happened in one pass."""

    tokens: Int[Tensor, " token"]
    interface: bool  # whether attention is computed through transformers' AttentionInterface
    calls: list[Call]  # in the order of their ends
    attentions: list[Attention]
    logits: Float[Tensor, "position vocabulary"]

    def block(self, module: nn.Module) -> BlockTrace:
        """What happened in one block."""
        call = next(call for call in self.calls if call.module is module)
        inner = [each for each in self.calls if call.start < each.start and each.end < call.end]
        return BlockTrace(call, inner, [each for each in self.attentions if call.start < each.time < call.end])


@dataclass(frozen=True)
class BlockTrace:
    """What happened in one block."""

    call: Call
    inner: list[Call]  # calls of its modules, in the order of their ends
    attentions: list[Attention]

    @property
    def attention(self) -> Attention | None:
        """Its softmax attention; None where it has none."""
        return self.attentions[0] if self.attentions else None

    @cached_property
    def output(self) -> Float[Tensor, "token d_model"]:
        """What it put out."""
        return self.call.outputs[0]

    @cached_property
    def input(self) -> Float[Tensor, "token d_model"]:
        """The hidden states that it read."""
        return next(tensor for tensor in self.call.inputs if tensor.shape == self.output.shape)

    def path(self, call: Call) -> str:
        """A module's path from the block."""
        return call.name.removeprefix(f"{self.call.name}.")

    def call_of(self, module: nn.Module) -> Call | None:
        """The call of one of its modules."""
        return next((call for call in self.inner if call.module is module), None)

    def in_attention(self, call: Call) -> bool:
        """Whether it is a call of the attention module or of a part of it."""
        return self.attention is not None and f"{call.name}.".startswith(f"{self.attention.name}.")

    def read_after(self, call: Call) -> Iterator[Float[Tensor, "token d_model"]]:
        """The hidden states that modules read after a call, and what the block put out."""
        for reader in sorted(self.inner, key=lambda each: each.start):
            if reader.start > call.end:
                yield from (tensor for tensor in reader.inputs[:2] if tensor.shape == self.output.shape)
        yield self.output

    @cached_property
    def beside(self) -> list[Call]:
        """Calls outside attention whose outputs do not depend on it."""
        outside = [call for call in self.inner if not call.attends and not self.in_attention(call)]
        return [call for call in outside if call.output is not None and call.output.shape == self.output.shape]


def is_sum(total: Tensor, terms: Sequence[Tensor]) -> bool:
    """Whether `total` is the sum of `terms` in every element, but for rounding."""
    rounding = _ROUNDINGS * torch.finfo(total.dtype).eps
    size = sum((term.double().abs() for term in terms), total.double().abs())
    difference = (total.double() - sum(term.double() for term in terms)).abs()
    return bool((difference <= (rounding * size).clamp(min=torch.finfo(torch.float32).tiny)).all())


def multiples(
    total: Tensor, base: Tensor, terms: Sequence[Tensor], numbers: Iterable[float]
) -> tuple[float, ...] | None:
    """The factors with which `base` + factors * `terms` is `total`; None if there are none.

    A factor that is nearly one of `numbers` is that number.
    """
    if total.shape != base.shape or any(term.shape != base.shape for term in terms):
        return None
    if is_sum(total, (base, *terms)):  # as nearly always
        return (1.0,) * len(terms)
    matrix = torch.stack([term.double().flatten() for term in terms], dim=1)
    target = (total.double() - base.double()).flatten()
    factors = []
    for value in (torch.linalg.pinv(matrix.T @ matrix) @ (matrix.T @ target)).tolist():
        factors.append(next((each for each in (1.0, *numbers) if abs(value - each) <= 1e-4 * abs(each)), value))
    if not all(factors) or not is_sum(total, [base, *(f * term for f, term in zip(factors, terms, strict=True))]):
        return None
    return tuple(factors)


def scale_and_softcap(
    products: Float[Tensor, "*token vocabulary"], logits: Tensor, numbers: Sequence[float]
) -> tuple[float, float | None] | None:
    """The scale and softcap that turn products into logits, among `numbers` and their inverses; None if there are none.

    The best counts, for in half precision a mild softcap is hardly more than rounding.
    """
    if torch.equal(products.to(logits), logits):  # as nearly always
        return 1.0, None
    some = logits.double().flatten().abs().topk(min(1000, logits.numel())).indices  # where a softcap shows most
    given, wanted = products.double().flatten()[some], logits.double().flatten()[some]
    forms: dict[tuple[float, float | None], Tensor] = {
        (scale, None): given * scale for scale in (1.0, *numbers, *(1 / number for number in numbers))
    }
    forms |= {(1.0, cap): torch.tanh(given / cap) * cap for cap in numbers}
    errors = {form: ((values - wanted).norm() / wanted.norm()).item() for form, values in forms.items()}
    best = min(errors, key=lambda form: errors[form])
    return best if errors[best] <= 8 * torch.finfo(logits.dtype).eps else None
