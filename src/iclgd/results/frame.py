"""Finished runs together: one frame of every score, and its summary over draws.

Tables, figures, page, status, the Python interface and W&B read these and nothing else.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from iclgd.config.enumerations import OnOverflow, Sees, Weights
from iclgd.results import catalogue
from iclgd.results.averages import COLUMNS, Layers, over_draws, over_layers
from iclgd.results.catalogue import ScoreInfo, Variant
from iclgd.results.reading import FinishedRun, ReportError, plain, read_runs, rows_of
from iclgd.runs import varying_keys
from iclgd.runs.varying_keys import DRAW

ALWAYS = ("model.name", "model.weights", "task.name", "task.shots", "finetune.name", "finetune.lr")
SEES = "finetune.sees"  # what a mechanism may look at
_WEIGHTS = [Weights.pretrained, Weights.keep_embeddings, Weights.random]


@dataclass(frozen=True, repr=False)
class Results:
    """Finished runs, in the order of their settings and then their draws.

    Attributes:
        runs: the finished ones.
        left_out: the folders of the others, each with the reason.
        layers: the layers that every mean over layers is taken over.
    """

    runs: tuple[FinishedRun, ...]
    left_out: tuple[tuple[Path, str], ...] = ()
    layers: Layers = Layers.common

    @classmethod
    def read(cls, folders: Iterable[Path], layers: Layers = Layers.common) -> Results:
        """The runs in or below the folders; a ReportError if one does not exist."""
        results = cls(*read_runs(folders))
        draws = [[results.rank("seed", part) for part in run.draw] for run in results]
        order = sorted(range(len(results)), key=lambda at: (results.setting_of[at], draws[at]))
        return cls(tuple(results[at] for at in order), results.left_out, layers)

    def required(self, folders: Iterable[Path]) -> Results:
        """These results; a ReportError if no run in the folders is finished."""
        if not self.runs:
            names = ", ".join(map(str, folders))
            raise ReportError(f"no finished run in {names}: {len(self.left_out)} others there (see iclgd-status)")
        return self

    def where(self, conditions: Mapping[str, str]) -> Results:
        """Only the runs with these settings, given as text: `{"task.name": "sst2", "finetune.lr": "0.01"}`.

        Raises:
            ReportError: no run has such a key, or none is left.
        """
        by_heading = {self.heading(key): key for key in self.keys}
        conditions = {by_heading.get(key, key): text for key, text in conditions.items()}
        runs = self.runs
        for key, text in conditions.items():
            if not any(key in run.settings for run in self):
                raise ReportError(f"no run has a setting {key!r}: varied here are {', '.join(self.varied) or 'none'}")
            runs = tuple(run for run in runs if varying_keys.means(key, run.settings.get(key), text))
        if not runs:
            texts = ", ".join(f"{key}={value}" for key, value in conditions.items())
            raise ReportError(f"no finished run has {texts}")
        return type(self)(runs, self.left_out, self.layers)

    def __iter__(self) -> Iterator[FinishedRun]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> FinishedRun:
        return self.runs[index]

    def __repr__(self) -> str:
        keys = f", varied: {', '.join(self.varied)}" if self.varied else ""
        return f"Results({len(self.runs)} runs, {len(self.scores)} scores, {len(self.left_out)} left out{keys})"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.table().to_html() if self.runs else ''}"

    @functools.cached_property
    def varied(self) -> tuple[str, ...]:
        """The Hydra keys that tell settings apart; those of the draw are not among them."""
        return tuple(varying_keys.varying_keys([run.settings for run in self.runs]))

    @functools.cached_property
    def keys(self) -> tuple[str, ...]:
        """The columns that make a setting: those that are always there, and every other key that varied.

        What a mechanism sees has a column wherever not all of them see the same.
        """
        several = len({self.text(SEES, run.settings.get(SEES)) for run in self.runs}) > 1
        return tuple(dict.fromkeys([*ALWAYS, *[SEES] * several, *self.varied]))

    @property
    def shown(self) -> list[str]:
        """The keys that tables name: what varied; the rate, and what mechanisms see, wherever there are several."""
        several = len({run.settings["finetune.lr"] for run in self.runs}) > 1
        beside = {"finetune.name": [SEES] if SEES in self.keys else []}  # a mechanism and what it sees
        keys = [shown for key in self.varied for shown in (key, *beside.get(key, ()))]
        return list(dict.fromkeys([*keys, *["finetune.lr"] * several]))

    @functools.cached_property
    def variants(self) -> dict[str, Variant]:
        """The finetuning variants by name, in their order."""
        return catalogue.variants(self.runs)

    @property
    def labels(self) -> dict[str, str]:
        """What the variants are called, by name, in their order."""
        return {name: variant.label for name, variant in self.variants.items()}

    @functools.cached_property
    def scores(self) -> dict[str, ScoreInfo]:
        """The scores by name, headline ones first."""
        return catalogue.scores(self.runs)

    @property
    def headline(self) -> list[str]:
        """The scores that short tables show: those that say so, or the first two."""
        return [name for name, score in self.scores.items() if score.headline] or list(self.scores)[:2]

    @functools.cached_property
    def settings(self) -> pd.DataFrame:
        """One row for each setting, with a column for each of `keys`, in the order in which tables name them."""
        return pd.DataFrame(self.setting_values, columns=list(self.keys), dtype=object).infer_objects()

    @functools.cached_property
    def setting_values(self) -> list[tuple[Any, ...]]:
        """The values of `keys` of every row of `settings`, as the runs have them."""
        rows = dict.fromkeys(map(self._setting, self.runs))
        return sorted(rows, key=lambda row: [self.rank(*pair) for pair in zip(self.keys, row, strict=True)])

    @functools.cached_property
    def setting_of(self) -> tuple[int, ...]:
        """For each run, its row of `settings`."""
        position = {values: at for at, values in enumerate(self.setting_values)}
        return tuple(position[self._setting(run)] for run in self.runs)

    @functools.cached_property
    def draws(self) -> list[tuple[Any, ...]]:
        """The draws of demonstrations, in the order of the runs."""
        return list(dict.fromkeys(run.draw for run in self.runs))

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        """One row for each run, score, examples ("all" or "flipped") and layer (NA for the mean over layers).

        Columns: `run`, every setting that varied under its Hydra name (model, weights, task, shots, variant, rate and
        seed always), `score`, `examples`, `layer`, `mean`, `low`, `high` (95 % over queries), `n`, `undefined`
        (values), `layers` (how many the mean is over, 0 without layers), `state` ("sane", "unstable" or "diverged").
        """
        rows = self.rows
        of_runs = self._runs_with_settings.take(rows["run"]).reset_index(drop=True)
        scores = plain(rows.drop(columns=["run", "setting", "draw", "state", "learned", "counted"]))
        return pd.concat([of_runs, scores, rows["state"]], axis=1)

    @functools.cached_property
    def summary(self) -> pd.DataFrame:
        """One row for each setting, score, examples and layer, over its sane draws.

        Orders of one draw's demonstrations are averaged within it. `low` and `high` are over `unit`: "draws" where
        there are at least two, else "queries" of the one draw. `unstable` and `diverged` count runs that are left out
        of everything else, as far as the score depends on finetuning (where a truth is planted, any may); `n` and
        `undefined` add up the others' values.
        """
        return with_settings(self.over_draws, self.settings)

    @functools.cached_property
    def over_draws(self) -> Any:
        """As `summary`, with a row of `settings` as the column `setting`, and -1 for the mean over layers."""
        return over_draws(self.rows, self.scores)

    def heading(self, key: str) -> str:
        """What tables call a setting: the last word of its key, as far as that is clear here."""
        return varying_keys.heading(key, self.keys)

    def text(self, key: str, value: Any) -> str:
        """A setting as tables show it: a variant by its label, a model by its short name, shots with those used."""
        if key == "finetune.name" and value in self.variants:
            return self.variants[value].label
        if key == "finetune.layers":
            return varying_keys.layer_ranges(value)
        if key == SEES:
            return str(value if isinstance(value, str) else Sees.demonstrations).replace("_", " ")
        if key == "task.shots":
            return varying_keys.as_text(value) + self._demonstrations_used.get(value, "")
        text = varying_keys.as_text(value)
        return self.model_names.get(text, text) if key == "model.name" else text

    def setting_text(self, setting: Mapping[str, Any]) -> str:
        """A setting as one text: names as they are, and every other value with its heading."""
        names = ("model.name", "model.weights", "task.name", "finetune.name")
        heads = {key: "" if key in names else f"{self.heading(key)} " for key in setting}
        return ", ".join(heads[key] + self.text(key, value) for key, value in setting.items())

    def table(self) -> pd.DataFrame:
        """The headline scores' means, a row for each setting and a column for each score."""
        rows: Any = overall(self.summary)
        rows = rows[rows["score"].isin(self.headline)]
        index = pd.MultiIndex.from_frame(rows[self.shown or ["finetune.name"]].astype(object))
        wide = rows.set_axis(index).set_index("score", append=True)["mean"].unstack("score", sort=False)
        return wide[self.headline]

    @functools.cached_property
    def model_names(self) -> dict[str, str]:
        """Each model's name without the owner or the folders before it, as far as it stays distinct."""
        names = {str(run.settings["model.name"]) for run in self.runs}
        return {name: varying_keys.shortest(name, names - {name}) for name in names}

    def rank(self, key: str, value: Any) -> tuple[int, float, str]:
        """The position of a setting's value among others: variants by their order, numbers by size."""
        if key == "finetune.name":
            return 0, float(list(self.variants).index(value)), ""
        if key == "model.weights" and value in _WEIGHTS:
            return 0, float(_WEIGHTS.index(value)), ""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return 0, float(value), ""
        return (1, 0.0, "") if value is None else (2, 0.0, str(value))

    @functools.cached_property
    def _demonstrations_used(self) -> dict[int, str]:
        """By `task.shots`, how many demonstrations fitted the window, where others were dropped."""
        numbers: dict[int, set[int]] = {}
        for run in self.runs:
            if run.config["task"].get("on_overflow") == OnOverflow.drop:
                used = len(run.prompts()["demonstrations"])
                numbers.setdefault(run.settings["task.shots"], set()).add(used)
        ranges = {shots: "-".join(map(str, sorted({min(used), max(used)}))) for shots, used in numbers.items()}
        return {shots: f" ({text} used)" for shots, text in ranges.items() if text != str(shots)}

    def _setting(self, run: FinishedRun) -> tuple[Any, ...]:
        return tuple(run.settings.get(key) for key in self.keys)

    @functools.cached_property
    def rows(self) -> pd.DataFrame:
        """`rows_of` the runs with setting, draw, state, and whether the score is learned and the layer counted."""
        rows = rows_of(self.runs)
        rows["score"] = pd.Categorical(rows["score"], list(self.scores))
        rows["examples"] = pd.Categorical(rows["examples"], ["all", "flipped"])
        rows = rows.sort_values(["run", "score", "examples", "layer"], kind="stable", ignore_index=True)
        draws = {draw: position for position, draw in enumerate(self.draws)}
        runs = pd.DataFrame(
            {
                "setting": self.setting_of,
                "draw": [draws[run.draw] for run in self.runs],
                "state": [run.state for run in self.runs],
                "learned": [run.planted for run in self.runs],
            }
        )
        rows = rows.join(runs, on="run")
        learned = [name for name, score in self.scores.items() if score.learned]
        rows = rows.assign(learned=rows["learned"] | rows["score"].isin(learned))
        return over_layers(rows, self.runs, self.layers, self.scores)

    @property
    def over_all(self) -> Any:
        """The `rows` that are over all examples and layers."""
        return self.rows[(self.rows["examples"] == "all") & (self.rows["layer"] < 0)]

    @property
    def run_table(self) -> pd.DataFrame:
        """A row for each run: `run`, its setting, what varied of its draw, `state`, and each score's mean, or NaN."""
        means: Any = self.over_all.pivot(index="run", columns="score", values="mean")
        states = self._runs_with_settings.assign(state=[run.state for run in self.runs])
        return states.join(means.reindex(columns=list(self.scores)))

    @functools.cached_property
    def _runs_with_settings(self) -> pd.DataFrame:
        runs = self.settings.iloc[list(self.setting_of)].reset_index(drop=True)
        runs.insert(0, "run", [run.name for run in self.runs])
        for key in DRAW:
            values = [run.settings.get(key) for run in self.runs]
            if key == "seed" or len(set(values)) > 1:
                runs[key] = values
        return runs


def with_settings(summary: Any, settings: pd.DataFrame) -> pd.DataFrame:
    """The rows of `averages.over_draws` with the columns of the setting that each belongs to."""
    columns = settings.take(summary["setting"]).reset_index(drop=True)
    numbers = plain(summary[["score", "examples", "layer", *COLUMNS]].reset_index(drop=True))
    return pd.concat([columns, numbers], axis=1)


def overall(frame: pd.DataFrame) -> Any:
    """The rows of a frame or a summary that are over all examples and all layers."""
    return frame[frame["layer"].isna() & (frame["examples"] == "all")]
