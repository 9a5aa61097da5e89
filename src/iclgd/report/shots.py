"""ICL and zero-shot beside the mechanisms against the number of demonstrations, and the line that evidence follows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from iclgd.report.marks import SETTINGS, Measure
from iclgd.report.panels import PLACE, Frame, free_keys

SHOTS = "task.shots"


def with_icl(measure: Measure, rows: Frame, parts: Mapping[str, tuple[Measure, Frame]]) -> tuple[Measure, Frame, str]:
    """A score of finetuning alone, such as accuracy, with the rows of ICL's and zero-shot's, where they were measured.

    Where a score has no limits, as log-odds have none, ICL's means have a straight line beside them: if every
    demonstration is evidence as good as any other, they lie on one (arXiv 2511.00617).

    Args:
        measure: the score.
        rows: its means by setting.
        parts: all scores with their rows, by name.

    Returns:
        The score under the name that it shares with ICL's, the rows, and words on the line.
    """
    twins = {setting: measure.info.of(setting, measure.results.scores.values()) for setting in SETTINGS}
    icl = twins["icl"]
    if icl is None or icl.name not in parts or not measure.info.reads("ft"):
        return measure, rows, ""
    # what the labels share: `Accuracy` of `Accuracy (FT)` and `Accuracy (ICL)`
    letters = zip(measure.info.label, icl.label, strict=False)
    common = "".join(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], letters)).rstrip(" (")
    measure = replace(measure, info=replace(measure.info, label=common or measure.info.label))
    beside = [
        _of_setting(measure, parts[twin.name][1], setting, rows)
        for setting, twin in twins.items()
        if twin and twin.name in parts
    ]
    rows = pd.concat([rows, *beside], ignore_index=True)
    words = "" if math.isfinite(sum(measure.info.limits)) else _fit_lines(rows, free_keys(measure.results, rows))
    return measure, rows, words


def _of_setting(measure: Measure, rows: Frame, setting: str, beside: Frame) -> Frame:
    """ICL's or zero-shot's rows, once for each panel: the same for every mechanism, except in draws that it lost."""
    keys = [key for key in free_keys(measure.results, beside) if key != SHOTS]
    learning = [key for key in keys if key.startswith("finetune.")]  # which ICL does not depend on
    others = [*PLACE, *(key for key in keys if key not in learning)]
    rows = rows.sort_values("draws", ascending=False, kind="stable").drop_duplicates([*others, SHOTS])
    rows = rows.drop(columns=learning).merge(beside[[*others, *learning]].drop_duplicates(), on=others)
    return rows.assign(**{"finetune.name": setting, "variant": SETTINGS[setting].label})


def _fit_lines(rows: Frame, keys: list[str]) -> str:
    """Set `published` to the straight line through ICL's means in each setting; words on how it was fitted."""
    rows["published"], words = math.nan, {}
    icl = rows[(rows["finetune.name"] == "icl") & rows["mean"].notna()]
    for _, part in icl.groupby([*PLACE, *(key for key in keys if key != SHOTS)], dropna=False):
        if len(part) > 2:
            shots, means = part[SHOTS].astype(float), part["mean"]
            slope, start = np.polyfit(shots, means, 1)
            rows.loc[part.index, "published"] = line = start + slope * shots
            spread = means.var(ddof=0)
            explained = f"{1 - ((means - line) ** 2).mean() / spread:.2f}" if means.nunique() > 1 else "undefined"
            words[f"{slope:.3g} a demonstration, R\N{SUPERSCRIPT TWO} {explained}"] = None
    fits = f": {'; '.join(words)}" if 0 < len(words) < 3 else ""
    fitted = "a straight line in the number of demonstrations, fitted to ICL's means by least squares"
    return f"Fine dots: {fitted}{fits}." if words else ""
