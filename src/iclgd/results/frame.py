"""What finished runs say together: one frame of every score, and its summary over draws.

Tables, figures, page, status, the Python interface and W&B read these and nothing else.
"""

from __future__ import annotations

import functools
import html
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from iclgd.config.enumerations import Sees, Weights
from iclgd.results import catalogue
from iclgd.results.averages import Layers, Records, averaged
from iclgd.results.catalogue import ScoreInfo, Variant
from iclgd.results.reading import FinishedRun, ReportError, read_runs
from iclgd.runs import varying_keys
from iclgd.statistics import draws_interval

ALWAYS = ("model.name", "model.weights", "task.name", "task.shots", "finetune.name", "finetune.lr")
EXAMPLES = ("all", "flipped")
SEES = "finetune.sees"  # what a mechanism may look at
_WEIGHTS = [Weights.pretrained, Weights.keep_embeddings, Weights.random]


@dataclass(frozen=True, repr=False)
class Results:
    """Finished runs, in the order of their settings and then their draws, and what else was there.

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
        """The runs in or below the folders.

        Raises:
            ReportError: a folder does not exist.
        """
        found = cls(*read_runs(folders))
        draws = [[found.rank("seed", part) for part in run.draw] for run in found.runs]
        order = sorted(range(len(found)), key=lambda at: (found.setting_of[at], draws[at]))
        return cls(tuple(found.runs[at] for at in order), found.left_out, layers)

    def required(self, folders: Iterable[Path]) -> Results:
        """Itself, if any run in the folders is finished.

        Raises:
            ReportError: none is.
        """
        if not self.runs:
            named = ", ".join(map(str, folders))
            raise ReportError(f"no finished run in {named}: {len(self.left_out)} others there (see iclgd-status)")
        return self

    def where(self, conditions: Mapping[str, str]) -> Results:
        """Only the runs with these settings, given as text: `{"task.name": "sst2", "finetune.lr": "0.01"}`.

        Raises:
            ReportError: no run has such a key, or none is left.
        """
        known = {self.heading(key): key for key in self.keys}
        conditions = {known.get(key, key): text for key, text in conditions.items()}
        for key in conditions:
            if not any(key in run.settings for run in self.runs):
                raise ReportError(f"no run has a setting {key!r}: varied here are {', '.join(self.varied) or 'none'}")
        wanted = tuple(
            r for r in self if all(varying_keys.means(k, r.settings.get(k), v) for k, v in conditions.items())
        )
        if not wanted:
            said = ", ".join(f"{key}={value}" for key, value in conditions.items())
            raise ReportError(f"no finished run has {said}")
        return type(self)(wanted, self.left_out, self.layers)

    def __iter__(self) -> Iterator[FinishedRun]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> FinishedRun:
        return self.runs[index]

    def __repr__(self) -> str:
        keys = f", varied: {', '.join(self.varied)}" if self.varied else ""
        return f"Results({len(self.runs)} runs, {len(self.scores)} scores, {len(self.left_out)} left out{keys})"

    @functools.cached_property
    def varied(self) -> tuple[str, ...]:
        """The Hydra keys that tell settings apart; those of the draw are not among them."""
        return tuple(varying_keys.varying_keys([run.settings for run in self.runs]))

    def mean(self, run: FinishedRun, score: str) -> float:
        """The mean of a score of one of these runs; NaN where it was not measured."""
        record = self.records[run.folder].get((score, "all"))
        return math.nan if record is None else record.mean

    @functools.cached_property
    def records(self) -> Mapping[Path, Records]:
        """By a run's folder its records, with means over `layers`."""
        averages = averaged(self.runs, self.layers, self.scores)
        return {run.folder: records for run, records in zip(self.runs, averages, strict=True)}

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
    def keys(self) -> tuple[str, ...]:
        """The columns that make a setting: those that are always there, and every other key that varied.

        What a mechanism sees has a column wherever not all of them see the same.
        """
        several = len({self.text(SEES, run.settings.get(SEES)) for run in self.runs}) > 1
        return tuple(dict.fromkeys([*ALWAYS, *[SEES] * several, *self.varied]))

    @functools.cached_property
    def settings(self) -> pd.DataFrame:
        """One row for each setting, with a column for each of `keys`, in the order in which tables name them."""
        return pd.DataFrame(self._settings, columns=list(self.keys), dtype=object).infer_objects()

    @functools.cached_property
    def setting_of(self) -> tuple[int, ...]:
        """For each run, its row of `settings`."""
        at = {setting: index for index, setting in enumerate(self._settings)}
        return tuple(at[self._setting(run)] for run in self.runs)

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        """One row for each run, score, examples ("all" or "flipped") and layer (NA for the mean over layers).

        Columns: `run`, every setting that varied under its Hydra name (model, weights, task, shots, variant, rate and
        seed always), `score`, `examples`, `layer`, `mean`, `low`, `high` (95 % over queries), `n`, `undefined`
        (values), `layers` (how many the mean is over, 0 without layers), `state` ("sane", "unstable" or "diverged").
        """
        rows = self._rows
        about = self.settings.iloc[list(self.setting_of)].reset_index(drop=True)
        about.insert(0, "run", [run.name for run in self.runs])
        for key in varying_keys.DRAW:
            values = [run.settings.get(key) for run in self.runs]
            if key == "seed" or len(set(values)) > 1:
                about[key] = values
        about["state"] = [run.state for run in self.runs]
        frame = about.take(rows["run"]).reset_index(drop=True)
        return pd.concat([frame.drop(columns="state"), self._named(rows), frame["state"]], axis=1)

    @functools.cached_property
    def summary(self) -> pd.DataFrame:
        """One row for each setting, score, examples and layer, over its sane draws.

        Orders of one draw's demonstrations are averaged within it. `low` and `high` are over `unit`: "draws" where
        there are at least two, else "queries" of the one draw. `unstable` and `diverged` count runs that are left out
        of everything else, as far as the score depends on finetuning (where a truth is planted, any may); `n` and
        `undefined` add up the others' values.
        """
        rows: Any = self._rows  # what pandas' stubs make of grouped frames cannot be followed
        draws = {draw: at for at, draw in enumerate(dict.fromkeys(run.draw for run in self.runs))}
        rows["setting"] = np.array(self.setting_of, dtype=int)[rows["run"]]
        rows["draw"] = np.array([draws[run.draw] for run in self.runs], dtype=int)[rows["run"]]
        state = np.array([run.state for run in self.runs], dtype=object)[rows["run"]]
        learned = np.array([score.learned for score in self.scores.values()], dtype=bool)[rows["score"]]
        learned |= np.array([run.planted for run in self.runs], dtype=bool)[rows["run"]]
        state[~learned] = "sane"
        rows["unstable"], rows["diverged"] = state == "unstable", state == "diverged"
        keys = ["setting", "score", "examples", "layer"]
        counts = rows.groupby(keys, sort=True)[["unstable", "diverged"]].sum()
        sane = rows[state == "sane"]
        sums = sane.groupby(keys).agg({"n": "sum", "undefined": "sum", "layers": "min"})
        by_draw = sane.groupby([*keys, "draw"])[["mean", "low", "high", "n", "undefined"]].mean()
        over = by_draw.groupby(level=keys)
        means, ends = over["mean"].agg(["mean", "std", "count"]), over[["low", "high"]].mean()
        found = counts.join([means, ends, sums]).reset_index().rename(columns={"count": "draws"})
        whole_numbers = ["draws", "n", "undefined", "layers"]
        found[whole_numbers] = found[whole_numbers].fillna(0).astype(int)
        found["unit"] = np.where(found["draws"] > 1, "draws", "queries")
        self._set_draws_intervals(found)
        self._set_share_intervals(found, by_draw)
        named = self._named(found[["score", "examples", "layer"]])
        settings = self.settings.take(found["setting"]).reset_index(drop=True)
        columns = ["mean", "std", "low", "high", "draws", "unit", "unstable", "diverged", "n", "undefined", "layers"]
        return pd.concat([settings, named, found[columns]], axis=1)

    def short_name(self, model: str) -> str:
        """A model's name without the owner or the folders before it, as far as it stays distinct among these runs."""
        return self._short_names.get(model, model)

    def heading(self, key: str) -> str:
        """What tables call a setting: the last word of its key, as far as that is clear here."""
        return varying_keys.heading(key, self.keys)

    def text(self, key: str, value: Any) -> str:
        """A setting as tables show it: a variant by its label, a model by its short name."""
        if key == "finetune.name" and value in self.variants:
            return self.variants[value].label
        if key == "finetune.layers":
            return varying_keys.layer_ranges(value)
        if key == SEES:
            return str(value or Sees.demonstrations).replace("_", " ")
        return self.short_name(value) if key == "model.name" else varying_keys.as_text(value)

    def table(self) -> pd.DataFrame:
        """The headline scores' means, a row for each setting and a column for each score."""
        shown: Any = whole(self.summary)
        shown = shown[shown["score"].isin(self.headline)]
        index = pd.MultiIndex.from_frame(shown[self.shown or ["finetune.name"]].astype(object))
        wide = shown.set_axis(index).set_index("score", append=True)["mean"].unstack("score", sort=False)
        return wide[self.headline]

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.table().to_html() if self.runs else ''}"

    @functools.cached_property
    def _short_names(self) -> dict[str, str]:
        names = {str(run.settings["model.name"]) for run in self.runs}
        return {name: varying_keys.shortest(name, names - {name}) for name in names}

    @property
    def _rows(self) -> pd.DataFrame:
        """The frame with numbers for names: columns run, score, examples, layer (-1 for the mean), mean, low, ..."""
        scores = {name: at for at, name in enumerate(self.scores)}
        heads, values = [], []
        for at, run in enumerate(self.runs):
            for (score, examples), record in self.records[run.folder].items():
                of = at, scores[score], EXAMPLES.index(examples)
                heads.append((*of, record.n, record.undefined, len(record.over), len(record.layers)))
                values.append((record.mean, record.low, record.high))
                values.extend((mean, np.nan, np.nan) for mean in record.layers)
        head = np.array(heads, dtype=int).reshape(-1, 7)
        lengths = head[:, 6] + 1
        columns = ["run", "score", "examples", "n", "undefined", "layers"]
        rows = pd.DataFrame(np.repeat(head[:, :6], lengths, axis=0), columns=columns)
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows.insert(3, "layer", np.arange(len(rows)) - starts - 1)
        rows["layers"] = np.where(rows["layer"] < 0, rows["layers"], 1)
        for at, name in enumerate(["mean", "low", "high"]):
            rows.insert(4 + at, name, np.array(values, dtype=float).reshape(-1, 3)[:, at])
        return rows.sort_values(["run", "score", "examples", "layer"], kind="stable", ignore_index=True)

    def _named(self, rows: Any) -> pd.DataFrame:
        named = rows.drop(columns="run", errors="ignore").assign(
            score=np.array(list(self.scores), dtype=object)[rows["score"]],
            examples=np.array(EXAMPLES, dtype=object)[rows["examples"]],
            layer=pd.array(rows["layer"], dtype="Int64"),
        )
        named.loc[named["layer"] < 0, "layer"] = pd.NA
        return named

    def _set_draws_intervals(self, found: Any) -> None:
        """`statistics.draws_interval` for all scores that are no shares at once: one by one it would take minutes."""
        limits = np.array([score.limits for score in self.scores.values()]).reshape(-1, 2)[found["score"]]
        count, mean, several = found["draws"].clip(lower=2), found["mean"], found["draws"] > 1
        half = stats.t.ppf(0.975, count - 1) * found["std"] / np.sqrt(count)
        half = half.where(found["std"] > 1e-9 * mean.abs().clip(lower=1e-12))  # what has no spread has no interval
        found["low"] = found["low"].mask(several, np.maximum(mean - half, limits[:, 0]))
        found["high"] = found["high"].mask(several, np.minimum(mean + half, limits[:, 1]))

    def _set_share_intervals(self, found: Any, by_draw: Any) -> None:
        """`statistics.draws_interval` of every share over at least two draws."""
        shares = [at for at, score in enumerate(self.scores.values()) if score.share]
        chosen = by_draw[by_draw.index.get_level_values("score").isin(shares)]
        draws: dict[Any, list[tuple[float, int]]] = {}
        for (*key, _), mean, n, undefined in chosen[["mean", "n", "undefined"]].itertuples(name=None):
            draws.setdefault(tuple(key), []).append((mean, int(n - undefined)))
        ends = found[["low", "high"]].to_numpy(copy=True)
        for at, key in enumerate(found[["setting", "score", "examples", "layer"]].itertuples(index=False, name=None)):
            if len(draws.get(key, ())) > 1:
                means, trials = zip(*draws[key], strict=True)
                interval = draws_interval(means, trials=trials)
                ends[at] = interval.low, interval.high
        found[["low", "high"]] = ends

    @functools.cached_property
    def _settings(self) -> list[tuple[Any, ...]]:
        rows = dict.fromkeys(self._setting(run) for run in self.runs)
        return sorted(rows, key=lambda row: [self.rank(*pair) for pair in zip(self.keys, row, strict=True)])

    def _setting(self, run: FinishedRun) -> tuple[Any, ...]:
        return tuple(run.settings.get(key) for key in self.keys)

    def rank(self, key: str, value: Any) -> tuple[int, float, str]:
        """Where a value of a setting stands among the others: variants by their order, numbers by size."""
        if key == "finetune.name":
            return 0, float(list(self.variants).index(value)), ""
        if key == "model.weights" and value in _WEIGHTS:
            return 0, float(_WEIGHTS.index(value)), ""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return 0, float(value), ""
        return (1, 0.0, "") if value is None else (2, 0.0, str(value))


def whole(frame: pd.DataFrame) -> Any:
    """The rows of a frame or a summary that are over all examples and all layers."""
    return frame[frame["layer"].isna() & (frame["examples"] == "all")]
