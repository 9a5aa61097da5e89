"""What of a run, and of a sweep, goes to W&B: curves, tables, means, figures and an artifact."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from iclgd.results.frame import Results
from iclgd.results.reading import FinishedRun, read_run

if TYPE_CHECKING:
    from iclgd.report.chart import Figure

_ARTIFACT = ("fingerprint.json", "config.yaml", "prompts.json", "scores.json", "environment.json")


def write_run(run: Any, folder: Path, objective: str | None = None) -> None:
    """Write a finished run to a W&B run: curves over layers and over steps, then tables, means and files.

    Steps are counted here, so that a run which is sent twice has each row once. The mean of the score `objective` is
    also called `objective`: W&B's sweeps would take the best layer of the score under its own name.
    """
    import wandb

    finished = read_run(folder)
    curves = {name: finished.layers(name) for name in finished.scores}
    layers = pd.DataFrame({name: pd.Series(curve) for name, curve in curves.items() if curve})
    rows = [*_history(run, "layer", layers), *_history(run, "training/step", _training(folder))]
    for step, row in enumerate(rows):
        run.log(row, step=step)
    gradient_norms = wandb.Table(dataframe=pd.read_parquet(folder / "gradient_norms.parquet"))
    run.log({"scores": _table(score_rows(finished)), "gradient_norms": gradient_norms}, step=len(rows))
    for name, curve in curves.items():
        run.summary[name] = finished.mean(name)
        run.summary.update({f"{name}/layer_{layer}": mean for layer, mean in enumerate(curve)})
        if curve:  # runs that trained different layers have means over different ones
            run.summary[f"{name}/defined_layers"] = sum(not math.isnan(mean) for mean in curve)
    if objective is not None:
        run.summary["objective"] = finished.mean(objective)
    run.summary.update({name: fact for name, fact in finished.status.facts.items() if isinstance(fact, bool)})
    artifact = wandb.Artifact(f"result-{run.id}", type="result")
    for path in map(folder.joinpath, _ARTIFACT):
        if path.is_file():
            artifact.add_file(str(path))
    run.log_artifact(artifact)


def _training(folder: Path) -> pd.DataFrame:
    """The loss of each step."""
    if not (folder / "losses.parquet").is_file():
        return pd.DataFrame()
    losses: Any = pd.read_parquet(folder / "losses.parquet")
    return losses.set_index("step")[["loss"]].add_prefix("training/")


def _history(run: Any, axis: str, curves: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of curves over an axis of their own; the summary has means under their names."""
    run.define_metric(axis, summary="none")
    for name in curves:
        run.define_metric(name, step_metric=axis, summary="none")
    return [{axis: index, **row} for index, row in zip(curves.index, curves.to_dict("records"), strict=True)]


def score_rows(run: FinishedRun) -> list[dict[str, Any]]:
    """One row for each score over all examples, and one over those that flip from wrong to right, where there are."""
    frame: Any = run.frame
    rows = frame[frame["layer"].isna()]
    return rows[["score", "examples", "mean", "low", "high", "n", "undefined"]].to_dict("records")


def write_sweep(run: Any, folders: Sequence[Path], figures: Sequence[Figure]) -> None:
    """Write a sweep to a W&B run, at a step that grows with what is done, so that a later, fuller table is kept."""
    import wandb

    results = Results.read(folders)
    content: dict[str, Any] = {"sweep": _table(sweep_rows(results))}
    for figure in figures:
        if figure.headline:
            content[f"figures/{figure.name}"] = wandb.Html(_drawing(figure), inject=False)
    run.log(content, step=len(results))
    run.summary.update({"runs": len(results) + len(results.left_out), "done": len(results)})


def sweep_rows(results: Results) -> list[dict[str, Any]]:
    """A row for each run: its state, its settings and its scores' means; of one that is not finished, its state."""
    rows = results.run_table.astype(object).to_dict("records")
    return rows + [{"run": folder.name, "state": reason} for folder, reason in results.left_out]


def _drawing(figure: Figure) -> str:
    """A figure as vectors, with its caption; W&B's images need Pillow, which nothing else does."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg(figure.specification)
    return f"<style>svg {{width: 100%; height: auto}}</style>{svg}<p>{html.escape(figure.caption)}</p>"


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    columns: list[Any] = list(dict.fromkeys(key for row in rows for key in row))
    data: list[Any] = [[row.get(key) for key in columns] for row in rows]
    return wandb.Table(columns=columns, data=data, allow_mixed_types=True)
