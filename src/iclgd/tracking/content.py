"""What of a run, and of a sweep, goes to W&B: curves, tables and figures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.results.frame import Results
from iclgd.runs import varying_keys

if TYPE_CHECKING:
    import pandas as pd

    from iclgd.report.chart import Figure

_NAMES = ("task.name", "model.name", "finetune.name")


@dataclass(frozen=True)
class RunContent:
    """What a run has to show."""

    scores: Mapping[str, Any]  # the content of scores.json
    gradient_norms: pd.DataFrame | None = None  # (demonstration, layer, value), as in gradient_norms.parquet
    trajectory: pd.DataFrame | None = None  # (step, score, layer, mean), as in trajectory.parquet
    losses: Sequence[float] = ()  # of each step of finetuning
    # further entries of the summary, such as {"diverged": True}
    facts: Mapping[str, Any] = field(default_factory=dict)

    def write(self, run: Any) -> None:
        """Write it to a W&B run: a history over layers and one over steps, then tables and means.

        Steps are counted here, so that a run which is sent twice has each row once.
        """
        import wandb

        layered = {name: record["layers"] for name, record in self.scores.items() if record.get("layers")}
        rows = [*_history(run, "layer", layered), *_history(run, "training/step", self._training())]
        for step, row in enumerate(rows):
            run.log(row, step=step)
        media: dict[str, Any] = {"scores": _table(score_rows(self.scores))}
        if self.gradient_norms is not None:
            media["gradient_norms"] = wandb.Table(dataframe=self.gradient_norms)
        run.log(media, step=len(rows))
        summary = {name: _number(record["mean"]) for name, record in self.scores.items()}
        for name, layers in layered.items():
            summary |= {f"{name}/layer_{layer}": _number(value) for layer, value in enumerate(layers)}
        run.summary.update(summary | dict(self.facts))

    def _training(self) -> dict[str, list[float | None]]:
        """By name the loss of each step, and the mean over layers of what was measured after some of them."""
        curves: dict[str, list[float | None]] = {"training/loss": list(self.losses)} if self.losses else {}
        if self.trajectory is not None:
            means: Any = self.trajectory.pivot_table("mean", "step", "score", aggfunc="mean", dropna=False)
            means = means.reindex(range(max(len(self.losses), int(means.index.max()) + 1)))
            curves |= {f"training/{name}": means[name].tolist() for name in means}
        return curves


def _history(run: Any, axis: str, curves: Mapping[str, Sequence[float | None]]) -> Iterator[dict[str, Any]]:
    """Curves over an axis of their own, a row for each of its values; the summary has means under their names."""
    run.define_metric(axis, summary="none")
    for name in curves:
        run.define_metric(name, step_metric=axis, summary="none")
    for at, values in enumerate(itertools.zip_longest(*curves.values())):
        yield {axis: at} | {name: _number(value) for name, value in zip(curves, values, strict=True)}


def score_rows(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each score over all examples, and one over those that flip from wrong to right, where there are."""
    rows = []
    for name, whole in scores.items():
        for examples, record in (("all", whole), ("flipped", whole.get("flipped"))):
            if record is not None:
                low, high = record.get("ci") or (None, None)
                row = {"score": name, "examples": examples, "mean": record["mean"], "ci_low": low, "ci_high": high}
                rows.append(row | {"n": record.get("n"), "undefined": record.get("undefined")})
    return rows


@dataclass(frozen=True)
class SweepContent:
    """What a sweep has to show: a row for each run, plots over each number that was swept, and figures."""

    results: Results
    figures: Sequence[Figure] = ()

    @classmethod
    def read(cls, folders: Sequence[Path], figures: Sequence[Figure] = ()) -> SweepContent:
        """Read run folders; those that are not finished are rows without scores.

        Raises:
            ReportError: a folder is absent.
        """
        return cls(Results.read(folders), figures)

    @property
    def names(self) -> list[str]:
        """Tasks, models and variants."""
        return [str(run.settings[key]) for key in _NAMES for run in self.results.runs]

    @property
    def axes(self) -> list[str]:
        """The swept keys whose values are numbers."""
        settings = self.results.settings
        return [key for key in self.results.varied if settings[key].dtype.kind in "if"]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each run: its state, its settings and its scores' means."""
        keys = [*self.results.keys, *varying_keys.DRAW]
        rows = [
            {"run": run.name, "state": run.state}
            | {key: run.settings.get(key) for key in keys}
            | {name: self.results.mean(run, name) for name in self.results.scores}
            for run in self.results.runs
        ]
        return rows + [{"run": folder.name, "state": reason} for folder, reason in self.results.left_out]

    def write(self, run: Any) -> None:
        """Write it to a W&B run, at a step that grows with what is done, so that a later, fuller table is kept."""
        import wandb

        table = _table(self.rows)
        content: dict[str, Any] = {"sweep": table}
        for axis, score in itertools.product(self.axes, self.results.scores):
            title = f"{score} by {axis}"
            content[f"plots/{title}"] = wandb.plot.scatter(table, axis, score, title=title)
        content |= {
            f"figures/{one.name}": wandb.Html(_drawn(one), inject=False) for one in self.figures if one.headline
        }
        run.log(content, step=len(self.results))
        run.summary.update({"runs": len(self.results) + len(self.results.left_out), "done": len(self.results)})


def _drawn(figure: Figure) -> str:
    """A figure as vectors, with its caption; W&B's images need Pillow, which nothing else does."""
    import html

    import vl_convert

    drawn = vl_convert.vegalite_to_svg(figure.specification)
    return f"<style>svg {{width: 100%; height: auto}}</style>{drawn}<p>{html.escape(figure.caption)}</p>"


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    columns: list[Any] = list(dict.fromkeys(key for row in rows for key in row))
    return wandb.Table(
        columns=columns, data=[[row.get(key) for key in columns] for row in rows], allow_mixed_types=True
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
