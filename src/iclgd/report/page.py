"""The report as one page that needs no network: figures, tables, runs and prompts."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from iclgd.common.printable import printable
from iclgd.report.chart import DATA, Figure, theme
from iclgd.report.formats import Table, number
from iclgd.results.frame import Results
from iclgd.results.remarks import remarks
from iclgd.runs import varying_keys

_HERE = Path(__file__).parent
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
_MOST_PROMPTS, _MOST_QUERIES, _MOST_TEXT = 12, 10, 30_000  # sets, queries and characters of each


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
        prompts=_prompts(results),
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
    facts["git revisions"] = [
        str(version.get("revision") or "unknown")[:10] + "+" * bool(version.get("dirty")) for version in versions
    ]
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


def _prompts(results: Results) -> dict[str, str]:
    """What the models read, by setting: all demonstrations, and the first queries."""
    keys = [key for key in results.keys if key.startswith(("task.", "model."))] + ["seed", "task.permutation"]
    keys = [key for key in keys if _differs(results, key)]
    texts: dict[str, str] = {}
    for run in results:
        name = results.setting_text({key: run.settings.get(key) for key in keys}) or run.name
        if name not in texts and len(texts) < _MOST_PROMPTS:
            content = run.prompts()
            items = [*content["demonstrations"], *content["queries"][:_MOST_QUERIES]]
            text = "\n".join(item["text"] for item in items)[:_MOST_TEXT]
            texts[name] = "".join(c if c.isprintable() or c in "\n\t" else f"⟨U+{ord(c):04X}⟩" for c in text)
    return texts
