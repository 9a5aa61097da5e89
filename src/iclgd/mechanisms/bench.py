"""What a mechanism is given: a model, demonstrations, what it may see besides, and ways to record and to train.

A mechanism is a function of a bench that returns a context manager. Within its block the model without context is
changed so that it might act as it does with context: its weights, its activations at the query's last tokens, or the
prefix that stands before the query. The manager yields a trace, and undoes the change in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from iclgd.common.records import Item, PromptSet, Recording, Trace
from iclgd.config import Config, ConfigError, FinetuneConfig
from iclgd.config.bounds import parse_layers
from iclgd.config.enumerations import Sees, Site
from iclgd.models.anatomy import LanguageModel
from iclgd.models.attention_pass import AttentionPass
from iclgd.models.forward import encode_prefix, padded
from iclgd.models.interventions import Rewrite, intervening, last_tokens, rewriting
from iclgd.models.recorder import Question, RecordPlan, record

AfterStep = Callable[[], object]
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """What a mechanism may learn from.

    Attributes:
        query: a query, without its label.
        context: the tokens that stand before it under ICL.
    """

    query: Item
    context: Tokens


@dataclass(frozen=True)
class Bench:
    """What a mechanism works with.

    Attributes:
        model: the language model.
        prompts: the demonstrations, calibration rows and measured queries.
        config: the run's.
        icl: makes ICL's recording of the measured queries.
        start_steps: announces how many steps there are; returns what is called after each.
        noise: the name of the random stream of what starts at noise.
    """

    model: LanguageModel
    prompts: PromptSet
    config: Config
    icl: Callable[[], Recording]
    start_steps: Callable[[int], AfterStep] = lambda _total: lambda: None
    noise: str = "update noise"

    @property
    def options(self) -> FinetuneConfig:
        """The settings of the variant; those of a mechanism of your own are in `options.options`."""
        return self.config.finetune

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that the mechanism changes (`finetune.layers`), from the input side."""
        return parse_layers(self.options.layers) or tuple(range(self.model.layers))

    @property
    def demonstrations(self) -> tuple[Item, ...]:
        """The demonstrations, each with its label at the end, in order."""
        self.refuse_blind()
        return tuple(self.prompts.demonstrations[index] for index in self.prompts.in_context)

    @property
    def calibration(self) -> tuple[Item, ...]:
        """Rows of the train split that are neither demonstrations nor measured; their labels must not be used."""
        self._refuse_unseen(Sees.calibration)
        return self.prompts.calibration

    @property
    def queries(self) -> tuple[Item, ...]:
        """The queries that are measured: what reads them is a ceiling."""
        self._refuse_unseen(Sees.queries)
        return self.prompts.queries

    def refuse_blind(self) -> None:
        """Refuse to show demonstrations to a mechanism that says it sees nothing."""
        if self.options.sees is Sees.nothing:
            raise ConfigError(
                f"finetune={self.options.name} reads demonstrations, and finetune.sees=nothing does not show them: set "
                "finetune.sees=demonstrations"
            )

    def _refuse_unseen(self, needed: Sees) -> None:
        if self.options.sees is not needed:
            raise ConfigError(
                f"finetune={self.options.name} reads {needed} rows, and finetune.sees={self.options.sees} does not "
                f"show them: set finetune.sees={needed}"
            )

    def context(self, left_out: int | None = None, only: int | None = None) -> Tokens:
        """The tokens that stand before a query under ICL.

        Args:
            left_out: the index of a demonstration that is left out.
            only: the index of the one demonstration that stands there.
        """
        self.refuse_blind()
        chosen = self.prompts.in_context
        if left_out is not None:
            chosen = (*chosen[:left_out], *chosen[left_out + 1 :])
        if only is not None:
            chosen = (chosen[only],)
        return replace(self.prompts, in_context=chosen).context()

    def rows(self) -> list[Row]:
        """What the mechanism may learn from, as `finetune.sees` says, each with its context under ICL.

        Demonstrations are queries in turn, with the others as their context.
        """
        if self.options.sees is Sees.calibration:
            return [Row(item, self.context()) for item in self.calibration]
        if self.options.sees is Sees.queries:
            return [Row(item, self.context()) for item in self.queries]
        self.refuse_fewer_demonstrations(2, ", or set finetune.sees=calibration")
        return [
            Row(without_label(item), self.context(left_out=index)) for index, item in enumerate(self.demonstrations)
        ]

    def observe(self, rows: Sequence[Row], field: str, context: bool) -> Float[Tensor, "row ..."]:
        """A field of the recordings of these rows, in their order.

        Args:
            rows: from `rows`.
            field: such as `attention_output`, `block_output`, `next_token_log_probs` or `label_scores`.
            context: whether each row's context stands before it.

        Raises:
            ConfigError: recordings have no such field.
        """
        names = [each.name for each in fields(Recording)]
        if field not in names:
            raise ConfigError(f"bench.observe: {field!r} is not recorded, choose one of {', '.join(names)}")
        plan = self.plan(*{field} - {"attention_output", "label_scores"})
        by_context: dict[Tokens, list[int]] = {}
        for number, row in enumerate(rows):
            by_context.setdefault(row.context if context else self.prompts.bos, []).append(number)
        parts = []
        for tokens, numbers in by_context.items():
            questions = [self.question(rows[number].query) for number in numbers]
            parts.append(getattr(record(self.model, questions, tokens, plan), field))
        order = torch.tensor([number for numbers in by_context.values() for number in numbers]).argsort()
        return torch.cat(parts)[order]

    def plan(self, *optional: str) -> RecordPlan:
        """How the mechanism's own recordings are taken: batches and options as in the run."""
        runtime = self.config.runtime
        return RecordPlan(
            optional=frozenset(optional),
            batch_tokens=runtime.batch_tokens,
            bos=len(self.prompts.bos),
            mean_label=self.config.task.length_normalised,
        )

    def question(self, query: Item) -> Question:
        """A query as the recorder takes it."""
        return Question(query.token_ids, self.prompts.options(query))

    def batch(self, rows: Sequence[Row], bos_as_prefix: bool = False) -> tuple[Tensor, AttentionPass]:
        """The rows' tokens behind bos, without context, as one padded batch and its pass.

        Rows are recorded with bos as a prefix; where weights are trained, bos is read with them.
        """
        bos = self.prompts.bos
        sequences = [row.query.token_ids if bos_as_prefix else (*bos, *row.query.token_ids) for row in rows]
        lengths = torch.tensor([len(tokens) for tokens in sequences], device=self.model.device)
        prefix = encode_prefix(self.model, bos) if bos_as_prefix else None
        return padded(sequences), AttentionPass(lengths=lengths, prefix=prefix)

    def rewriting(self, site: Site | str, layers: Sequence[int], rewrite: Rewrite) -> AbstractContextManager[None]:
        """Within this block `rewrite` replaces activations at the query's last token and the label tokens behind it.

        Args:
            site: `attention_output` (what attention adds to the residual stream) or `block_output`.
            layers: the layers whose activations are replaced.
            rewrite: a function of the layer and its activations there [row, d_model], which returns the new ones.

        Raises:
            ConfigError: the model has no such site or layer.
        """
        if site not in list(Site):
            raise ConfigError(f"bench.rewriting: {site!r} is not a site, choose one of {', '.join(Site)}")
        for layer in layers:
            self.checked_layer(layer)

        def intervention(token_ids: Tensor, state: AttentionPass) -> AbstractContextManager[None]:
            return rewriting(self.model, Site(site), layers, last_tokens(state, token_ids.shape[1]), rewrite)

        return intervening(self.model, intervention)

    def checked_layer(self, layer: int) -> int:
        """The layer, if the model has it.

        Raises:
            ConfigError: it does not.
        """
        if not 0 <= layer < self.model.layers:
            last = self.model.layers - 1
            raise ConfigError(f"layer {layer} does not exist: the model's layers are 0 to {last} (finetune.layer)")
        return layer

    def refuse_fewer_demonstrations(self, least: int, otherwise: str = "") -> None:
        """Refuse too few demonstrations for one of them to be left out; `otherwise` is a further remedy."""
        count = len(self.demonstrations)
        if count < least:
            raise ConfigError(
                f"finetune={self.options.name} leaves out one demonstration at a time and needs {least} or more, not "
                f"{count}: raise task.shots{otherwise}"
            )

    def refuse_some_layers(self) -> None:
        """Refuse a choice of layers where the mechanism acts through all of them."""
        if parse_layers(self.options.layers) is not None:
            raise ConfigError(f"finetune={self.options.name} acts through all layers: leave finetune.layers=all")

    def refuse_other_states(self) -> None:
        """Refuse a model whose layers keep more than keys and values of the tokens before."""
        if not self.model.shares_prefix:
            raise ConfigError(
                f"finetune={self.options.name} works on keys and values, and not every layer of "
                f"{type(self.model.network).__name__} keeps those alone: choose another mechanism"
            )

    def no_steps(self) -> Trace:
        """The trace of a mechanism that changes no weights."""
        return Trace.without_steps(self.model.layers)


Mechanism = Callable[[Bench], AbstractContextManager[Trace]]


def without_label(item: Item) -> Item:
    """A demonstration as a query."""
    end = len(item.token_ids) - item.label_length
    return replace(item, token_ids=item.token_ids[:end], label_length=0)
