"""ICL and every mechanism beside it against the number of demonstrations, and the line that evidence would follow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from iclgd.report.chart import Figure
from iclgd.report.marks import Measure, axis_title, measured, number_axis
from iclgd.report.panels import PLACE, Frame, free_keys, grid
from iclgd.results.catalogue import ScoreInfo, Variant

if TYPE_CHECKING:
    from iclgd.results.frame import Results

_SHOTS = "task.shots"
# Not mechanisms, but what they are compared with: by setting, what a figure calls it and its colour.
_SETTINGS = {"icl": Variant("icl", "ICL", color="#000000"), "zsl": Variant("zsl", "Zero-shot", color="#9a9a9a")}


def along_shots(results: Results) -> Iterator[Figure]:
    """Each score of one setting alone, such as accuracy: ICL, zero-shot and the mechanisms in one figure.

    Where a score has no limits, as log-odds have none, ICL's means have a straight line beside them: if every
    demonstration is evidence as good as any other, they lie on one (arXiv 2511.00617).
    """
    if _SHOTS not in results.varied:
        return
    parts = {measure.info.name: (measure, rows) for measure, rows in measured(results, layered=False)}
    for measure, rows in parts.values():
        twins = {setting: measure.info.of(setting, results.scores.values()) for setting in _SETTINGS}
        beside = {setting: parts[twin.name][1] for setting, twin in twins.items() if twin and twin.name in parts}
        if measure.info.reads("ft") and "icl" in beside and rows[_SHOTS].nunique() > 1:
            about = replace(measure, info=_without_setting(measure.info, twins["icl"]))
            settings = [_of_setting(measure, part, one, rows) for one, part in beside.items()]
            rows = pd.concat([rows, *settings], ignore_index=True)
            yield about.figure("shots", "ICL and mechanisms by demonstrations", *_curves(about, rows))


def _without_setting(ft: ScoreInfo, icl: ScoreInfo | None) -> ScoreInfo:
    """The score with what its label has in common with ICL's: `Accuracy` of `Accuracy (FT)` and `Accuracy (ICL)`."""
    letters = zip(ft.label, icl.label if icl else "", strict=False)
    common = "".join(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], letters)).rstrip(" (")
    return replace(ft, label=common or ft.label)


def _curves(measure: Measure, rows: Frame) -> tuple[Any, str]:
    rows["x"] = rows[_SHOTS].astype(float)
    bounded = math.isfinite(sum(measure.info.limits))
    dots = "" if bounded else _fit_lines(rows, free_keys(measure.results, rows))
    title = axis_title(measure.results, _SHOTS)
    axis = number_axis(title, rows["x"], log=True)
    variants = {**_SETTINGS, **measure.results.variants}
    return measure.curves(grid(measure.results, rows, used=[_SHOTS]), axis, f"by {title}", variants=variants, dots=dots)


def _of_setting(measure: Measure, rows: Frame, setting: str, beside: Frame) -> Frame:
    """ICL's or zero-shot's rows, once for each panel: the same for every mechanism, except in draws that it lost."""
    keys = [key for key in free_keys(measure.results, beside) if key not in (*PLACE, _SHOTS, "finetune.name")]
    learning = [key for key in keys if key.startswith("finetune.")]  # which ICL does not depend on
    others = [*PLACE, *(key for key in keys if key not in learning)]
    rows = rows.sort_values("draws", ascending=False, kind="stable").drop_duplicates([*others, _SHOTS])
    rows = rows.drop(columns=learning).merge(beside[[*others, *learning]].drop_duplicates(), on=others)
    return rows.assign(**{"finetune.name": setting, "variant": _SETTINGS[setting].label})


def _fit_lines(rows: Frame, keys: Sequence[str]) -> str:
    """Set `published` to the straight line through ICL's means in each setting; words on how it was fitted."""
    rows["published"], words = math.nan, []
    icl = rows[(rows["finetune.name"] == "icl") & rows["mean"].notna()]
    for _, part in icl.groupby([*PLACE, *(key for key in keys if key != _SHOTS)], dropna=False):
        if len(part) > 2:
            slope, start = np.polyfit(part["x"], part["mean"], 1)
            line = start + slope * part["x"]
            rows.loc[part.index, "published"] = line
            explained = "undefined"
            if part["mean"].nunique() > 1:
                explained = f"{1 - ((part['mean'] - line) ** 2).mean() / part['mean'].var(ddof=0):.2f}"
            words.append(f"{slope:.3g} a demonstration, R\N{SUPERSCRIPT TWO} {explained}")
    words = list(dict.fromkeys(words))  # a rate is another setting, but not for ICL
    told = f": {'; '.join(words)}" if 0 < len(words) < 3 else ""
    fitted = "a straight line in the number of demonstrations, fitted to ICL's means by least squares"
    return f"Fine dots: {fitted}{told}." if words else ""
