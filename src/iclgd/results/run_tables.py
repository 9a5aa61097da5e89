"""Tables that runs hold beside their scores, such as gradient norms, losses and prompts, as means over draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from iclgd.results.frame import Results
from iclgd.results.reading import FinishedRun

_SETTING = ("model.name", "task.name", "task.shots")
_MOST_RUNS = 24  # that are read, first draws first, for each costs a file


def mean_table(
    results: Results, read: Callable[[FinishedRun], Any], by: Sequence[str], value: str = "value"
) -> pd.DataFrame:
    """The mean of a table of sane runs over everything but `by`, and then over draws.

    Returns:
        Columns `mean`, `draws`, `variant`, those of `by` and every setting; no rows where no run has such a table.
    """
    parts = []
    runs = sorted(zip(results.setting_of, results, strict=True), key=lambda pair: (str(pair[1].draw), pair[0]))
    for row, run in runs[:_MOST_RUNS]:
        table = read(run) if run.state == "sane" else None
        if table is not None and len(table):
            mean = table.groupby(by, as_index=False, sort=False)[value].mean().rename(columns={value: "mean"})
            settings = results.settings.iloc[row].to_dict()
            parts.append(mean.assign(draw=str(run.draw), variant=results.labels[settings["finetune.name"]], **settings))
    if not parts:
        return pd.DataFrame(columns=[*by, "mean", "draws", "variant"])
    rows: Any = pd.concat(parts, ignore_index=True)
    groups = rows.groupby([key for key in rows if key not in ("mean", "draw")], sort=False, dropna=False)
    return groups.agg(mean=("mean", "mean"), draws=("draw", "nunique")).reset_index()


def prompt_statistics(results: Results) -> tuple[list[str], list[dict[str, Any]]]:
    """Labels, demonstrations, queries and their mean tokens of each setting, as means over its draws.

    Returns:
        The keys that make such a setting, and for each setting these and the statistics by name.
    """
    keys = [k for k in results.keys if k in _SETTING or k.startswith(("task.", "model.bos", "model.separator"))]
    drawn: dict[tuple[Any, ...], dict[Any, dict[str, float]]] = {}
    for run in results:  # whatever the finetuning, one setting and draw has one set of prompts
        draws = drawn.setdefault(tuple(run.settings.get(key) for key in keys), {})
        draw = run.settings["seed"], run.settings.get("task.permutation")
        if draw not in draws:
            draws[draw] = _statistics(run.prompts())
    records = []
    for setting, draws in drawn.items():
        means: dict[str, Any] = pd.DataFrame(list(draws.values())).mean().to_dict()
        records.append(dict(zip(keys, setting, strict=True)) | means)
    return keys, records


def _statistics(prompts: Mapping[str, Any]) -> dict[str, float]:
    demonstrations = [len(item["token_ids"]) for item in prompts["demonstrations"]]
    queries = [len(item["token_ids"]) for item in prompts["queries"]]
    separators = len(demonstrations) * len(prompts.get("separator") or [])
    return {
        "labels": len(prompts.get("label_words") or []),
        "demonstrations": len(demonstrations),
        "queries": len(queries),
        "demonstration_tokens": sum(demonstrations) / max(len(demonstrations), 1),
        "query_tokens": sum(queries) / max(len(queries), 1),
        "context_tokens": sum(demonstrations) + separators + len(prompts.get("bos") or []),
    }
