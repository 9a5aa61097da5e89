"""The optimiser that turns gradients into steps: a short name, or any class of torch.optim or of the user's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from iclgd.config import ConfigError
from iclgd.config.functions import imported

_SHORT = {"sgd": "torch.optim.SGD", "adam": "torch.optim.Adam"}


def optimiser_class(spec: str | Mapping[str, Any]) -> Callable[..., torch.optim.Optimizer]:
    """The class that `finetune.optimizer` names.

    Raises:
        ConfigError: it names no optimiser, or one that asks for the loss again and again, as LBFGS does.
    """
    name = _SHORT[spec] if isinstance(spec, str) else str(spec["_target_"])
    found = imported(name, "finetune.optimizer")
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ConfigError(f"finetune.optimizer: {name} is no subclass of torch.optim.Optimizer")
    closure = list(inspect.signature(found.step).parameters.values())[1:2]
    if closure and closure[0].default is inspect.Parameter.empty:
        raise ConfigError(f"finetune.optimizer: {name} needs the loss as a function, which is not to be had here")
    return found


def optimiser(spec: str | Mapping[str, Any], parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """An optimiser of these parameters, with the arguments that `finetune.optimizer` gives.

    Raises:
        ConfigError: there is no such class, or it refuses its arguments.
    """
    kind = optimiser_class(spec)
    arguments = {} if isinstance(spec, str) else {key: value for key, value in spec.items() if key != "_target_"}
    try:
        return kind(parameters, lr=lr, **arguments)
    except (TypeError, ValueError) as error:
        name = getattr(kind, "__name__", "it")
        raise ConfigError(f"finetune.optimizer: {name} refuses {arguments}: {error}") from error
