"""Sentences that must be read beside the numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from iclgd.results.averages import Layers
from iclgd.results.frame import Results
from iclgd.results.reading import FinishedRun
from iclgd.runs.files import read
from iclgd.runs.inputs import INPUTS, SETTINGS_OF_KIND, kind_of
from iclgd.runs.varying_keys import layer_ranges
from iclgd.statistics import compare

_MOST_NAMES = 3  # of inputs in which runs differ, and of groups of layers
_RULES = {
    Layers.common: "those in which every setting of a model has a value",
    Layers.trained: "those that finetuning trained and that have a value",
    Layers.all: "those that have a value, not the same in every setting",
}


def remarks(results: Results) -> list[str]:
    """Mixed inputs, layers that means leave out, half precision, and in-context learning that does not help."""
    notes = (note for run in results for note in run.environment.get("notes", ()))
    half_precision = dict.fromkeys(note for note in notes if note.startswith("measured in "))
    mixed = filter(None, [mixed_inputs(results)])
    return [*mixed, *layer_notes(results), *half_precision, *zero_shot_notes(results)]


def layer_notes(results: Results, scores: Sequence[str] = ()) -> list[str]:
    """Sentences on the scores whose means are not over all layers: by default headlines, and whose means share none."""
    rows: Any = results.rows
    rows = rows[(rows["examples"] == "all") & (rows["state"] == "sane") & (rows["layer"] >= 0)]
    compared = [(run.planted, run.settings["model.name"]) for run in results]
    labels: dict[str, list[str]] = {}  # of the scores whose means a text is true of
    for name in scores or results.scores:
        of_score = rows[rows["score"] == name]
        totals = of_score.groupby("run").size()
        layers = of_score[of_score["counted"]].groupby("run")["layer"].agg(tuple).to_dict()
        groups = sorted({(its, int(totals[run])) for run, its in layers.items()}, key=lambda one: (len(one[0]), one))
        patterns = {(compared[run], its) for run, its in layers.items()}
        is_own = results.layers is Layers.common and len(patterns) > len({group for group, _ in patterns})
        is_asked = is_own or name in (scores or results.headline)
        if not is_asked or all(len(its) == total for its, total in groups):
            continue
        rule = "each run's own, since no layer has a value in every setting" if is_own else _RULES[results.layers]
        labels.setdefault(f"{_layers_in_words(groups)}: {rule}", []).append(results.scores[name].label)
    listed = {text: " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) for text, names in labels.items()}
    return [f"Means of {names} are over {text}." for text, names in listed.items()]


def _layers_in_words(groups: Sequence[tuple[tuple[int, ...], int]]) -> str:
    """How many layers means are over, and which they are where that is short."""
    texts = [f"{len(layers)} of {total}" for layers, total in groups]
    names = [layer_ranges(list(layers)) for layers, _ in groups]
    if len(groups) <= _MOST_NAMES and all(name.count(",") < _MOST_NAMES for name in names):
        plurals = ["s" * (len(layers) > 1) for layers, _ in groups]
        return ", ".join(f"layer{s} {name} ({text})" for s, name, text in zip(plurals, names, texts, strict=True))
    return f"{', '.join(dict.fromkeys(texts))} layers"


def zero_shot_notes(results: Results) -> list[str]:
    """Sentences where in-context learning is not seen to beat zero-shot: likeness to it then means little.

    The lead is judged over draws where there are enough for an interval, else by the queries of each.
    """
    notes, of_settings = {}, context_accuracies(results)
    for setting in of_settings:
        draws: Any = of_settings[setting][1]
        icl, zsl = draws["mean"].mean(), draws["mean_zsl"].mean()
        numbers = f"({icl:.1%} against {zsl:.1%})"
        name = results.setting_text(dict(setting))
        low = compare(draws["mean"].to_dict(), draws["mean_zsl"].to_dict()).low
        if icl <= zsl:
            notes[f"{name}: ICL does not beat zero-shot {numbers}, so that likeness to it means little here."] = None
        elif not (low > 0 or (math.isnan(low) and (draws["low"] > draws["high_zsl"]).all())):
            lead = f"ICL's lead over zero-shot {numbers} is within chance"
            notes[f"{name}: {lead}; read likeness to it with care."] = None
    return list(notes)


Setting = tuple[tuple[str, Any], ...]  # keys of a setting with their values


def context_accuracies(results: Results) -> dict[Setting, tuple[str, pd.DataFrame]]:
    """What the accuracy is called and ICL's and zero-shot's of every draw, by setting.

    Columns are mean, low, high and the same with _zsl.

    Neither depends on the variant or its rate, so that every draw is counted once, as the mean over its orders. For
    open answers the accuracy is over the vocabulary where that was measured, since the options beside the right answer
    are drawn.
    """
    keys = [key for key in results.keys if not key.startswith(("finetune.", "reference.name"))]
    cells = results.over_all.set_index(["run", "score"])[["mean", "low", "high"]].to_dict("index")
    labels: dict[Setting, str] = {}
    orders: dict[Setting, dict[tuple[int, Any], dict[str, float]]] = {}
    for position, run in enumerate(results):
        names = _accuracy_names(results, is_open=bool(run.config["task"].get("answer_column")))
        icl, zsl = (cells.get((position, name)) for name in names)
        if run.planted or icl is None or zsl is None or math.isnan(icl["mean"] + zsl["mean"]):
            continue  # what plays ICL's part in a planted run is not ICL
        pair = icl | {f"{column}_zsl": value for column, value in zsl.items()}
        setting = tuple((key, run.settings.get(key)) for key in keys)
        labels[setting] = results.scores[names[0]].label.removesuffix(" (ICL)").lower()
        order = results.draws.index(run.draw), run.settings.get("task.permutation")
        orders.setdefault(setting, {}).setdefault(order, pair)
    frames: dict[Setting, Any] = {setting: pd.DataFrame(list(pairs.values())) for setting, pairs in orders.items()}
    return {
        setting: (labels[setting], frames[setting].groupby([draw for draw, _ in pairs]).mean())
        for setting, pairs in orders.items()
    }


def _accuracy_names(results: Results, is_open: bool) -> tuple[str, str]:
    """The names of ICL's and zero-shot's accuracy; empty where none was measured."""
    scores = results.scores.values()
    pairs = [(one, one.of("zsl", scores)) for one in scores if one.share and one.reads("icl")]
    names = [(icl.inputs.get("label_scores") is None, icl.name, zsl.name) for icl, zsl in pairs if zsl is not None]
    names.sort(key=lambda one: one[0] != is_open)
    return names[0][1:] if names else ("", "")


def mixed_inputs(runs: Iterable[FinishedRun]) -> str | None:
    """A sentence that names inputs in which runs differ, though no setting says so; None if there are none.

    Code, versions and the device are compared across all runs, any other input among the runs whose settings for it
    are equal. They differ where data, a model, code or versions changed between two commands that add to one sweep, or
    where it ran on a GPU and on a CPU. Draws and differences between them would then mean something else.
    """
    first: dict[tuple[str, str], Any] = {}
    names: dict[str, None] = {}
    for run in runs:
        settings = {**run.settings, "runtime.dtype": run.config["runtime"]["dtype"]}  # not what auto came to
        recorded = run.folder / INPUTS
        inputs = read(recorded, dict[str, Any]) if recorded.exists() else {}
        for part, value in inputs.items():
            prefixes = SETTINGS_OF_KIND.get(kind_of(part))
            if prefixes is None:
                continue
            group = str([(key, settings[key]) for key in settings if key.startswith(prefixes)])
            if first.setdefault((part, group), value) != value:
                names[part.removeprefix("code ") if part.startswith("code ") else f"the {part}"] = None
    if not names:
        return None
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return (
        f"not all of these runs were made from the same inputs: they differ in {', '.join([*names][:_MOST_NAMES])}"
        f"{more}; start the whole sweep again, which computes anew only what was made from other inputs"
    )
