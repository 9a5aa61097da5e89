"""The settings of a figure, split into panels and a menu."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from iclgd.common.printable import printable
from iclgd.report.chart import COLUMN_WIDTH, DATA, SETTING, TEXT_WIDTH, themed
from iclgd.runs import varying_keys

if TYPE_CHECKING:
    from iclgd.results.frame import Results

Frame = Any  # a pandas DataFrame; pyright cannot follow what pandas' stubs make of one
PLACE = ("task.name", "model.name", "model.weights")
_BARE = (*PLACE, "variant")  # shown by their values alone, without a heading
_GAP, _AXIS, _LETTER = 14, 42, 4.6  # points between panels, for the labels of an axis, for a letter of a heading
_MOST_ACROSS, _MOST_PANELS = 6, 24
_FIELDS = "variant role sees panel setting about x y value mean low high lone planted floor ceiling published".split()


@dataclass(frozen=True)
class Grid:
    """Rows to draw, and how they are split."""

    rows: Frame  # with the columns `panel` and `setting`, each a text
    panels: Sequence[str]  # the values of `panel`, in order
    choices: Sequence[str]  # the values of `setting`, one of which is shown
    columns: int = 1  # how many panels stand side by side

    @property
    def total(self) -> float:
        """The figure's width: one panel fits a column of a two-column page, several fill the page's width."""
        return COLUMN_WIDTH if self.columns == 1 else TEXT_WIDTH

    @property
    def width(self) -> float:
        """The width of a panel."""
        return (self.total - _AXIS - _GAP * (self.columns - 1)) / self.columns

    @property
    def height(self) -> float:
        """The height of a panel."""
        return max(90.0, min(0.7 * self.width, 135.0))

    def draw(self, *layers: Any, width: float | None = None, height: float | None = None) -> Any:
        """The layers in every panel, with a menu of settings where there are more than the panels show."""
        chart: Any = alt.layer(*layers).properties(width=width or self.width, height=height or self.height)
        data = alt.NamedData(name=DATA)
        if len(self.panels) > 1:
            facet = alt.Facet("panel:N", sort=list(self.panels), header=alt.Header(title=None), title=None)
            chart = chart.facet(facet=facet, columns=self.columns, data=data)
        else:
            chart.data = data
        if len(self.choices) > 1:  # the one that is shown is named above the figure
            title = {"text": {"expr": f"{SETTING} + ' (one of {len(self.choices)} settings)'"}}
            chart = chart.transform_filter("datum.setting === setting").properties(title=title)
            menu = alt.binding_select(options=list(self.choices), name="setting ")
            shown = _most_common(self.rows, self.choices)
            chart.params = [alt.param(name=SETTING, value=shown, bind=menu).param]
        return themed(chart, records(self.rows))


def grid(results: Results, rows: Frame, panels: Sequence[str] = PLACE, used: Sequence[str] = ()) -> Grid:
    """Split rows by what was varied: panels for all keys that they have room for, a menu for the others.

    Each value of the columns `panels` has a panel; the figure itself shows the keys `used`.
    """
    keys, rows = list(panels), rows.copy()
    others = [key for key in free_keys(results, rows) if key not in used]
    rows["panel"], names = labelled(results, rows, keys)
    columns = min(len(names), 4 if len(names) != 6 else 3)
    if len(names) > _MOST_PANELS:
        rows["panel"], names, columns, keys, others = "", [""], 1, [], [*keys, *others]
    for key in list(others):
        count = rows[key].nunique(dropna=False)
        if keys and count <= _MOST_ACROSS and len(names) * count <= _MOST_PANELS:
            keys.append(key)
            others.remove(key)
            rows["panel"], names = labelled(results, rows, keys)
            columns = count
    room = int(TEXT_WIDTH / (_LETTER * max(map(len, names)) + _GAP))  # so that headings do not overlap
    columns = max(n for n in range(1, columns + 1) if columns % n == 0 and n <= max(room, 1))
    rows["setting"], choices = labelled(results, rows, others)
    return Grid(rows, names, choices, columns)


def free_keys(results: Results, rows: Frame) -> list[str]:
    """The swept keys that differ within one variant and place; a rate that a variant brings with it does not."""
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
    order: Frame = pd.DataFrame({**ranks, "label": labels}).drop_duplicates("label")
    return labels, order.sort_values([*ranks] or ["label"], kind="stable")["label"].tolist()


def _most_common(rows: Frame, options: Sequence[str]) -> str:
    """The setting that most panels and variants have; among equals the middle one."""
    counts = rows.drop_duplicates(["setting", "panel", "variant"])["setting"].value_counts()
    best = [option for option in options if counts[option] == counts.max()]
    return best[len(best) // 2]


def records(rows: Frame) -> list[dict[str, Any]]:
    """Rows as plain values, None where undefined, without columns that are wholly empty."""
    rows = rows[[name for name in _FIELDS if name in rows]]
    rows = rows.loc[:, (rows.notna() & (rows != "")).any()]
    return json.loads(rows.to_json(orient="records", double_precision=10))
