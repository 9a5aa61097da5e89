"""How the settings of a figure are split into panels, headings and choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from iclgd.common.printable import printable
from iclgd.report.chart import COLUMN_WIDTH, DATA, TEXT_WIDTH, themed
from iclgd.runs import varying_keys

if TYPE_CHECKING:
    from iclgd.results.frame import Results

Frame = Any  # a pandas DataFrame; what pandas' stubs make of one cannot be followed
PLACE = ("task.name", "model.name", "model.weights")
_BARE, _LABEL = (*PLACE, "variant"), "label"
_GAP, _AXIS = 14, 42  # points between panels, and for the labels of the first one's axis
_MOST_ACROSS, _MOST_DOWN, _MOST_PANELS = 6, 4, 12
_FIELDS = "variant panel setting about x y value mean low high floor ceiling published upper".split()


@dataclass(frozen=True)
class Grid:
    """Rows to draw, and how they are split."""

    rows: Frame  # with the columns `panel` and `setting`, each a text
    # the values of `panel`, in order: where it was measured, and one swept key if it has few values
    panels: Sequence[str]
    choices: Sequence[str]  # the values of `setting`, one of which is shown: all other swept keys together
    columns: int = 1  # how many panels stand side by side

    @property
    def width(self) -> float:
        """Of one panel: a single one fits a column of a two-column page, several fill the page's width together."""
        if self.columns == 1:
            return COLUMN_WIDTH - _AXIS
        return (TEXT_WIDTH - _AXIS - _GAP * (self.columns - 1)) / self.columns

    @property
    def height(self) -> float:
        """Of one panel."""
        return max(90.0, min(0.7 * self.width, 135.0))

    def draw(self, *layers: Any, height: float | None = None) -> Any:
        """The layers in every panel, with a choice among settings where there are more than panels show."""
        chart: Any = alt.layer(*layers).properties(width=self.width, height=height or self.height)
        data = alt.NamedData(name=DATA)
        if len(self.panels) > 1:
            facet = alt.Facet("panel:N", sort=list(self.panels), header=alt.Header(title=None), title=None)
            return self.choosing(chart.facet(facet=facet, columns=self.columns, data=data))
        chart.data = data
        return self.choosing(chart)

    def choosing(self, chart: Any, filtered: bool = False) -> Any:
        """The chart with a menu of settings, which one is shown written above it; themed."""
        if len(self.choices) > 1:
            menu = alt.binding_select(options=list(self.choices), name="setting ")
            setting = alt.param(name="setting", value=_most_common(self.rows, self.choices), bind=menu)
            chart = chart if filtered else chart.transform_filter("datum.setting === setting")
            chart = chart.properties(title={"text": {"expr": "setting"}})
            chart.params = [setting.param]
        return themed(chart, records(self.rows))


def grid(results: Results, rows: Frame, panels: Sequence[str] = PLACE, used: Sequence[str] = ()) -> Grid:
    """Split rows by what was varied.

    Each value of the columns `panels` has a panel; the figure itself shows the keys `used`.
    """
    keys, rows = list(panels), rows.copy()
    others = [key for key in free_keys(results, rows) if key not in used]
    rows["panel"], names = labelled(results, rows, keys)
    columns = min(len(names), 4 if len(names) != 6 else 3)
    few = next((key for key in others if rows[key].nunique(dropna=False) <= _MOST_ACROSS), None)
    if few is not None and len(names) <= _MOST_DOWN:
        columns = rows[few].nunique(dropna=False)
        keys, others = [*keys, few], [key for key in others if key != few]
        rows["panel"], names = labelled(results, rows, keys)
    elif len(names) > _MOST_PANELS:
        rows["panel"], names, columns, others = "", [""], 1, [*keys, *others]
    rows["setting"], choices = labelled(results, rows, others)
    return Grid(rows, names, choices, columns)


def free_keys(results: Results, rows: Frame) -> list[str]:
    """The varied keys that differ within one variant and place; a rate that a variant brings with it does not."""
    within = [*PLACE, "finetune.name"]
    keys = [key for key in results.varied if key in rows and key not in within]
    settings = rows[[*keys, *within]].drop_duplicates().groupby(within, dropna=False)
    return [key for key in keys if settings[key].nunique(dropna=False).max() > 1]


def labelled(results: Results, rows: Frame, keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """Each row's values of the keys as one text, and the different texts in order: numbers by size, words as they come.

    A place or a variant goes by its name, where there are several; other keys have a heading: `lr 0.01 · shots 8`.
    """
    keys = [key for key in keys if key not in _BARE or rows[key].nunique() > 1]
    headed = [key for key in keys if key not in _BARE]
    parts, ranks = [np.full(len(rows), "", dtype=object)], {}
    for key in keys:
        codes, values = pd.factorize(rows[key], use_na_sentinel=False)
        words = [printable(results.text(key, value), 40) for value in values]
        words = [f"{varying_keys.heading(key, headed)} {word}" if key in headed else word for word in words]
        parts.append(np.array(words, dtype=object)[codes])
        sizes: Any = pd.to_numeric(pd.Series(values), errors="coerce")
        ranks[key] = sizes.to_numpy()[codes] if sizes.notna().all() else codes
    labels = [" · ".join(filter(None, words)) for words in zip(*parts, strict=True)]
    order: Frame = pd.DataFrame({**ranks, _LABEL: labels}).drop_duplicates(_LABEL)
    return labels, order.sort_values([*ranks, *([] if ranks else [_LABEL])], kind="stable")[_LABEL].tolist()


def _most_common(rows: Frame, options: Sequence[str]) -> str:
    """The setting that most panels and variants have; of equals the middle one."""
    counts = rows.drop_duplicates(["setting", "panel", "variant"])["setting"].value_counts()
    best = [option for option in options if counts[option] == counts.max()]
    return best[len(best) // 2]


def records(rows: Frame) -> list[dict[str, Any]]:
    """Rows as plain values: floats with five digits, None where undefined, and no column that is empty throughout."""
    columns = {name: _plain(rows[name]) for name in _FIELDS if name in rows}
    columns = {name: values for name, values in columns.items() if any(value not in (None, "") for value in values)}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _plain(column: Frame) -> list[Any]:
    if pd.api.types.is_float_dtype(column.dtype):
        return [float(f"{value:.5g}") if np.isfinite(value) else None for value in column.tolist()]
    return column.astype(object).where(column.notna(), None).tolist()
