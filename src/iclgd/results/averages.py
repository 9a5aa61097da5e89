"""Means over layers, by one rule for all runs that are compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

from iclgd.config.bounds import parse_layers
from iclgd.results.catalogue import ScoreInfo
from iclgd.results.reading import FinishedRun, Record, Records
from iclgd.statistics import mean_interval, shares_interval


class Layers(StrEnum):
    """The layers that a mean is over."""

    common = "common"  # those in which every compared setting of the model has a value
    trained = "trained"  # those that the run's finetuning trained
    all = "all"  # every layer in which the run has a value


def averaged(runs: Sequence[FinishedRun], rule: Layers, scores: Mapping[str, ScoreInfo]) -> tuple[Records, ...]:
    """The records of each run, with means over the layers of the rule.

    A score that is undefined below the first trained layer would otherwise be averaged over other layers in each
    setting. Runs that are not sane, and runs without any value, do not narrow the layers of the others.
    """
    common = _common(runs)
    averages = []
    for run in runs:
        trained = parse_layers(run.settings["finetune.layers"]) if rule is Layers.trained else None
        records = {}
        for key, record in run.records.items():
            allowed = common.get((run.settings["model.name"], *key)) if rule is Layers.common else trained
            over = record.over if allowed is None else tuple(layer for layer in record.over if layer in allowed)
            records[key] = record if over == record.over else _over(run, key, record, over, scores[key[0]])
        averages.append(records)
    return tuple(averages)


def _common(runs: Sequence[FinishedRun]) -> dict[tuple[str, ...], set[int]]:
    """By model, score and examples, the layers in which every sane run that has a value has one."""
    common: dict[tuple[str, ...], set[int]] = {}
    for run in runs:
        for key, record in run.records.items():
            if run.state == "sane" and record.over:
                group = (run.settings["model.name"], *key)
                common[group] = common.get(group, set(record.over)) & set(record.over)
    return common


def _over(run: FinishedRun, key: tuple[str, str], record: Record, layers: tuple[int, ...], score: ScoreInfo) -> Record:
    """The record with its mean over these layers; without an interval where single queries are not at hand."""
    mean = math.fsum(record.layers[layer] for layer in layers) / len(layers) if layers else math.nan
    low = high = math.nan
    values = run.values.get(key[0]) if key[1] == "all" and layers else None
    if values is not None and values.shape[1] == len(record.layers):
        limits = score.limits if math.isfinite(score.limits[1] - score.limits[0]) else None
        part = values[:, layers]
        interval = shares_interval(part) if score.share else mean_interval(part, limits)
        low, high = interval.low, interval.high
    return dataclasses.replace(record, mean=mean, low=low, high=high, over=layers)
