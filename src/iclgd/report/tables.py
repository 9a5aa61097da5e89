"""Tables as papers print them: settings as rows and scores as columns, or as the user says.

They show what `Results.summary` and the conclusions hold, each number in one table only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from iclgd.report.formats import Row, Table, number, wide
from iclgd.report.planted_truth_tables import notice_tables
from iclgd.results import conclusions, published
from iclgd.results.catalogue import ScoreInfo
from iclgd.results.conclusions import Contender, Difference
from iclgd.results.frame import Results, whole
from iclgd.results.own_tables import prompt_statistics
from iclgd.results.rates import at_chosen_rates
from iclgd.results.reading import ReportError
from iclgd.statistics import Comparison

SCORE = "score"  # stands among rows or columns for the scores' names


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
    found += [held_out(results, among, untold)] if untold or any(len(one.tried) > 1 for one in among) else []
    found += [comparisons(results, made)] if made else []
    return [*found, *notice_tables(results), data(results)]


def summary(
    results: Results, rows: Sequence[str] = (), columns: Sequence[str] = (), scores: Sequence[str] = ()
) -> Table:
    """Every score of every setting over its draws, published numbers below those that they match."""
    wanted = _scores(results, scores)
    down, across = _layout(results, rows, columns)
    shown = whole(results.summary).drop(columns=["examples", "layer"])
    records = [published.beside(row) for row in shown[shown[SCORE].isin(wanted)].to_dict("records")]
    order = {name: at for at, name in enumerate(wanted)}
    records.sort(key=lambda r: [order[r[k]] if k == SCORE else results.rank(k, r[k]) for k in (*down, *across)])
    heads, cells = wide((_texts(results, down, r), _texts(results, across, r), r) for r in records)
    draws = any(record["draws"] > 1 or excluded(record) for record in records)
    printed: list[Row] = []
    for label, row in cells.items():
        counted = (_draws(results, row.values()),) * draws
        printed.append((*label, *counted, *(cell(results, row.get(column)) for column in heads)))
        known = [row[column] if "published_mean" in row.get(column, ()) else None for column in heads]
        if any(known):
            theirs = [f"{r['published_mean']:.2f} ± {r['published_std']:.2f}" if r else "" for r in known]
            printed.append(("published", *[""] * (len(label) - 1 + draws), *theirs))
    names = (*map(results.heading, down), *["draws"] * draws)
    title = "Likeness of finetuning to in-context learning"
    header, notes = (*names, *map(" · ".join, heads)), _notes(results, records)
    return Table("summary", title, header, len(names), tuple(printed), notes, tuple(records))


def cell(results: Results, record: Mapping[str, Any] | None, interval: bool = True) -> str:
    """The mean of a row of `Results.summary` as text; no row is an empty cell."""
    if record is None:
        return ""
    if math.isnan(record["mean"]) and excluded(record):
        return "diverged" if record["diverged"] else "unstable"
    return _number(results.scores[record[SCORE]], record, interval)


def _number(score: ScoreInfo, record: Mapping[str, Any], interval: bool = True) -> str:
    ends = (record["low"], record["high"]) if interval else ()
    return number(record["mean"], *ends, std=record["std"], share=score.share, digits=score.digits)


def held_out(results: Results, among: Sequence[Contender], untold: Sequence[str]) -> Table:
    """Each variant at the rate that its other draws chose, where it ran at several."""
    entries, records = [], []
    for one in among:
        label = (*_others(results, one), results.variants[one.variant].label)
        for record in at_chosen_rates(results, [one]):
            score = results.scores[record[SCORE]]
            if score.learned:
                whose = (*label, record["rates"], str(len(one.rates)))
                entries.append((whose, (score.label,), _number(score, record)))
                records.append(record)
    notes = ["Each draw at the rate that is best for the other draws, so that no number chose itself."]
    if any(one.at_edge for one in among):
        notes.append("Edge: the lowest or the highest rate tried was chosen, and a better one may lie beyond.")
    labels = (*map(results.heading, _other_keys(results)), "variant", "chosen rates", "draws")
    title = "Variants at rates chosen on other draws"
    return Table.wide("held_out", title, labels, entries, (*notes, *untold), records)


def comparisons(results: Results, made: Sequence[Difference]) -> Table:
    """The differences that the variants ask for, draw by draw."""
    entries, records = [], []
    for difference in made:
        first, second = difference.names(results.variants)
        draws = str(max(result.draws for result in difference.results.values()))
        label = (*_others(results, difference.first), f"{first} minus {second}", difference.asks, draws)
        about = {**difference.first.others, "first": difference.first.variant, "second": second}
        for score, result in difference.results.items():
            shown = results.scores[score]
            entries.append((label, (shown.label,), _difference(result, shown.digits)))
            numbers = vars(result) | {"marked": result.marked}
            records.append(about | {"asks": difference.asks, SCORE: score} | numbers)
    tested = sum(result.p == result.p for difference in made for result in difference.results.values())
    marks = f"* p < 0.05 after Holm's correction for the {tested} comparisons with 5 draws or more. "
    notes = (
        marks * bool(tested) + "Intervals need 3 draws. In parentheses: about how many would make them ± 0.05.",
        conclusions.power_text(made),
    )
    labels = (*map(results.heading, _other_keys(results)), "difference", "tells", "draws")
    return Table.wide("comparisons", "Differences between variants, paired by draw", labels, entries, notes, records)


def data(results: Results) -> Table:
    """Data statistics, from the prompts that the models saw: labels, demonstrations, queries and their mean tokens."""
    keys, records = prompt_statistics(results)

    def text(name: str, value: Any) -> str:
        return results.text(name, value) if name in keys else f"{value:.1f}" if "tokens" in name else f"{value:g}"

    rows = tuple(tuple(map(text, record, record.values())) for record in records)
    counted = ("labels", "demonstrations used", "queries", "tokens of a demonstration", "tokens of a query")
    header = (*map(results.heading, keys), *counted, "tokens of the context")
    note = "Tokens are means over demonstrations or queries, then over draws; the context has bos and separators."
    return Table("data", "Data statistics", header, len(keys), rows, (note,), tuple(records))


def _scores(results: Results, chosen: Sequence[str]) -> list[str]:
    """The scores by name or label."""
    names = {info.label: name for name, info in results.scores.items()} | {name: name for name in results.scores}
    for unknown in (name for name in chosen if name not in names):
        raise ReportError(f"no run has a score {unknown!r}: measured here are {', '.join(results.scores)}")
    return [names[name] for name in chosen] or list(results.scores)


def _layout(results: Results, rows: Sequence[str], columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """The keys down and across; what varied and is not named comes below the rows named, a seed never."""
    known = {results.heading(key): key for key in results.keys} | {key: key for key in (*results.keys, SCORE)}
    for unknown in (key for key in (*rows, *columns) if key not in known):
        raise ReportError(f"no column {unknown!r}: choose from score, {', '.join(results.keys)}")
    down, across = [known[key] for key in rows], [known[key] for key in columns]
    down += [key for key in results.shown if key not in (*down, *across)]
    across += [SCORE] * (SCORE not in (*down, *across))
    return down or (["finetune.name"] if "finetune.name" not in across else ["model.name"]), across


def _texts(results: Results, keys: Sequence[str], record: Mapping[str, Any]) -> Row:
    return tuple(results.scores[record[k]].label if k == SCORE else results.text(k, record[k]) for k in keys)


def excluded(record: Mapping[str, Any]) -> int:
    """How many runs of a row of `Results.summary` are left out of its mean."""
    return record["unstable"] + record["diverged"]


def _draws(results: Results, row: Iterable[Mapping[str, Any]]) -> str:
    """How many draws count, and how many do not, of the scores that depend on finetuning if there are such."""
    every = list(row)
    row = [record for record in every if results.scores[record[SCORE]].learned] or every
    counts = {kind: max(record[kind] for record in row) for kind in ("draws", "unstable", "diverged")}
    return ", ".join([str(counts.pop("draws")), *(f"{count} {kind}" for kind, count in counts.items() if count)])


def _notes(results: Results, records: Sequence[Mapping[str, Any]]) -> Row:
    most = max((record["draws"] for record in records), default=1)
    notes = ["Mean [95 % interval over the queries of one draw: what another draw would give, it does not say]."]
    if most > 1:
        single = any(record["unit"] == "queries" and record["draws"] for record in records)
        notes = [f"Mean ± standard deviation over up to {most} draws [95 % interval over draws]"]
        notes[0] += "; with one draw [95 % interval over its queries]." if single else "."
    if any(map(excluded, records)):
        notes.append("Runs that diverged or are unstable are counted with the draws and left out of the means.")
    if any("published_mean" in record for record in records):
        sources = published.published()["sources"]
        notes.append(f"Published: {sources['untrained_gd']}; {sources['variants']}.")
    return (*notes, *conclusions.remarks(results))


def _other_keys(results: Results) -> list[str]:
    return [key for key in results.varied if key not in ("finetune.name", "finetune.lr")]


def _others(results: Results, one: Contender) -> Row:
    return tuple(results.text(key, one.others[key]) for key in _other_keys(results))


def _difference(result: Comparison, digits: int) -> str:
    text = number(result.mean, result.low, result.high, sign="+", digits=digits)
    if not math.isnan(result.p_holm):
        p = "< 0.0001" if result.p_holm < 1e-4 else f"{result.p_holm:.2g}"
        text += f" p {p}" + " *" * result.marked
    return text if result.needed is None or result.marked else f"{text} ({result.needed})"
