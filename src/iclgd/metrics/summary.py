"""Summaries of a run's unaveraged scores: the one place where scores are averaged and bootstrapped.

A mean is taken over examples within each layer, then over layers; what is undefined (NaN) is left out of both and
counted. Intervals are over queries: for these demonstrations, had other queries been asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from iclgd.metrics.statistics import cluster_bootstrap, mean_of_means, nanmean
from iclgd.records import Score
from iclgd.seeding import numpy_stream

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray


def summarise(
    scores: Mapping[str, Score], flipped: Bool[Tensor, " example"], bootstrap: int, seed: int
) -> dict[str, Any]:
    """The content of scores.json: every score's mean, by layer and overall, with its interval.

    Args:
        scores: unaveraged, by name.
        flipped: which examples go from wrong to right in both ICL and FT; scores are also taken over these alone.
        bootstrap: resamples for the 95 % percentile intervals; 0 leaves them out.
        seed: of the intervals; each score has a random stream of its own, so that one score more changes no other.

    Returns:
        By score {"mean", "layers", "n", "undefined", "ci", "flipped"}: n examples of which `undefined` values are
        NaN; `ci` is null below two examples and n, ci and flipped are null without examples; layers is empty without
        layers; with heads there is also "heads", [layer][head]. Numbers have 12 significant digits, more than any
        recording's precision and few enough that the order of a sum does not show; NaN is null.
    """
    chosen = flipped.cpu()
    return {name: _with_flipped(name, score, chosen, bootstrap, seed) for name, score in scores.items()}


def to_frame(scores: Mapping[str, Score]) -> pd.DataFrame:
    """All scores in long form: columns score, example, layer, value (NaN where undefined).

    `example` and `layer` are whole numbers, -1 where a score has no such axis. Any other axis (heads, demonstrations)
    is averaged over.
    """
    import pandas as pd

    parts = []
    for name, score in scores.items():
        values = _by_example_and_layer(score)
        example, layer = np.indices(values.shape)
        parts.append(
            pd.DataFrame(
                {
                    "score": name,
                    "example": example.ravel() if "example" in score.axes else -1,
                    "layer": layer.ravel() if "layer" in score.axes else -1,
                    "value": values.ravel(),
                }
            )
        )
    if not parts:
        return pd.DataFrame({"score": [], "example": [], "layer": [], "value": []})
    return pd.concat(parts, ignore_index=True).astype({"example": np.int64, "layer": np.int64})


def _with_flipped(name: str, score: Score, chosen: Tensor, bootstrap: int, seed: int) -> dict[str, Any]:
    summary = _summary(name, score, bootstrap, seed)
    if "example" not in score.axes:
        return {**summary, "flipped": None}
    axis = score.axes.index("example")
    if score.values.shape[axis] != len(chosen):
        raise ValueError(f"score {name} has {score.values.shape[axis]} examples, but flipped has {len(chosen)}")
    subset = Score(score.values.cpu().index_select(axis, chosen.nonzero()[:, 0]), score.axes)
    return {**summary, "flipped": _summary(f"{name}/flipped", subset, bootstrap, seed)}


def _summary(name: str, score: Score, bootstrap: int, seed: int) -> dict[str, Any]:
    values = _by_example_and_layer(score)
    has_examples, has_layers = "example" in score.axes, "layer" in score.axes
    ci = None
    if has_examples:
        interval = cluster_bootstrap(values, bootstrap, numpy_stream(f"bootstrap/{name}", seed))
        ci = None if math.isnan(interval.low) else [_number(interval.low), _number(interval.high)]
    summary = {
        "mean": _number(mean_of_means(values)),
        "layers": [_number(value) for value in nanmean(values)] if has_layers else [],
        "n": len(values) if has_examples else None,
        "undefined": int(np.isnan(_finite(score)).sum()),
        "ci": ci,
    }
    if "head" in score.axes and has_layers:
        summary["heads"] = [[_number(value) for value in row] for row in _by_layer_and_head(score)]
    return summary


def _by_example_and_layer(score: Score) -> Float[Array, "example layer"]:
    """The values with exactly these two axes, of length 1 where absent; all other axes averaged over."""
    values, axes = _finite(score), list(score.axes)
    for axis in [axis for axis in axes if axis not in ("example", "layer")]:
        values = nanmean(values, axes.index(axis))
        axes.remove(axis)
    values = values.transpose([axes.index(axis) for axis in ("example", "layer") if axis in axes])
    if "example" not in axes:
        values = values[None]
    return values if "layer" in axes else values[..., None]


def _by_layer_and_head(score: Score) -> Float[Array, "layer head"]:
    values, axes = _finite(score), list(score.axes)
    for axis in [axis for axis in axes if axis not in ("layer", "head")]:
        values = nanmean(values, axes.index(axis))
        axes.remove(axis)
    return values.transpose([axes.index("layer"), axes.index("head")])


def _finite(score: Score) -> Float[Array, "..."]:
    """The values in float64; what overflowed is as undefined as what is NaN."""
    values = score.values.double().cpu().numpy()
    return np.where(np.isfinite(values), values, np.nan)


def _number(value: float) -> float | None:
    return float(f"{value:.12g}") if math.isfinite(value) else None
