"""From a score's yaml to its values: finds the function, checks and looks up its arguments, calls it.

The yaml names a public function of the modules below by its bare name, or a user's own by a dotted path, and its
arguments by path in the evidence.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from iclgd.common.records import Evidence, Recording, Score, Trace
from iclgd.config import ConfigError, ScoreConfig
from iclgd.config.bounds import imported
from iclgd.metrics import attention, distributions, geometry, predictions, updates

Metric = Callable[..., Tensor]

_MODULES = (attention, distributions, geometry, predictions, updates)
_OVER_EXAMPLES = (updates.sim_centred,)  # functions whose value for one example depends on all examples
_METRICS: dict[str, Metric] = {
    name: function
    for module in _MODULES
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_")
}


def needs_all_examples(spec: ScoreConfig) -> bool:
    """Whether a score reads more than finetuning's trace, and its values for some examples depend on the others."""
    reads = not all(path.startswith("trace.") for path in spec.inputs.values())
    return reads and ("example" not in spec.axes or _find(spec.function) in _OVER_EXAMPLES)


def required_inputs(specs: Mapping[str, ScoreConfig]) -> set[str]:
    """All input paths that the scores name. Every score is checked, so that mistakes show before a model loads.

    Raises:
        ConfigError: a function is unknown, an argument is missing or unknown, or a path cannot exist.
    """
    for name, spec in specs.items():
        _checked(name, spec)
    return {path for spec in specs.values() for path in spec.inputs.values()}


def measure(specs: Mapping[str, ScoreConfig], evidence: Evidence) -> dict[str, Score]:
    """Take every score, unaveraged.

    Raises:
        ConfigError: a score cannot be taken from this evidence; the message names its yaml and the argument.
    """
    return {name: _measured(name, spec, evidence) for name, spec in specs.items()}


def _measured(name: str, spec: ScoreConfig, evidence: Evidence) -> Score:
    function = _checked(name, spec)
    try:
        arguments = {argument: evidence.lookup(path) for argument, path in spec.inputs.items()}
    except KeyError as error:
        raise ConfigError(f"{_where(name)}: {error.args[0]}") from error
    try:
        values = function(**arguments, **spec.params)
    except Exception as error:
        error.add_note(f"while taking the score of {_where(name)}")
        raise
    if not isinstance(values, Tensor) or values.ndim != len(spec.axes):
        got = f"axes {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise ConfigError(f"{_where(name)}: {spec.function} returned {got}, but axes names {list(spec.axes)}")
    return Score(values.detach().cpu(), tuple(spec.axes))


def _where(name: str) -> str:
    return f"conf/metric/{name.partition('/')[0]}.yaml (metric.scores.{name})"


def _checked(name: str, spec: ScoreConfig) -> Metric:
    """The function of a score, if it can be called with these inputs and params, and the inputs can be recorded."""
    try:
        function = _find(spec.function)
        inspect.signature(function).bind(**spec.params, **spec.inputs)
    except (ConfigError, TypeError) as error:
        raise ConfigError(
            f"{_where(name)}: {spec.function}: {error}; correct its function, inputs or params"
        ) from error
    for path in spec.inputs.values():
        owner, dot, field = path.partition(".")
        fields = [each.name for each in dataclasses.fields(Trace if owner == "trace" else Recording)]
        if dot and field not in fields:
            raise ConfigError(f"{_where(name)}: {path}: {owner} has no {field!r}, only {', '.join(fields)}")
    return function


def _find(name: str) -> Any:
    """What a bare name or a dotted path names; a ConfigError where there is nothing."""
    if "." in name:
        return imported(name, "function")
    if name not in _METRICS:
        raise ConfigError(f"not one of {', '.join(sorted(_METRICS))} (a function of yours needs a dotted path)")
    return _METRICS[name]
