"""The settings of a run by Hydra key, and the keys that vary among several runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from iclgd.config import ConfigError, ReferenceConfig
from iclgd.config.bounds import MAPPINGS, parse_layers
from iclgd.runs.inputs import science

# A run of the same settings with another of these is another draw, or another order of one draw's demonstrations.
DRAW = ("seed", "task.permutation", "model.weights_seed")
# Choosing one of these brings other keys of its group with it; they are named first, and in this order.
_NAMES = ("model.name", "model.weights", "task.name", "finetune.name", "reference.name", "protocol.name")


def settings_of(config: Mapping[str, Any], dtype: str | None = None) -> dict[str, Any]:
    """What decides what is measured, as dotted keys with plain values; lists are text.

    Args:
        config: the content of config.yaml.
        dtype: the precision that runtime.dtype=auto came to.

    Raises:
        KeyError: a group of the config is missing.
        ValueError: `finetune.layers` cannot be read.
    """
    chosen = science(config)
    chosen.setdefault("reference", {"name": ReferenceConfig().name})  # of ICL itself, the identity says nothing
    chosen["runtime"] = {"dtype": dtype or chosen.pop("dtype")}
    return _flat({group: chosen[group] for group in chosen if group != "dtype"})


def varying_keys(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that tell settings apart: names first, then what differs beyond what a name brings with it.

    The rate that a variant or a task brings is not named unless it differs within one variant and task. What only
    some runs have, such as the parameters of a score that others did not take, is compared among those. Keys of the
    draw are left out.

    Args:
        runs: the settings of each.
    """
    keys = dict.fromkeys(key for run in runs for key in run)
    names = [key for key in _NAMES if len({run[key] for run in runs if key in run}) > 1]
    varying = list(names)
    for key in keys:
        if key in _NAMES or key in DRAW:
            continue
        values: dict[tuple[Any, ...], set[Any]] = {}  # by the names that bring the key
        for run in runs:
            if _required_key(key) in run:
                owner = tuple(run.get(name) for name in names if _brings(name, key))
                values.setdefault(owner, set()).add(run.get(key))
        if any(len(distinct) > 1 for distinct in values.values()):
            varying.append(key)
    return varying


def as_text(value: Any) -> str:
    """A setting as tables name it."""
    if value is None or value != value:  # NaN: what pandas fills in for None
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def means(key: str, value: Any, text: str) -> bool:
    """Whether a text, as a user types it, means this value of a setting."""
    if key == "finetune.layers":
        return layer_ranges(value) == layer_ranges(text)
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return as_text(value).lower() == text.lower()


def layer_ranges(layers: Any) -> str:
    """Layers as one types them: `0-2,5` for `0,1,2,5`; what cannot be read as layers stays as it is."""
    try:
        numbers = parse_layers(layers)
    except ConfigError:
        return as_text(layers)
    if numbers is None:
        return "all"
    runs = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return ",".join(f"{run}-{end}" if run < end else f"{run}" for run, end in zip(runs, ends, strict=True))


def shortest(name: str, others: Set[str]) -> str:
    """A model's name without the owner or the folders before it, as far as that tells it from the others."""
    parts = name.rstrip("/").split("/")
    for count in range(1, len(parts)):
        end = "/".join(parts[-count:])
        if not any(f"/{other.rstrip('/')}".endswith(f"/{end}") for other in others):
            return end
    return name


def heading(key: str, among: Iterable[str]) -> str:
    """A key's last part as far as it tells it from the others: `finetune.lr` is lr, `finetune.name` is variant."""
    named = {f"{group}.name": group for group in ("model", "task", "reference", "protocol")}
    own = {"finetune.name": "variant", **named}
    name = own.get(key) or key.rpartition(".")[2]
    alike = [other for other in among if other != key and own.get(other, other.rpartition(".")[2]) == name]
    return key if alike else name


def _brings(name: str, key: str) -> bool:
    group = name.partition(".")[0]
    return key.startswith(f"{group}.") or (key == "finetune.lr" and name == "task.name")


def _required_key(key: str) -> str:
    """The key without which a run cannot be compared by `key`: a parameter's score, or the key itself."""
    parts = key.split(".")
    return ".".join([*parts[:3], "function"]) if parts[:2] == ["metric", "scores"] else key


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for key, value in config.items():
        if f"{prefix}{key}" in MAPPINGS:  # one value, since no two runs need have one key of it
            texts = {str(name): each for name, each in (value or {}).items()}  # YAML reads `1` and `a` as two types
            keys[f"{prefix}{key}"] = json.dumps(texts, sort_keys=True) if texts else None
        elif isinstance(value, Mapping):
            keys |= _flat(value, f"{prefix}{key}.")
        else:
            keys[f"{prefix}{key}"] = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
    return keys
