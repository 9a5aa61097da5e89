"""The report's tables: summary, variants at held-out rates, comparisons and planted truths."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from iclgd.common.printable import printable
from iclgd.report.formats import Row, Table, number, pivot
from iclgd.report.planted_truths import notice_tables
from iclgd.results import published
from iclgd.results.catalogue import ScoreInfo
from iclgd.results.comparisons import Difference, differences, power_text
from iclgd.results.frame import SEES, Results, overall
from iclgd.results.rates import RATE, VARIANT, Contender, at_chosen_rates, contenders
from iclgd.results.reading import ReportError
from iclgd.results.remarks import remarks
from iclgd.statistics import Comparison

SCORE = "score"  # stands among rows or columns for the scores' names


def tables(
    results: Results, rows: Sequence[str] = (), columns: Sequence[str] = (), scores: Sequence[str] = ()
) -> list[Table]:
    """Every table that these runs fill.

    Args:
        results: the runs.
        rows: Hydra keys whose values are the rows of the summary. Swept keys that are named nowhere are added, so that
            no two settings share a cell.
        columns: the same for columns; `score` stands for the scores' names, and is the default.
        scores: the scores to show; all where empty.

    Raises:
        ReportError: these runs do not have one of the keys or scores.
    """
    among, rate_notes = contenders(results)
    compared = differences(results, among)
    several_rates = bool(rate_notes) or any(len(one.tried) > 1 for one in among)
    return [
        summary(results, rows, columns, scores),
        *([held_out(results, among, rate_notes)] if several_rates else []),
        *([comparisons(results, compared)] if compared else []),
        *notice_tables(results),
    ]


def conclusions(all_tables: Iterable[Table]) -> list[str]:
    """The sentences below these tables that say what can be told apart."""
    last = [table.notes[-1] for table in all_tables if table.name.startswith(("comparisons", "notice_matrix"))]
    return [sentence for sentence in last if sentence]


def summary(
    results: Results, rows: Sequence[str] = (), columns: Sequence[str] = (), scores: Sequence[str] = ()
) -> Table:
    """Every score of every setting over its draws, published numbers below those that they match."""
    wanted = _scores(results, scores)
    down, across = _layout(results, rows, columns)
    frame = overall(results.summary).drop(columns=["examples", "layer"])
    records = frame[frame[SCORE].isin(wanted)].to_dict("records")
    order = {name: at for at, name in enumerate(wanted)}
    records.sort(key=lambda r: [order[r[k]] if k == SCORE else results.rank(k, r[k]) for k in (*down, *across)])
    for record in records:
        theirs = published.mean_and_std(record)
        if theirs:
            mean, std = theirs
            record |= {"published_mean": mean, "published_std": std, "difference": record["mean"] - mean}
    heads, cells = pivot((_texts(results, down, r), _texts(results, across, r, True), r) for r in records)
    draws = any(record["draws"] > 1 or excluded(record) for record in records)
    layers: Any = frame[frame["layers"] > 0].groupby(SCORE)["layers"].nunique()
    uneven = set(layers.index[layers > 1])
    lines: list[Row] = []
    for label, row in cells.items():
        counts = (_draws(results, row.values()),) * draws
        texts = (_cell(results, row.get(column), uneven) for column in heads)
        lines.append((*label, *counts, *texts))
        if any("published_mean" in record for record in row.values()):
            blank = [""] * (len(label) - 1 + draws)
            lines.append(("published", *blank, *(_published(row.get(column, {})) for column in heads)))
    names = (*map(results.heading, down), *["draws"] * draws)
    title = "Likeness of finetuning to in-context learning"
    header, notes = (*names, *map(" · ".join, heads)), _notes(results, records)
    return Table("summary", title, header, len(names), tuple(lines), notes, tuple(records))


def _cell(results: Results, record: Mapping[str, Any] | None, uneven: Collection[str]) -> str:
    """The mean of a row of `Results.summary`, with the number of layers it is over for the scores `uneven`."""
    if record is None:
        return ""
    if math.isnan(record["mean"]) and excluded(record):
        return "diverged" if record["diverged"] else "unstable"
    text = _number(results.scores[record[SCORE]], record)
    return f"{text} ({record['layers']} layers)" if record[SCORE] in uneven and record["layers"] else text


def _number(score: ScoreInfo, record: Mapping[str, Any]) -> str:
    ends = record["low"], record["high"]
    return number(record["mean"], *ends, std=record["std"], share=score.share, digits=score.digits)


def _published(record: Mapping[str, Any]) -> str:
    return f"{record['published_mean']:.2f} ± {record['published_std']:.2f}" if "published_mean" in record else ""


def held_out(results: Results, contenders: Sequence[Contender], rate_notes: Sequence[str]) -> Table:
    """Each variant that ran at several rates, every draw at the rate that the other draws chose."""
    cells, records = [], []
    for record in at_chosen_rates(results, contenders).to_dict("records"):
        score = results.scores[record[SCORE]]
        if score.learned:
            label = (*_others(results, record), results.labels[record[VARIANT]], *_sees(results, record[VARIANT]))
            cells.append(((*label, record["rates"], str(record["of_draws"])), (score.label,), _number(score, record)))
            records.append(record)
    notes = ["Each draw at the rate that is best for the other draws, so that no number chose itself."] * bool(cells)
    if any(one.at_edge for one in contenders):
        notes.append("Edge: the lowest or the highest rate tried was chosen, and a better one may lie beyond.")
    labels = _headings(results, "variant", "chosen rates", "draws")
    title = "Variants at rates chosen on other draws"
    return Table.pivot("held_out", title, labels, cells, (*notes, *rate_notes), records)


def comparisons(results: Results, compared: Sequence[Difference]) -> Table:
    """The differences that the variants ask for, draw by draw."""
    cells, records = [], []
    for difference in compared:
        one, other = difference.first, difference.second
        draws = str(max(result.draws for result in difference.results.values()))
        label = (
            *_others(results, one.others),
            " minus ".join(difference.names(results.labels)),
            *_sees(results, one.variant, other.variant),
        )
        first, second = difference.names({})
        about = {**one.others, "first": first, "second": second, "asks": difference.asks}
        for name, result in difference.results.items():
            score = results.scores[name]
            cells.append(((*label, difference.asks, draws), (score.label,), _difference(result, score.digits)))
            records.append({**about, SCORE: name, **vars(result), "marked": result.marked})
    tested = sum(result.p == result.p for difference in compared for result in difference.results.values())
    marks = f"* p < 0.05 after Holm's correction for the {tested} comparisons with 5 draws or more. "
    notes = (marks * bool(tested) + "Intervals need 3 draws.", power_text(compared))
    labels = _headings(results, "difference", "tells", "draws")
    title = "Differences between variants, paired by draw"
    return Table.pivot("comparisons", title, labels, cells, notes, records)


def excluded(record: Mapping[str, Any]) -> int:
    """How many runs of a row of `Results.summary` are left out of its mean."""
    return record["unstable"] + record["diverged"]


def _scores(results: Results, chosen: Sequence[str]) -> list[str]:
    """The scores by name or label."""
    names = {info.label: name for name, info in results.scores.items()} | {name: name for name in results.scores}
    for unknown in (name for name in chosen if name not in names):
        raise ReportError(f"no run has a score {unknown!r}: measured here are {', '.join(results.scores)}")
    return [names[name] for name in chosen] or list(results.scores)


def _layout(results: Results, rows: Sequence[str], columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """The keys down and across; swept keys that are not named come below the rows named, a seed never."""
    keys = {results.heading(key): key for key in results.keys} | {key: key for key in (*results.keys, SCORE)}
    for unknown in (key for key in (*rows, *columns) if key not in keys):
        raise ReportError(f"no column {unknown!r}: choose from score, {', '.join(results.keys)}")
    down, across = [keys[key] for key in rows], [keys[key] for key in columns]
    down += [key for key in results.shown if key not in (*down, *across)]
    across += [SCORE] * (SCORE not in (*down, *across))
    return down or (["finetune.name"] if "finetune.name" not in across else ["model.name"]), across


def _texts(results: Results, keys: Sequence[str], record: Mapping[str, Any], headed: bool = False) -> Row:
    text = (lambda key: results.setting_text({key: record[key]})) if headed else (lambda k: results.text(k, record[k]))
    return tuple(results.scores[record[SCORE]].label if key == SCORE else text(key) for key in keys)


def _draws(results: Results, row: Iterable[Mapping[str, Any]]) -> str:
    """How many draws count, and how many do not, of the scores that depend on finetuning if there are any."""
    records = list(row)
    records = [record for record in records if results.scores[record[SCORE]].learned] or records
    counts = {kind: max(record[kind] for record in records) for kind in ("draws", "unstable", "diverged")}
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
    counts = {name: sum(r["undefined"] for r in records if r[SCORE] == name) for name in results.scores}
    undefined = [f"{printable(results.scores[name].label)}: {n:,} undefined values" for name, n in counts.items() if n]
    notes += [f"{'; '.join(undefined)}, left out of the mean."] * bool(undefined)
    return (*notes, *remarks(results))


def _other_keys(results: Results) -> list[str]:
    return [key for key in results.varied if key not in (VARIANT, RATE)]


def _headings(results: Results, first: str, *rest: str) -> Row:
    return (*map(results.heading, _other_keys(results)), first, *["sees"] * (SEES in results.keys), *rest)


def _others(results: Results, setting: Mapping[str, Any]) -> Row:
    return tuple(results.text(key, setting[key]) for key in _other_keys(results))


def _sees(results: Results, *variants: str) -> Row:
    """What these mechanisms see, as one cell; no cell where all see the same."""
    seen = [results.text(SEES, results.variants[name].sees) for name in variants]
    return (" / ".join(dict.fromkeys(seen)),) if SEES in results.keys else ()


def _difference(result: Comparison, digits: int) -> str:
    text = number(result.mean, result.low, result.high, sign="+", digits=digits)
    if math.isnan(result.p_holm):
        return text
    p = "< 0.0001" if result.p_holm < 1e-4 else f"{result.p_holm:.2g}"
    return f"{text} p {p}" + " *" * result.marked
