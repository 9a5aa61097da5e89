"""What was varied? Which runs repeat each other with another seed, and which keys tell the others apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iclgd.report.finished_run import FinishedRun
from iclgd.report.runs_frame import flat

# Another draw of the same thing; runs that differ in nothing else are repetitions.
REPETITIONS = ("seed", "task.permutation", "model.weights_seed")
# What tables name first, in this order; anything else comes after, by the alphabet.
_ORDER = "pretrained keep_embeddings random none gd lcgd sst2 sst5 mr subj agnews cb".split()
# Where a run was computed, what was measured of it and what only follows from another key.
_IGNORED = (
    *("runtime.", "paths.", "tracking.", "metric.scores.", "metric.every"),
    *("task.rates.", "protocol.name"),
)


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the draw.

    Attributes:
        settings: what tells this group from the others, as text.
        values: the same with its types.
        runs: the repetitions, by seed.
    """

    settings: Mapping[str, str]
    values: Mapping[str, Any]
    runs: tuple[FinishedRun, ...]


def group(runs: Sequence[FinishedRun]) -> list[Group]:
    """The runs by what was varied, repetitions together, in the order of the varied keys' values."""
    keys = varied(runs)
    gathered: dict[tuple[str, ...], list[FinishedRun]] = {}
    for run in runs:
        settings = _settings(run)
        gathered.setdefault(tuple(as_text(settings.get(key)) for key in keys), []).append(run)
    groups = []
    for texts, members in gathered.items():
        settings = _settings(members[0])
        members.sort(key=lambda run: (run.seed, run.permutation, run.name))
        values = {key: settings.get(key) for key in keys}
        groups.append(Group(dict(zip(keys, texts, strict=True)), values, tuple(members)))
    return sorted(groups, key=lambda entry: tuple(_order(value) for value in entry.values.values()))


def place(entry: Group) -> tuple[str, str, str]:
    """Where a group was measured: task, model, weights."""
    run = entry.runs[0]
    return run.task, run.model, run.weights


def own_settings(entry: Group, groups: Sequence[Group]) -> str:
    """What tells a group from the others of its variant in its place: `lr 0.01 · shots 8`, or nothing."""
    alike = [g for g in groups if place(g) == place(entry) and g.runs[0].variant == entry.runs[0].variant]
    keys = [key for key in entry.settings if len({g.settings[key] for g in alike}) > 1]
    return " · ".join(f"{key.rpartition('.')[2]} {entry.settings[key]}" for key in keys)


def varied(runs: Sequence[FinishedRun]) -> list[str]:
    """The config keys that differ among runs: model, weights, task and variant first, then what differs within those.

    A key that only follows from another, such as the rate that a variant brings with it, is not named.
    """
    settings = [_science(run) for run in runs]
    chosen = [
        key
        for key in ("task.name", "model.name", "model.weights", "finetune.name")
        if len({as_text(s.get(key)) for s in settings}) > 1
    ]
    within: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for entry in settings:
        within.setdefault(tuple(as_text(entry.get(key)) for key in chosen), []).append(entry)
    others = [key for key in dict.fromkeys(key for s in settings for key in s) if key not in chosen]
    for key in others:
        if any(len({as_text(s.get(key)) for s in members}) > 1 for members in within.values()):
            chosen.append(key)
    return chosen


def numeric_axes(runs: Sequence[FinishedRun]) -> list[str]:
    """The varied keys whose values are all numbers, at least two of them."""
    settings = [_settings(run) for run in runs]
    return [
        key
        for key in varied(runs)
        if all(isinstance(s.get(key), int | float) and not isinstance(s.get(key), bool) for s in settings)
    ]


def as_text(value: Any) -> str:
    """A setting as tables name it."""
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def _settings(run: FinishedRun) -> dict[str, Any]:
    """The config as dotted keys, with the dtype that `auto` came to."""
    return {**flat(run.config), "dtype": run.environment.get("dtype")}


def _science(run: FinishedRun) -> dict[str, Any]:
    chosen = _settings(run).items()
    return {key: value for key, value in chosen if not key.startswith(_IGNORED) and key not in REPETITIONS}


def _order(value: Any) -> tuple[int, float, str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, float(value), ""
    return 1, float(_ORDER.index(value) if value in _ORDER else len(_ORDER)), as_text(value)
