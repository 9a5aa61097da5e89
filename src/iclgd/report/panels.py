"""How the settings of a figure are split into panels, headings and choices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from iclgd.report.chart import COLUMN_WIDTH, DATA, TEXT_WIDTH, themed
from iclgd.runs import varied
from iclgd.shown import printable

if TYPE_CHECKING:
    from iclgd.report.results import Results

Frame = Any  # a pandas DataFrame; what pandas' stubs make of one cannot be followed
PLACE = ("task.name", "model.name", "model.weights")
_GAP, _AXIS = 14, 42  # points between panels, and for the labels of the first one's axis
_MOST_ACROSS, _MOST_PANELS = 6, 12
_FIELDS = "variant panel across setting about layer x y value mean low high floor ceiling published".split()


@dataclass(frozen=True)
class Grid:
    """Rows to draw, and how they are split.

    Attributes:
        rows: with the columns `panel`, `across` and `setting`, each a text.
        panels: the values of `panel`, in order: where it was measured.
        across: the values of `across`: one swept key; empty if there is none with few values.
        choices: the values of `setting`, one of which is shown: all other swept keys together.
    """

    rows: Frame
    panels: Sequence[str]
    across: Sequence[str] = ()
    choices: Sequence[str] = ()

    @property
    def columns(self) -> int:
        """How many panels stand side by side."""
        return len(self.across) or min(max(len(self.panels), 1), 4 if len(self.panels) != 6 else 3)

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
        panel: Any = alt.layer(*layers).properties(width=self.width, height=height or self.height)
        facets = {
            name: {"field": name, "type": "nominal", "sort": list(order), "header": {"title": None}, "title": None}
            for name, order in (("panel", self.panels), ("across", self.across))
            if len(order) > 1
        }
        data = alt.NamedData(name=DATA)
        if len(facets) == 2:
            chart = panel.facet(row=alt.Row(**facets["panel"]), column=alt.Column(**facets["across"]), data=data)
        elif facets:
            chart = panel.facet(facet=alt.Facet(**next(iter(facets.values()))), columns=self.columns, data=data)
        else:
            panel.data, chart = data, panel
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


def grid(
    results: Results, rows: Frame, used: Sequence[str] = (), panel: Sequence[str] = (), places: bool = True
) -> Grid:
    """Split rows by what was varied.

    Args:
        results: what the rows are of.
        rows: some of `results.summary`, with a column `variant`.
        used: keys that the figure itself shows.
        panel: further columns that have panels of their own, such as `variant`.
        places: whether each task, model and kind of weights has a panel of its own.
    """
    rows = rows.copy()
    where = place_texts(results, rows) if places else [""] * len(rows)
    rows["panel"] = _joined(where, *(rows[name] for name in panel))
    panels = in_order(rows, "panel", [*PLACE, *panel])
    keys = [key for key in free_keys(results, rows) if key not in used]
    across = next((key for key in keys if rows[key].nunique(dropna=False) <= _MOST_ACROSS), None)
    across = across if len(panels) <= 4 else None
    others = [key for key in keys if key != across]
    rows["across"] = setting_texts(rows, [across] if across else [])
    rows["setting"] = setting_texts(rows, others)
    if len(panels) > _MOST_PANELS:
        rows["setting"] = _joined(rows["panel"], rows["setting"])
        rows["panel"], panels, others = "", [""], [*PLACE, *panel, *others]
    columns = in_order(rows, "across", [across]) if across else []
    return Grid(rows, panels, columns, in_order(rows, "setting", others))


def free_keys(results: Results, rows: Frame) -> list[str]:
    """The varied keys that differ within one variant and place; a rate that a variant brings with it does not."""
    keys = [key for key in results.varied if key in rows and key not in (*PLACE, "finetune.name")]
    settings = rows[[*keys, *PLACE, "finetune.name"]].drop_duplicates()
    within = [*PLACE, "finetune.name"]
    return [key for key in keys if settings.groupby(within, dropna=False)[key].nunique(dropna=False).max() > 1]


def text(value: Any) -> str:
    """A setting's value as figures name it; what pandas fills in for None is none."""
    lacks = value is pd.NA or (isinstance(value, float) and np.isnan(value))
    return printable(varied.as_text(None if lacks else value), 40)


def _texts(column: Frame) -> np.ndarray:
    codes, values = pd.factorize(column, use_na_sentinel=False)
    return np.array([text(value) for value in values], dtype=object)[codes]


def setting_texts(rows: Frame, keys: Sequence[str]) -> list[str]:
    """For each row its values of the keys, as `lr 0.01 · shots 8`, keys by their last word while those differ."""
    columns = [f"{varied.heading(key, keys)} " + _texts(rows[key]) for key in keys]
    return _joined(*columns) if columns else [""] * len(rows)


def place_texts(results: Results, rows: Frame) -> list[str]:
    """For each row its task, model and weights, as far as the rows differ in them."""
    keys = [key for key in PLACE if key in rows and rows[key].nunique() > 1]
    shown = [rows[key].map(results.short_name) if key == "model.name" else rows[key] for key in keys]
    return _joined(*map(_texts, shown)) if keys else [""] * len(rows)


def _joined(*columns: Iterable[Any]) -> list[str]:
    return [" · ".join(filter(None, parts)) for parts in zip(*columns, strict=True)]


def in_order(rows: Frame, label: str, keys: Iterable[str]) -> list[str]:
    """The values of a column in the order of the keys' values: numbers by size, texts as they come."""
    ranks: dict[str, Any] = {}
    for key in (key for key in keys if key in rows):
        numbers: Any = pd.to_numeric(rows[key], errors="coerce")
        ranks[key] = numbers if numbers.notna().all() else pd.factorize(_texts(rows[key]))[0]
    ranked: Frame = pd.DataFrame({**ranks, label: rows[label]}).drop_duplicates(label)
    return ranked.sort_values(list(ranks), kind="stable")[label].tolist() if ranks else ranked[label].tolist()


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
