"""Tables as papers print them: settings as rows and scores as columns, or as the user says.

They show what `Results.summary` and the conclusions hold, each number in one table only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iclgd.report import conclusions, published
from iclgd.report.conclusions import Contender, Difference
from iclgd.report.formats import UNDEFINED, Table, number, p_value, signed
from iclgd.report.notice import notices
from iclgd.report.notice_tables import notice_tables
from iclgd.report.reading import FinishedRun, ReportError
from iclgd.report.results import Results, whole
from iclgd.runs import varied
from iclgd.statistics import Comparison, draws_interval

SCORE = "score"  # stands among rows or columns for the scores' names
_Row = tuple[str, ...]


def tables(
    results: Results, rows: Sequence[str] = (), columns: Sequence[str] = (), scores: Sequence[str] = ()
) -> list[Table]:
    """Every table that these runs fill: summary, held-out rates, comparisons, planted truths, data.

    Args:
        results: the runs.
        rows: Hydra keys whose values are the rows of the summary, in this order; what varied and is named nowhere
            comes after them, for no two settings share a cell.
        columns: the same for columns; `score` stands for the scores' names, and is the default.
        scores: the scores to show; all where empty.

    Raises:
        ReportError: a key or a score that these runs do not have.
    """
    among, untold = conclusions.contenders(results)
    made = conclusions.differences(results, among)
    found = [summary(results, rows, columns, scores)]
    found += [held_out(results, among, untold)] if any(len(c.tried) > 1 for c in among) or untold else []
    found += [comparisons(results, made)] if made else []
    return [*found, *notice_tables(results, notices(results)), data(results)]


def summary(
    results: Results, rows: Sequence[str] = (), columns: Sequence[str] = (), scores: Sequence[str] = ()
) -> Table:
    """Every score of every setting over its draws, published numbers below those that they match."""
    wanted = _scores(results, scores)
    down, across = _layout(results, rows, columns)
    shown = whole(results.summary)
    shown = shown[shown["score"].isin(wanted)]
    records = [_record(results, row) for row in shown.to_dict("records")]
    records.sort(key=lambda record: _rank(results, wanted, [*down, *across], record))
    header = list(dict.fromkeys(_texts(results, across, record) for record in records))
    cells: dict[_Row, dict[_Row, Mapping[str, Any]]] = {}
    for record in sorted(records, key=lambda record: _rank(results, wanted, down, record)):
        cells.setdefault(_texts(results, down, record), {})[_texts(results, across, record)] = record
    draws = any(record["draws"] > 1 or _excluded(record) for record in records)
    printed: list[_Row] = []
    for label, row in cells.items():
        counted = (_draws(results, list(row.values())),) if draws else ()
        values = (_cell(results, row[column]) if column in row else "" for column in header)
        printed.append((*label, *counted, *values))
        theirs = [_published(row[column]) if column in row else "" for column in header]
        if any(theirs):
            printed.append(("published", *[""] * (len(label) - 1 + draws), *theirs))
    names = [varied.heading(key, results.keys) for key in down] + ["draws"] * draws
    title = "Likeness of finetuning to in-context learning"
    columns_shown = [" · ".join(column) for column in header]
    notes = _notes(results, records)
    return Table("summary", title, (*names, *columns_shown), len(names), tuple(printed), notes, tuple(records))


def held_out(results: Results, among: Sequence[Contender], untold: Sequence[str]) -> Table:
    """Each variant at the rate that its other draws chose, where it ran at several."""
    keys = _other_keys(results)
    scores = [name for name, score in results.scores.items() if score.learned]
    rows, records = [], []
    for contender in (one for one in among if len(one.tried) > 1):
        found = {name: _over_draws(results, name, contender) for name in scores if name in contender.values}
        rates = sorted(set(contender.rates.values()))
        shown = ", ".join(f"{rate:g}" for rate in rates) + (" (edge)" if contender.at_edge else "")
        label = results.variants[contender.variant].label
        cells = [number(**found[name]) if name in found else "" for name in scores]
        who = [results.text(key, contender.others[key]) for key in keys]
        rows.append((*who, label, shown, str(len(contender.rates)), *cells))
        about = {**contender.others, "finetune.name": contender.variant, "rates": shown}
        records += [about | {"score": name} | values for name, values in found.items()]
    names = [varied.heading(key, results.keys) for key in keys]
    header = (*names, "variant", "chosen rates", "draws", *(results.scores[name].label for name in scores))
    notes = ["Each draw at the rate that is best for the other draws, so that no number chose itself."]
    if any(one.at_edge for one in among):
        notes.append("Edge: the lowest or the highest rate tried was chosen, and a better one may lie beyond.")
    title = "Variants at rates chosen on other draws"
    return Table("held_out", title, header, 3 + len(names), tuple(rows), (*notes, *untold), tuple(records))


def comparisons(results: Results, made: Sequence[Difference]) -> Table:
    """The differences that the variants ask for, draw by draw."""
    keys, rows, records = _other_keys(results), [], []
    scores = list(dict.fromkeys(score for difference in made for score in difference.results))
    for difference in made:
        first, second = (_who(results, difference, one) for one in (difference.first, difference.second))
        who = [results.text(key, difference.first.others[key]) for key in keys]
        draws = max(result.draws for result in difference.results.values())
        cells = [_difference(difference.results[score]) if score in difference.results else "" for score in scores]
        rows.append((*who, f"{first} minus {second}", difference.asks, str(draws), *cells))
        about = {**difference.first.others, "first": difference.first.variant, "second": second}
        records += [
            about | {"asks": difference.asks, "score": score} | vars(result) | {"marked": result.marked}
            for score, result in difference.results.items()
        ]
    tested = sum(result.p == result.p for difference in made for result in difference.results.values())
    notes = (
        f"* p < 0.05 after Holm's correction for the {tested} comparisons that were tested: marks need 5 draws, "
        "intervals 3. In parentheses the draws with which the interval would be about ± 0.05.",
        conclusions.power_text(made),
    )
    names = [varied.heading(key, results.keys) for key in keys]
    header = (*names, "difference", "tells", "draws", *(results.scores[score].label for score in scores))
    title = "Differences between variants, paired by draw"
    return Table("comparisons", title, header, 3 + len(names), tuple(rows), notes, tuple(records))


def data(results: Results) -> Table:
    """Data statistics, from the prompts that the models saw: labels, demonstrations, queries and their mean tokens."""
    keys = [
        key for key in results.keys if key in ("model.name", "task.name", "task.shots") or _of_prompts(results, key)
    ]
    gathered: dict[tuple[Any, ...], dict[Any, FinishedRun]] = {}
    for run in results.runs:  # whatever the finetuning, one setting and draw has one set of prompts
        setting = tuple(run.settings.get(key) for key in keys)
        gathered.setdefault(setting, {}).setdefault((run.settings["seed"], run.settings.get("task.permutation")), run)
    rows, records = [], []
    for setting, runs in gathered.items():
        found = [_prompt_statistics(run.prompts()) for run in runs.values()]
        mean = {name: math.fsum(one[name] for one in found) / len(found) for name in found[0]}
        counts = [f"{mean[name]:g}" for name in ("labels", "demonstrations", "queries")]
        tokens = [f"{mean[name]:.1f}" for name in ("demonstration_tokens", "query_tokens", "context_tokens")]
        rows.append((*(results.text(*pair) for pair in zip(keys, setting, strict=True)), *counts, *tokens))
        records.append(dict(zip(keys, setting, strict=True)) | mean)
    names = [varied.heading(key, results.keys) for key in keys]
    counted = ("labels", "demonstrations used", "queries", "tokens of a demonstration", "tokens of a query")
    header = (*names, *counted, "tokens of the context")
    note = "Tokens are means over demonstrations or queries, then over draws; the context has bos and separators."
    return Table("data", "Data statistics", header, len(names), tuple(rows), (note,), tuple(records))


def _scores(results: Results, chosen: Sequence[str]) -> list[str]:
    """The scores by name or label."""
    if not chosen:
        return list(results.scores)
    names = {info.label: name for name, info in results.scores.items()} | {name: name for name in results.scores}
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise ReportError(f"no run has a score {unknown[0]!r}: measured here are {', '.join(results.scores)}")
    return [names[name] for name in chosen]


def _layout(results: Results, rows: Sequence[str], columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """The keys down and across; what varied and is not named comes below the rows named, a seed never."""
    known = {varied.heading(key, results.keys): key for key in results.keys}
    known |= {key: key for key in (*results.keys, SCORE)}
    unknown = [key for key in (*rows, *columns) if key not in known]
    if unknown:
        raise ReportError(f"no column {unknown[0]!r}: choose from score, {', '.join(results.keys)}")
    down, across = [known[key] for key in rows], [known[key] for key in columns]
    down += [key for key in results.shown if key not in (*down, *across)]
    if SCORE not in (*down, *across):
        across.append(SCORE)
    return down or (["finetune.name"] if "finetune.name" not in across else ["model.name"]), across


def _rank(results: Results, scores: Sequence[str], keys: Sequence[str], record: Mapping[str, Any]) -> list[Any]:
    return [
        (0, float(scores.index(record[SCORE])), "") if key == SCORE else results.rank(key, record[key]) for key in keys
    ]


def _texts(results: Results, keys: Sequence[str], record: Mapping[str, Any]) -> _Row:
    return tuple(
        results.scores[record[SCORE]].label if key == SCORE else results.text(key, record[key]) for key in keys
    )


def _record(results: Results, row: Mapping[str, Any]) -> dict[str, Any]:
    theirs = published.mean_and_std(row, row[SCORE])
    record = {key: value for key, value in row.items() if key not in ("examples", "layer")}
    if theirs is not None:
        record |= {"published_mean": theirs[0], "published_std": theirs[1], "difference": row["mean"] - theirs[0]}
    return record


def _cell(results: Results, record: Mapping[str, Any]) -> str:
    if math.isnan(record["mean"]) and _excluded(record):
        return "diverged" if record["diverged"] else "unstable"
    return number(record["mean"], record["low"], record["high"], record["std"], results.scores[record[SCORE]].share)


def _excluded(record: Mapping[str, Any]) -> int:
    return record["unstable"] + record["diverged"]


def _draws(results: Results, row: Sequence[Mapping[str, Any]]) -> str:
    """How many draws count, and how many do not, of the scores that depend on finetuning if there are such."""
    row = [record for record in row if results.scores[record[SCORE]].learned] or row
    said = [str(max(record["draws"] for record in row))]
    for kind in ("unstable", "diverged"):
        count = max(record[kind] for record in row)
        said += [f"{count} {kind}"] if count else []
    return ", ".join(said)


def _published(record: Mapping[str, Any]) -> str:
    if "published_mean" not in record:
        return ""
    return f"{record['published_mean']:.2f} ± {record['published_std']:.2f}"


def _notes(results: Results, records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    most = max((record["draws"] for record in records), default=1)
    notes = ["Mean [95 % interval over the queries of one draw: what another draw would give, it does not say]."]
    if most > 1:
        single = any(record["unit"] == "queries" and record["draws"] for record in records)
        notes = [f"Mean ± standard deviation over up to {most} draws [95 % interval over draws]"]
        notes[0] += "; with one draw [95 % interval over its queries]." if single else "."
    if any(map(_excluded, records)):
        notes.append("Runs that diverged or are unstable are counted with the draws and left out of the means.")
    if any("published_mean" in record for record in records):
        sources = published.published()["sources"]
        notes.append(f"Published: {sources['untrained_gd']}; {sources['variants']}.")
    return (*notes, *conclusions.zero_shot_notes(results))


def _other_keys(results: Results) -> list[str]:
    return [key for key in results.varied if key not in ("finetune.name", "finetune.lr")]


def _over_draws(results: Results, score: str, contender: Contender) -> dict[str, Any]:
    """A contender's mean over draws, at rates that the other draws chose."""
    known = {draw: value for draw, value in contender.values[score].items() if not math.isnan(value)}
    values, share = np.array(list(known.values())), results.scores[score].share
    trials = None
    if share:
        by_draw = conclusions.trials(results, score, contender)
        trials = [by_draw[draw] for draw in known]
    interval = draws_interval(values, results.scores[score].limits, trials=trials, chosen=True)
    mean, std = (float(values.mean()) if len(values) else math.nan), math.nan
    if len(values) > 1:
        std = float(values.std(ddof=1))
    return {"mean": mean, "low": interval.low, "high": interval.high, "std": std, "share": share}


def _who(results: Results, difference: Difference, one: Contender) -> str:
    """A contender's name in a difference: by its variant, or by its weights where these are compared."""
    same = difference.first.variant == difference.second.variant
    label = results.variants[one.variant].label
    return f"{label}, {one.others['model.weights']}" if same else label


def _difference(result: Comparison) -> str:
    if not result.draws:
        return UNDEFINED
    text = signed(result.mean)
    if not math.isnan(result.low):
        text += f" [{result.low:z.3f}, {result.high:z.3f}]"
    if not math.isnan(result.p_holm):
        text += f" p {p_value(result.p_holm)}" + (" *" if result.marked else "")
    return text if result.needed is None or result.marked else f"{text} ({result.needed})"


def _of_prompts(results: Results, key: str) -> bool:
    return key in results.varied and key.startswith(("task.", "model.bos", "model.separator"))


def _prompt_statistics(prompts: Mapping[str, Any]) -> dict[str, float]:
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
