"""The report as one page that needs no network: figures, tables, runs and prompts."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from iclgd.common.printable import printable
from iclgd.report.chart import DATA, Figure, theme
from iclgd.report.formats import Table, number
from iclgd.results.frame import Results
from iclgd.results.reading import FinishedRun
from iclgd.results.remarks import remarks
from iclgd.runs import varying_keys

_HERE = Path(__file__).parent
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
_MOST_PROMPTS, _MOST_ITEMS, _MOST_TEXT = 12, 60, 1500  # sets, texts, characters


def render(
    results: Results, figures: Sequence[Figure], tables: Sequence[Table], title: str, findings: Sequence[str] = ()
) -> str:
    """The page as text. All text from outside is escaped by the template, or is JSON that scripts show as text."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")  # vega, vega-lite, vega-embed
    scripts = [f"(() => {{{bundle}}})();", (_HERE / "page.js").read_text("utf-8")]
    scripts = [script.replace("\r\n", "\n").replace("\r", "\n") for script in scripts]  # as a browser hashes them
    options: Any = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_HERE), autoescape=True, **options)
    environment.filters["printable"] = printable
    data = {"theme": theme(), "figures": [_packed(figure) for figure in figures]}
    return environment.get_template("page.html.j2").render(
        title=title,
        results=results,
        policy=_policy(scripts),
        style=Markup((_HERE / "page.css").read_text("utf-8")),
        scripts=[Markup(script) for script in scripts],
        data=Markup(embedded(data)),
        kinds=[list(kind) for _, kind in itertools.groupby(enumerate(figures), key=lambda pair: pair[1].kind)],
        tables=[table for table in tables if table.rows],
        notes=remarks(results),
        findings=findings,
        facts=_facts(results),
        runs=_runs(results),
        shared={k: varying_keys.as_text(v) for k, v in results[0].settings.items() if not _differs(results, k)},
        prompts=list(_prompts(results)),
    )


def embedded(data: Any) -> str:
    """JSON that can stand inside a script element: ASCII alone, and nothing that a parser of HTML looks for."""
    written = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return "".join(_UNSAFE.get(character, character) for character in written)


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy: these scripts and no others, and not one request to anywhere."""
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts]
    allowed = f"script-src {' '.join(hashes)}; style-src 'unsafe-inline'; img-src data: blob:"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _packed(figure: Figure) -> dict[str, Any]:
    """A figure's name, its chart without the theme, and its rows by column, which takes less room."""
    spec = {k: v for k, v in figure.specification.items() if k not in ("config", "$schema", "datasets")}
    rows = figure.specification["datasets"][DATA]
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    return {"name": figure.file_name, "spec": spec, "columns": columns}


def _facts(results: Results) -> dict[str, list[str]]:
    """What the page's head says of all runs."""
    names = {"tasks": "task.name", "models": "model.name", "variants": "finetune.name"}
    facts = {name: [results.text(key, run.settings[key]) for run in results] for name, key in names.items()}
    facts["varied"] = [*results.varied, *(["seed"] if _differs(results, "seed") else [])]
    versions = [run.environment.get("iclgd") or {} for run in results]
    known = [version for version in versions if version.get("revision")]
    facts["git revisions"] = [str(version["revision"])[:10] + "+" * bool(version.get("dirty")) for version in known]
    return {name: list(dict.fromkeys(values)) for name, values in facts.items() if values}


def _runs(results: Results) -> Table:
    """The table of runs: what varied, the headline scores, the state; in the order of the settings."""
    keys = [*(results.shown or ("finetune.name",)), *(key for key in varying_keys.DRAW if _differs(results, key))]
    scores = [score for name, score in results.scores.items() if name in results.headline or score.share][:7]
    rows = []
    for run in results.run_table.astype(object).to_dict("records"):
        cells = [number(run[score.name], share=score.share, digits=score.digits) for score in scores]
        rows.append((*(results.text(key, run[key]) for key in keys), run["state"], run["run"], *cells))
    header = (*(varying_keys.heading(key, keys) for key in keys), "state", "run", *(score.label for score in scores))
    return Table("runs", "Runs", header, len(keys) + 2, tuple(rows), ("Click a heading to sort.",))


def _differs(results: Results, key: str) -> bool:
    return len({str(run.settings.get(key)) for run in results}) > 1


def _prompts(results: Results) -> Iterator[dict[str, Any]]:
    """What the models read: the demonstrations and the first queries of a few draws, with how each was answered."""
    keys = [key for key in results.keys if key.startswith(("task.", "model."))] + ["seed", "task.permutation"]
    keys = [key for key in keys if _differs(results, key)]
    runs: dict[str, FinishedRun] = {}
    for run in results:
        runs.setdefault(results.setting_text({key: run.settings.get(key) for key in keys}) or run.name, run)
    for name, run in list(runs.items())[:_MOST_PROMPTS]:
        content = run.prompts()
        words = content.get("label_words") or []
        lists = {
            kind: [_item(item, words) for item in content[kind][:_MOST_ITEMS]] for kind in ("demonstrations", "queries")
        }
        for score, values in run.values.items():  # for each share that has a value of a query, whether it counts
            if score in results.scores and results.scores[score].share and values.shape[1] == 1:
                for query, value in zip(lists["queries"], values[:, 0], strict=False):
                    query["marks"] += [(results.scores[score].label, value == 1)] * (not math.isnan(value))
        yield {"name": name, "lists": lists, "left": len(content["queries"]) - len(lists["queries"])}


def _item(item: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    text, label = item["text"], item["label"]
    if len(text) > _MOST_TEXT:
        text = f"{text[:_MOST_TEXT]}… ({len(text):,} characters)"
    visible = "".join(c if c.isprintable() or c in "\n\t" else f"⟨U+{ord(c):04X}⟩" for c in text)
    word = words[label] if label < len(words) else f"option {label}"
    return {"text": visible, "label": word, "tokens": len(item["token_ids"]), "marks": []}
