"""Mechanisms by name: those of this package, and a user's own by a dotted path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from iclgd.common.records import Trace
from iclgd.config.bounds import imported
from iclgd.mechanisms.bench import Bench, Mechanism
from iclgd.mechanisms.distillation import activation_match, context_distillation, priming
from iclgd.mechanisms.finetuning import gradient_descent
from iclgd.mechanisms.one_shot import one_shot_mean, one_shot_sum
from iclgd.mechanisms.patches import exact_patch, static_patch
from iclgd.mechanisms.prefixes import kv_prefix
from iclgd.mechanisms.shifts import linear_shift, mean_shift
from iclgd.mechanisms.vectors import function_vector, task_vector


@contextmanager
def none(bench: Bench) -> Iterator[Trace]:
    """Changes nothing: the known answer that no update has a direction."""
    yield bench.no_steps()


MECHANISMS: dict[str, Mechanism] = {
    mechanism.__name__: mechanism
    for mechanism in (
        none,
        gradient_descent,
        exact_patch,
        static_patch,
        mean_shift,
        linear_shift,
        task_vector,
        function_vector,
        one_shot_mean,
        one_shot_sum,
        activation_match,
        priming,
        context_distillation,
        kv_prefix,
    )
}


def resolve_mechanism(name: str) -> Mechanism:
    """The mechanism of a name: one of this package's, or a dotted path to a function of yours.

    Raises:
        ConfigError: there is no such mechanism.
    """
    return MECHANISMS.get(name) or imported(name, "finetune.mechanism")
