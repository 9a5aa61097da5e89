"""The report as one page that needs no network: figures, tables, runs and prompts."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iclgd.report.chart import DATA, Figure, theme
from iclgd.report.conclusions import zero_shot_notes
from iclgd.report.formats import Table
from iclgd.report.panels import text
from iclgd.report.reading import BrokenRun, FinishedRun
from iclgd.report.results import Results
from iclgd.runs import varied
from iclgd.runs.files import replacing
from iclgd.shown import printable

if TYPE_CHECKING:
    import numpy as np

_HERE = Path(__file__).parent
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
_MOST_FIGURES, _MOST_PROMPTS, _MOST_ITEMS, _MOST_TEXT = 3_500_000, 12, 60, 1500  # characters, sets, texts, characters


def write_page(results: Results, figures: Sequence[Figure], tables: Sequence[Table], title: str, path: Path) -> Path:
    """Write report.html.

    Args:
        results: what it is about.
        figures: to be drawn, those of one kind as choices of one place.
        tables: to be shown as they are.
        title: of the page.
        path: the file to write.
    """
    html = render(results, figures, tables, title)
    with replacing(path, sync=False) as part:
        part.write_text(html, encoding="utf-8", newline="")
    return path


def render(results: Results, figures: Sequence[Figure], tables: Sequence[Table], title: str) -> str:
    """The page as text. All text from outside is escaped by the template, or is JSON that scripts show as text."""
    import jinja2
    import vl_convert
    from markupsafe import Markup

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")  # vega, vega-lite, vega-embed
    scripts = [_script(f"(() => {{{bundle}}})();"), _script((_HERE / "page.js").read_text("utf-8"))]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["printable"] = printable
    drawn, left = _drawn(figures)
    kinds: dict[str, list[tuple[int, Figure]]] = {}
    for at, (figure, _) in enumerate(drawn):
        kinds.setdefault(figure.name.partition("/")[0], []).append((at, figure))
    data = {"light": theme(), "dark": theme(dark=True), "figures": [packed for _, packed in drawn]}
    return environment.get_template("page.html.j2").render(
        title=title,
        results=results,
        policy=_policy(scripts),
        style=Markup((_HERE / "page.css").read_text("utf-8")),
        scripts=[Markup(script) for script in scripts],
        data=Markup(embedded(data)),
        kinds=list(kinds.values()),
        left=left,
        tables=tables,
        notes=zero_shot_notes(results),
        facts=_facts(results),
        runs=_runs(results),
        shared=_shared(results),
        prompts=list(_prompts(results)),
    )


def embedded(data: Any) -> str:
    """JSON that can stand inside a script element: ASCII alone, and nothing that a parser of HTML looks for."""
    written = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return "".join(_UNSAFE.get(character, character) for character in written)


def _script(code: str) -> str:
    """A script's text as a browser will hash it."""
    if "</script" in code.lower() or "<!--" in code:
        raise ValueError("a script that holds the end of its own element cannot be embedded")
    return code.replace("\r\n", "\n").replace("\r", "\n")


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy: these scripts and no others, and not one request to anywhere."""
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts]
    allowed = f"script-src {' '.join(hashes)}; style-src 'unsafe-inline'; img-src data: blob:"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _drawn(figures: Sequence[Figure]) -> tuple[list[tuple[Figure, dict[str, Any]]], int]:
    """Figures with what the page's script draws from, headlines first taken in; and how many found no room."""
    room, chosen = _MOST_FIGURES, {}
    for figure in sorted(figures, key=lambda figure: not figure.headline):
        packed = _packed(figure.specification)
        size = len(json.dumps(packed))
        if size <= room:
            room, chosen[figure.name] = room - size, packed
    return [(f, chosen[f.name]) for f in figures if f.name in chosen], len(figures) - len(chosen)


def _packed(specification: Mapping[str, Any]) -> dict[str, Any]:
    """A chart without its theme, and its rows by column, texts as numbers of a list: a third of the size."""
    kept = {key: value for key, value in specification.items() if key not in ("config", "$schema", "datasets")}
    rows, columns = specification["datasets"][DATA], {}
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        texts = list(dict.fromkeys(values)) if any(isinstance(value, str) for value in values) else None
        at = {value: index for index, value in enumerate(texts or ())}
        columns[name] = values if texts is None else {"texts": texts, "at": [at[value] for value in values]}
    return {"spec": kept, "columns": columns}


def _facts(results: Results) -> dict[str, list[str]]:
    """What the page's head says of all runs."""
    facts = {
        "tasks": [run.settings["task.name"] for run in results.runs],
        "models": [results.short_name(str(run.settings["model.name"])) for run in results.runs],
        "variants": [results.variants[run.settings["finetune.name"]].label for run in results.runs],
        "varied": [*results.varied, *(["seed"] if len({run.settings["seed"] for run in results.runs}) > 1 else [])],
        "revisions": [_revision(run) for run in results.runs],
    }
    return {name: list(dict.fromkeys(map(str, values))) for name, values in facts.items() if values}


def _revision(run: FinishedRun) -> str:
    facts = run.environment.get("iclgd") or {}
    return str(facts.get("revision") or "unknown")[:10] + ("+" if facts.get("dirty") else "")


def _runs(results: Results) -> dict[str, Any]:
    """The table of runs: what varied, the headline scores, the state; in the order of the settings."""
    keys = [*(results.varied or ("finetune.name",)), *(k for k in varied.DRAW if _differs(results, k))]
    scores = [name for name in results.scores if name in results.headline or results.scores[name].share][:8]
    order = sorted(range(len(results)), key=lambda at: (results.setting_of[at], str(results[at].draw)))
    rows = []
    for run in (results[at] for at in order):
        means = [run.mean(name) for name in scores]
        cells = [f"{m:.1%}" if results.scores[n].share else f"{m:.3f}" for n, m in zip(scores, means, strict=True)]
        cells = ["\N{EN DASH}" if math.isnan(mean) else cell for cell, mean in zip(cells, means, strict=True)]
        rows.append([*(results.text(key, run.settings.get(key)) for key in keys), *cells, run.state, run.name])
    head = [
        *(varied.heading(key, keys) for key in keys),
        *(results.scores[name].label for name in scores),
        "state",
        "run",
    ]
    return {"head": head, "rows": rows, "numbers": range(len(keys), len(keys) + len(scores))}


def _differs(results: Results, key: str) -> bool:
    return len({str(run.settings.get(key)) for run in results.runs}) > 1


def _shared(results: Results) -> str:
    """The settings that all runs have in common, as `key: value` lines."""
    first = results.runs[0].settings
    lines = [f"{key}: {text(first[key])}" for key in first if not _differs(results, key)]
    return "\n".join(lines)


def _prompts(results: Results) -> Iterator[dict[str, Any]]:
    """What the models read: the demonstrations and the first queries of a few draws, with how each was answered."""
    keys = [key for key in results.keys if key.partition(".")[0] in ("task", "model")] + ["seed", "task.permutation"]
    keys = [key for key in keys if _differs(results, key)]
    seen: dict[tuple[str, ...], FinishedRun] = {}
    for run in results.runs:
        seen.setdefault(tuple(text(run.settings.get(key)) for key in keys), run)
    for where, run in list(seen.items())[:_MOST_PROMPTS]:
        name = " · ".join(f"{key} {value}" for key, value in zip(keys, where, strict=True)) or run.name
        try:
            content = run.prompts()
            words = [str(word) for word in content.get("label_words") or []]
            lists = {
                kind: [_item(item, words) for item in content[kind][:_MOST_ITEMS]]
                for kind in ("demonstrations", "queries")
            }
            left = len(content["queries"]) - len(lists["queries"])
        except (BrokenRun, KeyError, TypeError, ValueError):
            yield {"name": name, "lists": {}, "left": 0, "marks": []}
            continue
        yield {"name": name, "lists": lists, "left": left, "marks": list(_marks(results, run, len(lists["queries"])))}


def _item(item: Mapping[str, Any], words: Sequence[str]) -> tuple[str, str, int]:
    shown, label = str(item["text"]), int(item["label"])
    cut = shown if len(shown) <= _MOST_TEXT else f"{shown[:_MOST_TEXT]}… ({len(shown):,} characters)"
    visible = "".join(c if c.isprintable() or c in "\n\t" else f"⟨U+{ord(c):04X}⟩" for c in cut)
    return visible, words[label] if 0 <= label < len(words) else f"option {label}", len(item["token_ids"])


def _marks(results: Results, run: FinishedRun, count: int) -> Iterator[list[tuple[str, bool]]]:
    """For each query the scores that are shares, such as accuracies: their label, and whether this query counts."""
    values: dict[str, np.ndarray] = {
        n: v[:, 0] for n, v in run.values.items() if n in results.scores and v.shape[1] == 1
    }
    shares = [name for name in values if results.scores[name].share]
    for at in range(count):
        known = [(n, float(values[n][at])) for n in shares if at < len(values[n]) and not math.isnan(values[n][at])]
        yield [(results.scores[name].label, value == 1) for name, value in known]
