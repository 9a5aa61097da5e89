"""What of a run, and of a sweep, goes to W&B?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.runs.folder import RunFolder
from iclgd.runs.identity import science

if TYPE_CHECKING:
    import pandas as pd

_SWEEP_COLUMNS = ("model.name", "task.name", "finetune.name", "finetune.lr", "task.shots", "seed")
_NOT_AXES = ("seed", "task.permutation")


@dataclass(frozen=True)
class RunContent:
    """What a run has to show.

    Attributes:
        scores: the content of scores.json.
        gradient_norms: (demonstration, layer, value), as in gradient_norms.parquet.
        trajectory: (step, score, layer, mean), as in trajectory.parquet.
        figures: image files.
        facts: further entries of the summary, such as {"diverged": True}.
    """

    scores: Mapping[str, Any]
    gradient_norms: pd.DataFrame | None = None
    trajectory: pd.DataFrame | None = None
    figures: Sequence[Path] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def write(self, run: Any) -> None:
        """Write it to a W&B run: for each layerwise score a history over `layer`, then tables, figures and means.

        Steps are counted here, so that a run which is sent twice has each row once.
        """
        import wandb

        steps = itertools.count()
        for row in self._rows(run):
            run.log(row, step=next(steps))
        media: dict[str, Any] = {"scores": _table(score_rows(self.scores))}
        if self.gradient_norms is not None:
            media["gradient_norms"] = wandb.Table(dataframe=self.gradient_norms)
        media |= {f"figures/{path.stem}": wandb.Image(str(path)) for path in self.figures}
        run.log(media, step=next(steps))
        means = {name: _number(entry["mean"]) for name, entry in flattened(self.scores)}
        run.summary.update({**means, **self.facts})

    def _rows(self, run: Any) -> Iterator[dict[str, Any]]:
        layerwise = {name: entry["layers"] for name, entry in flattened(self.scores) if entry.get("layers")}
        yield from _curves(run, "layer", layerwise)
        if self.trajectory is not None:
            run.define_metric("trajectory/step", summary="none")
            means = self.trajectory.pivot_table("mean", "step", "score", aggfunc="mean", dropna=False)  # over layers
            for name in means:
                run.define_metric(f"trajectory/{name}", step_metric="trajectory/step", summary="none")
            for step, row in means.iterrows():
                yield {"trajectory/step": step} | {f"trajectory/{name}": value for name, value in row.items()}


def _curves(run: Any, axis: str, curves: Mapping[str, Sequence[float | None]]) -> Iterator[dict[str, Any]]:
    run.define_metric(axis, summary="none")
    for name in curves:
        run.define_metric(name, step_metric=axis, summary="none")  # the summary has the mean under this name
    for index in range(max(map(len, curves.values()), default=0)):
        yield {axis: index} | {name: _number(values[index]) for name, values in curves.items() if index < len(values)}


def flattened(scores: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of scores.json by name; those that stand together, such as accuracies, as `accuracy/icl`."""
    for name, entry in scores.items():
        if "mean" in entry:
            yield name, entry
            continue
        shared = {"ci": entry.get("ci") or {}, "undefined": entry.get("undefined") or {}, "n": entry.get("n")}
        for child, value in entry.items():
            if child in shared:
                continue
            if isinstance(value, Mapping):
                yield f"{name}/{child}", dict(value)
            else:
                parts = {"ci": shared["ci"].get(child), "undefined": shared["undefined"].get(child)}
                yield f"{name}/{child}", {"mean": value, "layers": [], "n": shared["n"], **parts}


def score_rows(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each score over all examples, and one over those that flip from wrong to right, where there are."""
    rows = []
    for name, whole in flattened(scores):
        for examples, entry in (("all", whole), ("flipped", whole.get("flipped"))):
            if entry is None:
                continue
            low, high = entry.get("ci") or (None, None)
            row = {"score": name, "examples": examples, "mean": entry["mean"], "ci_low": low, "ci_high": high}
            rows.append(row | {"n": entry.get("n"), "undefined": entry.get("undefined")})
    return rows


@dataclass(frozen=True)
class SweepContent:
    """What a sweep has to show: a row for each run, plots over each numeric setting that varies, and figures."""

    rows: Sequence[Mapping[str, Any]]
    axes: Sequence[str]
    measures: Sequence[str]
    figures: Sequence[Path] = ()

    @classmethod
    def read(cls, folders: Sequence[Path], figures: Sequence[Path] = ()) -> SweepContent:
        """Read finished and failed run folders.

        Raises:
            OSError: a folder has no config.yaml.
        """
        settings = [_settings(folder) for folder in folders]
        keys = dict.fromkeys(key for one in settings for key in one)
        varying = [key for key in keys if len({str(one.get(key)) for one in settings}) > 1]
        columns = list(dict.fromkeys([*_SWEEP_COLUMNS, *varying]))
        rows, measures = [], dict[str, None]()
        for folder, one in zip(folders, settings, strict=True):
            run = RunFolder(folder)
            done = run.is_done()
            means = {name: entry["mean"] for name, entry in flattened(run.read_json("scores.json"))} if done else {}
            measures |= dict.fromkeys(means)
            state = "done" if done else str(run.state() or "not started")
            rows.append({"run": folder.name, "state": state, **{key: one.get(key) for key in columns}, **means})
        numeric = (int, float)
        axes = [
            key for key in varying if key not in _NOT_AXES and all(type(one.get(key)) in numeric for one in settings)
        ]
        return cls(rows, axes, list(measures), figures)

    def write(self, run: Any) -> None:
        """Write it to a W&B run, at a step that grows with what is done, so that a later, fuller table is kept."""
        import wandb

        table = _table(self.rows)
        content: dict[str, Any] = {"sweep": table}
        for axis, measure in itertools.product(self.axes, self.measures):
            title = f"{measure} by {axis}"
            content[f"plots/{title}"] = wandb.plot.scatter(table, axis, measure, title=title)
        content |= {f"figures/{path.stem}": wandb.Image(str(path)) for path in self.figures}
        done = sum(row["state"] == "done" for row in self.rows)
        run.log(content, step=done)
        run.summary.update({"runs": len(self.rows), "done": done})


def _settings(folder: Path) -> dict[str, Any]:
    import yaml

    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return {key: value for key, value in _leaves(science(config)) if not key.startswith("metric.")}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if value is None or isinstance(value, bool | int | float) else str(value)


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    columns: list[Any] = list(dict.fromkeys(key for row in rows for key in row))
    return wandb.Table(
        columns=columns, data=[[row.get(key) for key in columns] for row in rows], allow_mixed_types=True
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
