"""A figure: an Altair chart with a name, a title and a caption; and the look that all figures share."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import altair as alt
import vl_convert

from iclgd.runs.files import replacing

if TYPE_CHECKING:
    from iclgd.results.catalogue import Variant

TEXT_WIDTH, COLUMN_WIDTH = 470, 230  # points: a page's text, and one of its two columns
DATA, SETTING = "rows", "setting"  # the name of every chart's data, and of the parameter that its menu sets
# Okabe and Ito (2008), which colour-blind readers can tell apart, then Tol's muted ones, for variants without a colour
PALETTE = (
    "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#332288", "#882255", "#117733", "#44AA99", "#999933", "#661100",
)  # fmt: skip
SHAPES = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "triangle-right", "triangle-left")
DASHES = ([1, 0], [5, 2], [2, 1.5], [6, 2, 1, 2], [9, 2], [3, 1, 1, 1, 1, 1])
LINES = ("strokeDash", "color")  # what the legend of lines tells variants apart by
_INK, _SOFT, _GRID = "#1d2327", "#5c676e", "#e6e9eb"  # text, axes, grid


def theme() -> dict[str, Any]:
    """The Vega-Lite config of every figure, with type of 8 points at paper width."""
    axis = {"labelColor": _INK, "titleColor": _INK, "domainColor": _SOFT, "tickColor": _SOFT, "gridColor": _GRID}
    axis |= {"labelFontSize": 7.5, "titleFontSize": 8.5, "titleFontWeight": "normal", "tickSize": 3, "gridWidth": 0.6}
    axis |= {"domainWidth": 0.6, "tickWidth": 0.6, "titlePadding": 5, "labelPadding": 2, "labelLimit": 200}
    legend = {"orient": "top", "title": None, "labelFontSize": 8, "labelColor": _INK, "symbolStrokeWidth": 1.4}
    legend |= {"symbolSize": 32, "labelLimit": 150, "columnPadding": 9, "rowPadding": 1.5, "offset": 5}
    legend |= {"symbolLimit": 0, "symbolOpacity": 1, "gradientThickness": 7, "gradientLength": 100}
    legend |= {"titleColor": _INK, "titleFontSize": 8, "titleFontWeight": "normal"}
    # One weight of one font: the PDF writer puts several fonts into the file in an order of its own, anew each time.
    header = {"labelFontSize": 9, "labelColor": _INK, "labelPadding": 3, "labelLimit": 190, "titleColor": _INK}
    return {
        "background": "white",
        "padding": 3,
        "font": "Helvetica, Arial, 'Liberation Sans', sans-serif",
        "view": {"stroke": None},
        "axis": axis,
        "axisX": {"grid": False},
        "axisY": {"domain": False, "ticks": False},
        "legend": legend,
        "header": {**header, "titleFontSize": 8.5, "titleFontWeight": "normal", "labelFontWeight": "normal"},
        "title": {"fontSize": 8.5, "color": _INK, "fontWeight": "normal", "anchor": "start", "offset": 6},
        "line": {"strokeWidth": 1.4},
        "rule": {"color": _SOFT, "strokeWidth": 0.7},
        "text": {"color": _INK, "fontSize": 7.5},
        "facet": {"spacing": 12},
        "concat": {"spacing": 14},
    }


def themed(chart: Any, rows: list[dict[str, Any]]) -> Any:
    """The chart with its rows, which it knows as `DATA`, and the theme of all figures."""
    chart.datasets, chart.config = {DATA: rows}, theme()  # last, for Altair copies a chart at every step
    return chart


@dataclass(frozen=True)
class Figure:
    """One figure, for the page, for files and for W&B alike.

    Attributes:
        name: unique among figures, `KIND/SCORE`; the page offers the figures of one kind as choices.
        title: a heading.
        chart: the chart with its data and its theme.
        caption: what marks and intervals mean.
        choice: what tells it from others of its kind, such as the score's label; empty where it is alone.
        headline: whether it is also written to a file and sent to W&B.
    """

    name: str
    title: str
    chart: alt.Chart | alt.LayerChart | alt.FacetChart | alt.HConcatChart
    caption: str
    choice: str = ""
    headline: bool = True

    @property
    def kind(self) -> str:
        """What it has in common with the figures of other scores."""
        return self.name.partition("/")[0]

    @property
    def shown_setting(self) -> str:
        """The one setting that a file shows where the page has a menu of several; else empty."""
        params = self.specification.get("params", ())
        return next((str(param["value"]) for param in params if param["name"] == SETTING), "")

    @property
    def file_name(self) -> str:
        """The name and the setting shown as a file's, without an ending: letters, digits, dots and dashes."""
        name = f"{self.name}_{self.shown_setting}"
        return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:100] or "figure"

    @functools.cached_property
    def specification(self) -> dict[str, Any]:
        """The chart as Vega-Lite, with its data; page, files and W&B draw from it."""
        chart: Any = self.chart.copy(deep=False)  # Altair would walk through every row, which are plain values already
        chart.datasets = alt.Undefined
        return chart.to_dict(validate=False) | {"datasets": getattr(self.chart, "datasets", {})}

    def save(self, path: str | Path) -> Path:
        """Write it as the path's ending says: png, pdf or svg, or html with controls; a ValueError for another."""
        path = Path(path)
        writers: Mapping[str, Any] = {
            ".png": functools.partial(vl_convert.vegalite_to_png, ppi=300),
            ".pdf": lambda chart: _ordered(vl_convert.vegalite_to_pdf(chart)),
            ".svg": vl_convert.vegalite_to_svg,
            ".html": functools.partial(vl_convert.vegalite_to_html, bundle=True),
        }
        if path.suffix not in writers:
            raise ValueError(f"{path.name} cannot be written as a figure: end it in {', '.join(writers)}")
        content = writers[path.suffix](self.specification)
        with replacing(path) as part:
            part.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


def _ordered(pdf: bytes) -> bytes:
    """The same PDF with its resources in order, because the writer lists them in a new order in every call."""
    return re.sub(
        rb"(?:^ +/[a-z]+\d+ \d+ \d+ R\n)+", lambda fonts: b"".join(sorted(fonts[0].splitlines(True))), pdf, flags=re.M
    )


def write(figures: Sequence[Figure], out: Path) -> list[Path]:
    """Write figures as PNG and PDF, named after what they show."""
    return [figure.save(out / f"{figure.file_name}{ending}") for figure in figures for ending in (".png", ".pdf")]


def colors(variants: Mapping[str, Variant]) -> dict[str, str]:
    """A colour for each variant's label: its own, or the next free one of the palette."""
    used = {variant.color for variant in variants.values()}
    free = itertools.cycle([color for color in PALETTE if color not in used] or PALETTE)
    return {variant.label: variant.color or next(free) for variant in variants.values()}


def looks(variants: Mapping[str, Variant], shown: Iterable[str], keyed: Sequence[str], width: float) -> dict[str, Any]:
    """Encodings of the field `variant` by colour, mark and dashes, so that print in grey works.

    `shown` are the labels of the variants that are shown, `keyed` the channels that the one legend explains, and
    `width` is the legend's.
    """
    by_label = colors(variants)
    labels = [label for label in by_label if label in set(shown)]
    look: dict[str, Any] = {"columns": max(1, int(width // (3.9 * max(map(len, labels), default=1) + 22)))}
    look |= {"symbolType": "stroke", "symbolSize": 240} if keyed == LINES else {}
    legend = alt.Legend(**look) if len(labels) > 1 else None
    channels: dict[str, tuple[Any, Any]] = {
        "color": (alt.Color, map(by_label.get, labels)),
        "fill": (alt.Fill, map(by_label.get, labels)),
        "shape": (alt.Shape, itertools.cycle(SHAPES)),
        "strokeDash": (alt.StrokeDash, itertools.cycle(DASHES)),
    }
    encodings = {}
    for name, (channel, values) in channels.items():
        # Vega-Lite merges legends of equal domains, and one that is off switches off all: a reversed domain is another
        # one, so that channels without a legend leave the others theirs.
        pairs = list(zip(labels, values, strict=False))[:: 1 if name in keyed else -1]
        scale = alt.Scale(domain=[label for label, _ in pairs], range=[value for _, value in pairs])
        encodings[name] = channel("variant:N", scale=scale, legend=legend if name in keyed else None, title=None)
    return encodings
