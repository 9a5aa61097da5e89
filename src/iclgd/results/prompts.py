"""Statistics of the prompts that the models saw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from iclgd.results.frame import Results
from iclgd.results.reading import FinishedRun

_ALWAYS = ("model.name", "task.name", "task.shots")


def prompt_statistics(results: Results) -> tuple[list[str], list[dict[str, Any]]]:
    """Labels, demonstrations, queries and their mean tokens of each setting, as means over its draws.

    Returns:
        The keys that make such a setting, and for each setting these and the statistics by name.
    """
    keys = [k for k in results.keys if k in _ALWAYS or k.startswith(("task.", "model.bos", "model.separator"))]
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
