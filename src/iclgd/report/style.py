"""How do figures look? One palette that colour-blind readers can tell apart, one size of type, files without dates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.runs.files import replacing
from iclgd.shown import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, Color Universal Design (2008)
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
)  # fmt: skip
GREY = "#777777"
PANEL_WIDTH, PANEL_HEIGHT = 2.4, 1.9  # inches


@dataclass(frozen=True)
class Look:
    """How one variant is drawn: told apart by colour, by marker and by line, so that print in grey still works."""

    color: str
    marker: str
    dashes: str | tuple[int, tuple[int, ...]]


_KNOWN = {
    "gd": Look(BLUE, "o", "-"),
    "lcgd": Look(VERMILION, "s", "--"),
    "short_circuit": Look(GREEN, "^", "-."),
    "lcgd_norm_matched": Look(ORANGE, "D", (0, (5, 1))),
    "gd_norm_matched": Look(SKY, "v", (0, (3, 1, 1, 1))),
}
_FURTHER = (
    Look(PURPLE, "P", ":"),
    Look(GREEN, "X", (0, (1, 1))),
    Look(BLACK, "*", (0, (5, 2, 1, 2))),
    Look(SKY, "<", (0, (7, 2))),
    Look(ORANGE, ">", (0, (2, 2))),
    Look(GREY, "h", (0, (3, 3))),
    Look(BLUE, "p", (0, (4, 1, 1, 1, 1, 1))),
    Look(VERMILION, "d", (0, (6, 1, 2, 1))),
    Look(PURPLE, "8", (0, (2, 1))),
)


def looks(variants: list[str]) -> Mapping[str, Look]:
    """A look for every variant; `gd` and `lcgd` have the same one everywhere."""
    others = [name for name in variants if name not in _KNOWN]
    return {name: _KNOWN[name] if name in _KNOWN else _FURTHER[others.index(name) % len(_FURTHER)] for name in variants}


@contextmanager
def print_style() -> Iterator[None]:
    """Settings for everything drawn inside, undone afterwards; nothing global is left changed."""
    import matplotlib

    settings: Any = {
        "font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8, "legend.fontsize": 7, "xtick.labelsize": 7,
        "ytick.labelsize": 7, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
        "axes.grid": True, "grid.linewidth": 0.4, "grid.color": "#DDDDDD", "axes.axisbelow": True,
        "lines.linewidth": 1.3, "lines.markersize": 3.2, "legend.frameon": False, "font.family": "DejaVu Sans",
        "pdf.fonttype": 42, "savefig.dpi": 160, "text.usetex": False,
        "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield


def panels(count: int, columns: int = 3, height: float = PANEL_HEIGHT) -> tuple[Figure, list[Axes]]:
    """A figure with that many panels in rows; no pyplot, hence no shared state."""
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(PANEL_WIDTH * columns + 0.4, height * rows + 0.35), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = [axis for row in grid for axis in row]
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def save(figure: Figure, path: Path, *, pdf: bool = False) -> list[Path]:
    """Write PNG, and vector PDF where asked; the same figure gives the same bytes.

    Args:
        figure: what to write.
        path: the file's place without its ending.
        pdf: whether to write PDF too.
    """
    undated: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    written = []
    for ending in ("png", "pdf") if pdf else ("png",):
        written.append(path.with_name(f"{path.name}.{ending}"))
        with replacing(written[-1], sync=False) as part:
            figure.savefig(part, metadata=undated[ending])
    return written


def figure_text(text: str, most: int = 60) -> str:
    """The same with dollar signs that start no formula."""
    return printable(text, most).replace("$", r"\$")


def legend_above(axis: Axes, columns: int = 2) -> None:
    """A legend above the panel, where it hides no curve."""
    axis.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, handlelength=1.8, columnspacing=1, borderpad=0.1
    )
