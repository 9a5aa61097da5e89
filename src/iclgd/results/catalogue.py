"""Labels, roles, order and looks of variants and scores, as the configurations of the runs give them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from iclgd.common.printable import printable
from iclgd.config.enumerations import Better, Role, Sees

if TYPE_CHECKING:
    from iclgd.results.reading import FinishedRun  # which imports this module

_IGNORE_OTHERS = ConfigDict(extra="ignore")  # keys of the config that say nothing about its looks
# evidence that finetuning has a part in
_LEARNED = ("ft", "trace", "other", "ft_orders", "ft_labels", "training_query_vectors", "trained_changes")


@dataclass(frozen=True, config=_IGNORE_OTHERS)
class Variant:
    """A finetuning variant, as conf/finetune describes it."""

    name: str  # of its file
    label: str  # what tables and figures call it; printable, and unlike that of any other
    role: Role = Role.variant  # what it is in a comparison
    order: int = 50  # where it stands among the others, lowest first
    color: str | None = None  # of its lines and marks; None takes the next free one of the palette
    sees: Sees = Sees.demonstrations  # what it may look at
    # the variants it is compared with, and what each difference tells; None where the file says nothing
    against: Mapping[str, str] | None = None


@dataclass(frozen=True, config=_IGNORE_OTHERS)
class ScoreInfo:
    """A score, as conf/metric describes it."""

    name: str  # its key in scores.json
    label: str  # what tables and figures call it; printable, and unlike that of any other
    # the least and the largest possible value; infinite where there are none
    limits: tuple[float, float] = (-math.inf, math.inf)
    headline: bool = False  # whether short tables and the first figures show it
    better: Better = Better.higher  # which values mean "more alike"
    share: bool = False  # whether its mean is a share of queries, shown in percent
    digits: int = 3  # decimals that tables show (of a share, not of its percent)
    inputs: Mapping[str, str] = field(default_factory=dict)  # argument of its function: path in the evidence
    function: str = ""  # the function that takes it

    @property
    def learned(self) -> bool:
        """Whether it depends on how the model was finetuned; what does not is the same for every variant."""
        return not self.inputs or any(path.partition(".")[0] in _LEARNED for path in self.inputs.values())

    def reads(self, owner: str) -> bool:
        """Whether it looks at something of `icl`, `ft`, `other`, ..., as an input's path begins."""
        return any(path.startswith(f"{owner}.") for path in self.inputs.values())

    def of(self, setting: str, others: Iterable[ScoreInfo]) -> ScoreInfo | None:
        """The same score of another setting, for a score of one setting alone, such as accuracy; None if not there."""
        own = {owner for path in self.inputs.values() if (owner := path.partition(".")[0]) in ("zsl", "icl", "ft")}
        if len(own) != 1 or own == {setting}:
            return None
        wanted = {argument: path.replace(f"{min(own)}.", f"{setting}.", 1) for argument, path in self.inputs.items()}
        return next((o for o in others if (o.function, o.inputs) == (self.function, wanted)), None)


def variants(runs: Iterable[FinishedRun]) -> dict[str, Variant]:
    """The variants by name, in their order; where runs disagree, the first that names one counts."""
    by_name: dict[str, Variant] = {}
    for run in runs:
        config = run.config["finetune"]
        name = config["name"]
        if name not in by_name:
            by_name[name] = Variant(**_described(name, config, by_name))
    return {one.name: one for one in sorted(by_name.values(), key=lambda one: (one.order, one.name))}


def scores(runs: Iterable[FinishedRun]) -> dict[str, ScoreInfo]:
    """Every score that was measured, by name: headline ones first, then in the order of the configurations."""
    by_name: dict[str, ScoreInfo] = {}
    for run in runs:
        configs = (run.config.get("metric") or {}).get("scores") or {}
        for name in (*(key for key in configs if key in run.scores), *run.scores):
            if name not in by_name:
                by_name[name] = ScoreInfo(**_described(name, configs.get(name) or {}, by_name))
    return {one.name: one for one in sorted(by_name.values(), key=lambda one: not one.headline)}


def _described(name: str, config: Mapping[str, Any], others: Mapping[str, Variant | ScoreInfo]) -> dict[str, Any]:
    """The config without what is null; labels have the name where another has the same, as tables tell them apart."""
    label = printable(str(config.get("label") or name), 40)
    if any(other.label == label for other in others.values()):
        label = f"{label} ({printable(name, 40)})"
    return {key: value for key, value in config.items() if value is not None} | {"name": name, "label": label}
