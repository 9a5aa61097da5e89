"""Summaries of a run's unaveraged scores: the one place where scores are averaged.

A mean is taken over examples within each layer, then over layers; undefined values (NaN) are left out of both and
counted. Intervals are over the queries of one draw of demonstrations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

from iclgd.common.records import Score
from iclgd.config import ScoreConfig
from iclgd.metrics.numerics import predicted
from iclgd.statistics import mean_interval, mean_of_means, nanmean, shares_interval

Array = np.ndarray
Options = Float[Tensor, "example label"]  # the score of every label option


def flipped(zsl: Options, icl: Options, ft: Options, labels: Int[Tensor, " example"]) -> Bool[Tensor, " example"]:
    """Which examples go from wrong under ZSL to right under both ICL and FT (F->T; Dai et al. 2023)."""
    wrong = (predicted(zsl) != labels) & (predicted(zsl) >= 0)
    return wrong & (predicted(icl) == labels) & (predicted(ft) == labels)


def summarise(
    scores: Mapping[str, Score], flipped: Bool[Tensor, " example"], specs: Mapping[str, ScoreConfig] | None = None
) -> dict[str, Any]:
    """The content of scores.json: every score's mean, by layer and overall, with its interval.

    Args:
        scores: unaveraged, by name.
        flipped: which examples go from wrong to right in both ICL and FT; scores are also taken over these alone.
        specs: which scores are shares, and between which limits scores lie; the intervals follow from that.

    Returns:
        By score {"mean", "layers", "n", "undefined", "ci", "flipped"}: n examples, the number of undefined values, and
        the 95 % interval, null where fewer than three examples are defined or all are equal (a share has one then).
        n, ci and flipped are null without examples; layers is empty without layers; with heads there is also "heads",
        [layer][head]. Numbers have 12 significant digits, so that the order of a sum does not show; NaN is null.
    """
    specs = specs or {}
    return {name: _with_flipped(score, flipped.cpu(), specs.get(name, ScoreConfig())) for name, score in scores.items()}


def to_frame(scores: Mapping[str, Score]) -> pd.DataFrame:
    """All scores in long form: columns score, example, layer, value (NaN where undefined).

    `example` and `layer` are whole numbers, -1 where a score has no such axis. Any other axis (heads, demonstrations)
    is averaged over.
    """
    parts = [pd.DataFrame({"score": [], "example": [], "layer": [], "value": []})] if not scores else []
    for name, score in scores.items():
        values = _averaged(score, "example", "layer")
        axes = zip(("example", "layer"), np.indices(values.shape), strict=True)
        indices = {axis: index.ravel() if axis in score.axes else -1 for axis, index in axes}
        parts.append(pd.DataFrame({"score": name, **indices, "value": values.ravel()}))
    return pd.concat(parts, ignore_index=True).astype({"example": np.int64, "layer": np.int64})


def _with_flipped(score: Score, chosen: Tensor, spec: ScoreConfig) -> dict[str, Any]:
    summary = _summary(score, spec)
    if "example" not in score.axes:
        return {**summary, "flipped": None}
    axis = score.axes.index("example")
    subset = Score(score.values.cpu().index_select(axis, chosen.nonzero()[:, 0]), score.axes)
    return {**summary, "flipped": _summary(subset, spec)}


def _summary(score: Score, spec: ScoreConfig) -> dict[str, Any]:
    values = _averaged(score, "example", "layer")
    has_examples, has_layers = "example" in score.axes, "layer" in score.axes
    ci = None
    if has_examples:
        limits = None if spec.limits is None else (spec.limits[0], spec.limits[1])
        interval = shares_interval(values) if spec.share else mean_interval(values, limits)
        ci = None if math.isnan(interval.low) else [_number(interval.low), _number(interval.high)]
    summary = {
        "mean": _number(mean_of_means(values)),
        "layers": [_number(value) for value in nanmean(values)] if has_layers else [],
        "n": len(values) if has_examples else None,
        "undefined": int(np.isnan(_finite(score)).sum()),
        "ci": ci,
    }
    if "head" in score.axes and has_layers:
        summary["heads"] = [[_number(value) for value in row] for row in _averaged(score, "layer", "head")]
    return summary


def _averaged(score: Score, *wanted: str) -> Float[Array, "..."]:
    """The values over these axes in this order, of length 1 where a score has none; all other axes averaged over."""
    values, axes = _finite(score), list(score.axes)
    for axis in [axis for axis in axes if axis not in wanted]:
        values = nanmean(values, axes.index(axis))
        axes.remove(axis)
    values = values.transpose([axes.index(axis) for axis in wanted if axis in axes])
    return np.expand_dims(values, tuple(position for position, axis in enumerate(wanted) if axis not in axes))


def _finite(score: Score) -> Float[Array, "..."]:
    """The values in float64; what overflowed is as undefined as what is NaN."""
    values = score.values.double().cpu().numpy()
    return np.where(np.isfinite(values), values, np.nan)


def _number(value: float) -> float | None:
    return float(f"{value:.12g}") if math.isfinite(value) else None
