"""The papers' tables from our runs, each published number beside the run that it matches.

A published number stands beside a run only where model, task and number of demonstrations are the paper's; beside
another model it would compare models, not measurements, and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from iclgd.metrics.statistics import Comparison
from iclgd.report import published
from iclgd.report.finished_run import FinishedRun
from iclgd.report.formats import Table
from iclgd.report.settings import Group, group, place
from iclgd.report.summary import Summary, by_task, differences, summarise, zero_shot_notes

UNDEFINED = "\N{EN DASH}"
_TABLE1 = ("sim_aou", "sim_am_delta")
_TABLE2 = ("sim_aou_norm", "sim_aou", "sim_am", "sim_am_delta")
_BESIDE = ("sim_aou_random", "sim_am_zsl", "rec2ftp", "accuracy/zsl", "accuracy/icl", "accuracy/ft")
_WITHOUT_FT = ("sim_aou_random", "sim_am_zsl", "accuracy/zsl", "accuracy/icl")  # the same for every variant
_NAMES = {"model.name": "model", "model.weights": "weights", "finetune.name": "variant"}

_Key = tuple[str, ...]
_Differences = Mapping[tuple[_Key, str, str], Comparison]  # by other settings, task and score


def table1(runs: Sequence[FinishedRun]) -> Table:
    """Untrained baselines: each score with pretrained weights, with pretrained embeddings only and with none."""
    return _by_score(
        "table1",
        "Scores of pretrained and untrained models",
        runs,
        [name for name in _TABLE1 if any(name in run.entries for run in runs)],
        ("model.weights", "pretrained"),
    )


def table2(runs: Sequence[FinishedRun]) -> Table:
    """Variants against gd, with pretrained weights where there are any; random baselines and accuracies below."""
    trained = [run for run in runs if run.weights == "pretrained"] or list(runs)
    return _by_score(
        "table2",
        "Likeness of finetuning variants to in-context learning",
        trained,
        [name for name in (*_TABLE2, *_BESIDE) if any(name in run.entries for run in trained)],
        ("finetune.name", "gd"),
    )


def table3(runs: Sequence[FinishedRun]) -> Table:
    """Data statistics, from the prompts that the models saw: labels, demonstrations, queries and their mean tokens."""
    gathered: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    for run in runs:
        gathered.setdefault((run.task, run.model, run.shots), []).append(_prompt_statistics(run))
    rows, records = [], []
    for (task, model, shots), found in gathered.items():
        mean = {name: math.fsum(entry[name] for entry in found) / len(found) for name in found[0]}
        counts = [f"{mean[name]:g}" for name in ("labels", "demonstrations", "queries")]
        tokens = [f"{mean[name]:.1f}" for name in ("demonstration_tokens", "query_tokens", "context_tokens")]
        rows.append((task, model, str(shots), *counts, *tokens))
        records.append({"task": task, "model": model, "shots": shots} | mean)
    return Table(
        "table3",
        "Data statistics",
        ("task", "model", "shots asked for", "labels", "demonstrations used", "queries", "tokens of a demonstration",
         "tokens of a query", "tokens of the context"),
        2,
        tuple(rows),
        ("Tokens are means over demonstrations or queries, then over runs; the context has bos and separators.",),
        tuple(records),
    )  # fmt: skip


def number(found: Summary, percent: bool = False) -> str:
    """`0.110 ± 0.010 [0.085, 0.135]` over seeds, `0.110 [0.090, 0.130]` for one, a dash where undefined."""
    if math.isnan(found.mean):
        return "diverged" if found.diverged else UNDEFINED
    show: Callable[[float], str] = (lambda x: f"{100 * x:z.1f}") if percent else (lambda x: f"{x:z.3f}")
    text = show(found.mean) + ("%" if percent else "")
    if not math.isnan(found.std):
        text += f" ± {show(found.std)}"
    return text if math.isnan(found.low) else f"{text} [{show(found.low)}, {show(found.high)}]"


def is_share(score: str) -> bool:
    """Whether a score is a share of queries, shown in percent."""
    return score.startswith("accuracy/") or score == "rec2ftp"


def _prompt_statistics(run: FinishedRun) -> dict[str, float]:
    prompts = run.prompts()
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


def _by_score(
    name: str, title: str, runs: Sequence[FinishedRun], scores: Sequence[str], baseline: tuple[str, str]
) -> Table:
    groups = group(runs)
    tasks = list(dict.fromkeys(entry.runs[0].task for entry in groups))
    keys = [key for key in (groups[0].settings if groups else ()) if key != "task.name"]
    rows_of, compared = by_task(groups), _against(groups, scores, baseline)
    rows: list[tuple[str, ...]] = []
    records: list[Mapping[str, Any]] = []
    for score in scores:
        label, of_score = runs[0].label(score), []
        for others, everything in rows_of.items():
            members = {task: e for task, e in everything.items() if any(score in run.entries for run in e.runs)}
            if not members:
                continue
            found = {task: summarise(entry.runs, score) for task, entry in members.items()}
            theirs = {task: published.mean_and_std(entry.runs[0], score) for task, entry in members.items()}
            shown = [_cell(task, found, compared.get((others, task, score)), score) for task in tasks]
            of_score.append((label, *_short(members, keys), *shown))
            if any(theirs.values()):
                of_score += _published_rows(len(keys), tasks, found, theirs)
            for task, entry in members.items():
                records.append(_record(score, entry, found[task], theirs[task], compared.get((others, task, score))))
        if score in _WITHOUT_FT:
            of_score = _once(of_score, keys)
        rows += of_score
    notes = _notes(runs, groups, compared, baseline, any("published_mean" in record for record in records))
    header = ("score", *(_NAMES.get(key, key) for key in keys), *tasks)
    return Table(name, title, header, 1 + len(keys), tuple(rows), notes, tuple(records))


def _against(groups: Sequence[Group], scores: Sequence[str], baseline: tuple[str, str]) -> _Differences:
    key, value = baseline

    def rest(entry: Group) -> _Key:
        return tuple(text for name, text in entry.settings.items() if name != key)

    bases = {rest(entry): entry for entry in groups if entry.settings.get(key) == value}
    own = {_where(entry): entry for entry in bases.values() if key == "finetune.name" and _at_own_rate(entry)}
    pairs = []
    for entry in groups:
        base = bases.get(rest(entry)) or own.get(_where(entry))
        if base is not None and entry.settings.get(key) != value:
            pairs.append((entry, base))
    wanted = [score for score in scores if key != "finetune.name" or score not in _WITHOUT_FT]
    found: dict[tuple[_Key, str, str], Comparison] = {}
    for difference in differences(pairs, wanted):
        settings = difference.first.settings
        others = tuple(text for name, text in settings.items() if name != "task.name")
        found[others, difference.first.runs[0].task, difference.score] = difference.result
    return found


def _own_rate(entry: Group) -> float | None:
    rates = entry.runs[0].config["task"].get("rates") or {}
    return rates.get(entry.runs[0].variant)


def _where(entry: Group) -> tuple[object, ...]:
    return *place(entry), entry.runs[0].shots


def _at_own_rate(entry: Group) -> bool:
    """Whether a variant ran at the rate that its task names for it."""
    rates = entry.runs[0].config["task"].get("rates") or {}
    return rates.get(entry.runs[0].variant) == entry.runs[0].lr


def _cell(task: str, found: Mapping[str, Summary], compared: Comparison | None, score: str) -> str:
    if task not in found:
        return ""
    mark = " *" if compared is not None and compared.distinguishable else ""
    return number(found[task], is_share(score)) + mark


def _short(members: Mapping[str, Group], keys: Sequence[str]) -> list[str]:
    entry = next(iter(members.values()))
    return [entry.runs[0].model if key == "model.name" else entry.settings[key] for key in keys]


def _once(rows: Sequence[tuple[str, ...]], keys: Sequence[str]) -> list[tuple[str, ...]]:
    """Rows that differ in nothing but how the model was finetuned and say the same, once."""
    merged: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for row in rows:
        kept = ["all" if key.startswith("finetune.") else text for key, text in zip(keys, row[1:], strict=False)]
        merged.setdefault((row[0], *kept, *row[1 + len(keys) :]), []).append(row)
    places = {tuple(row[: 1 + len(keys)]) for row in merged}
    if len(places) < len(merged):
        return list(rows)
    return [row if len(members) > 1 else members[0] for row, members in merged.items()]


def _published_rows(
    blanks: int, tasks: Sequence[str], found: Mapping[str, Summary], theirs: Mapping[str, tuple[float, float] | None]
) -> list[tuple[str, ...]]:
    numbers, gaps = [], []
    for task in tasks:
        pair = theirs.get(task)
        numbers.append(f"{pair[0]:.2f} ± {pair[1]:.2f}" if pair else "")
        known = pair is not None and not math.isnan(found[task].mean)
        gaps.append(f"{found[task].mean - pair[0]:+z.3f}" if pair and known else "")
    return [("published", *[""] * blanks, *numbers), ("difference", *[""] * blanks, *gaps)]


def _record(
    score: str,
    entry: Group,
    found: Summary,
    theirs: tuple[float, float] | None,
    compared: Comparison | None,
) -> dict[str, Any]:
    run = entry.runs[0]
    record: dict[str, Any] = {
        "score": score, "task": run.task, "model": run.model, "weights": run.weights, "variant": run.variant,
        "lr": run.lr, "shots": run.shots,
    }  # fmt: skip
    record |= {key: text for key, text in entry.settings.items() if key not in (*_NAMES, "task.name", "finetune.lr")}
    record |= vars(found)
    if theirs is not None:
        record |= {"published_mean": theirs[0], "published_std": theirs[1], "difference": found.mean - theirs[0]}
    if compared is not None:
        record |= {
            "over_baseline": compared.difference.mean, "over_baseline_low": compared.difference.low,
            "over_baseline_high": compared.difference.high, "p_holm": compared.p_holm,
            "distinguishable": compared.distinguishable,
        }  # fmt: skip
    return record


def _notes(
    runs: Sequence[FinishedRun],
    groups: Sequence[Group],
    compared: _Differences,
    baseline: tuple[str, str],
    matched: bool,
) -> tuple[str, ...]:
    most = max((len(entry.runs) for entry in groups), default=1)
    notes = [
        f"Mean ± standard deviation over up to {most} draws, 95 % interval over draws (Student's t)."
        if most > 1
        else "Mean and 95 % interval over queries (bootstrap)."
    ]
    if compared:
        over = "draws" if any(result.over == "seeds" for result in compared.values()) else "queries"
        rates = (
            " at the same settings or, with another rate, at its task's own" if baseline[0] == "finetune.name" else ""
        )
        notes.append(
            f"* distinguishable from {baseline[1]}{rates}: paired over {over}, p < 0.05 after Holm's correction for "
            f"{len(compared)} comparisons. What is unmarked was not told apart, or not compared."
        )
    if matched:
        sources = published.published()["sources"]
        notes.append(f"Published: {sources['untrained_gd']}; {sources['variants']}.")
    return tuple(notes + zero_shot_notes(runs))
