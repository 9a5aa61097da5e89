"""What runs hold beside their scores, such as gradient norms, losses and prompts, as means over draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from iclgd.results.frame import Results
from iclgd.results.reading import FinishedRun

_PLACE = ("model.name", "task.name", "task.shots")
_MOST_RUNS = 24  # that are read, first draws first, for each costs a file


def own_tables(
    results: Results, read: Callable[[FinishedRun], Any], by: Sequence[str], value: str = "value"
) -> pd.DataFrame:
    """A table of some sane runs, its mean over everything but `by`, and then over draws.

    Returns:
        Columns `mean`, `draws`, `variant`, those of `by` and every setting; no rows where no run has such a table.
    """
    parts = []
    runs = sorted(zip(results.setting_of, results, strict=True), key=lambda pair: (str(pair[1].draw), pair[0]))
    for at, run in runs[:_MOST_RUNS]:
        table = read(run) if run.state == "sane" else None
        if table is not None and len(table):
            mean = table.groupby(by, as_index=False, sort=False)[value].mean().rename(columns={value: "mean"})
            settings = results.settings.iloc[at].to_dict()
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
    keys = [k for k in results.keys if k in _PLACE or k.startswith(("task.", "model.bos", "model.separator"))]
    gathered: dict[tuple[Any, ...], dict[Any, FinishedRun]] = {}
    for run in results:  # whatever the finetuning, one setting and draw has one set of prompts
        setting = tuple(run.settings.get(key) for key in keys)
        gathered.setdefault(setting, {}).setdefault((run.settings["seed"], run.settings.get("task.permutation")), run)
    records = []
    for setting, runs in gathered.items():
        found = [_statistics(run.prompts()) for run in runs.values()]
        mean = {name: math.fsum(one[name] for one in found) / len(found) for name in found[0]}
        records.append(dict(zip(keys, setting, strict=True)) | mean)
    return keys, records


def _statistics(prompts: Mapping[str, Any]) -> dict[str, float]:
    demonstrations = [len(item["token_ids"]) for item in prompts["demonstrations"]]
    queries = [len(item["token_ids"]) for item in prompts["queries"]]
    separators = len(demonstrations) * len(prompts.get("separator") or [])
    return {
        "labels": float(len(prompts.get("label_words") or [])),
        "demonstrations": float(len(demonstrations)),
        "queries": float(len(queries)),
        "demonstration_tokens": sum(demonstrations) / max(len(demonstrations), 1),
        "query_tokens": sum(queries) / max(len(queries), 1),
        "context_tokens": float(sum(demonstrations) + separators + len(prompts.get("bos") or [])),
    }
