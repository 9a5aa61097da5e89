"""How do the results reach a reader without a program? As one page that needs no network and asks for none."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iclgd.report.finished_run import FinishedRun
from iclgd.report.formats import Table
from iclgd.report.page_data import page_data
from iclgd.report.summary import zero_shot_notes
from iclgd.runs.files import replacing
from iclgd.shown import printable

_HERE = Path(__file__).parent
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def write_page(
    runs: Sequence[FinishedRun], left_out: Sequence[tuple[Path, str]], tables: Sequence[Table], title: str, path: Path
) -> Path:
    """Write report.html: tables, interactive figures, runs and prompts.

    Args:
        runs: what it is about.
        left_out: run folders that could not be used, with the reason.
        tables: to be shown as they are.
        title: of the page.
        path: the file to write.
    """
    html = render(runs, left_out, tables, title)
    with replacing(path, sync=False) as part:
        part.write_text(html, encoding="utf-8", newline="")
    return path


def render(
    runs: Sequence[FinishedRun], left_out: Sequence[tuple[Path, str]], tables: Sequence[Table], title: str
) -> str:
    """The page as text. All text from outside is escaped by the template or is JSON that the script shows as text."""
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    scripts = [_script(get_plotlyjs()), _script((_HERE / "page.js").read_text("utf-8"))]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["printable"] = printable
    return environment.get_template("page.html.j2").render(
        title=title,
        count=len(runs),
        policy=_policy(scripts),
        style=Markup((_HERE / "page.css").read_text("utf-8")),
        scripts=[Markup(script) for script in scripts],
        data=Markup(embedded(page_data(runs))),
        tables=tables,
        notes=zero_shot_notes(runs),
        left_out=[(folder.name, reason) for folder, reason in left_out],
        diverged=[run.name for run in runs if run.diverged],
        summary=_summary(runs),
    )


def embedded(data: Any) -> str:
    """JSON that can stand inside a script element: ASCII alone, and nothing that a parser of HTML looks for."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return "".join(_UNSAFE.get(character, character) for character in text)


def _script(text: str) -> str:
    """A script's text as a browser will hash it."""
    if "</script" in text.lower() or "<!--" in text:
        raise ValueError("a script that holds the end of its own element cannot be embedded")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy: these scripts and no others, and not one request to anywhere."""
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts]
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(hashes)}",
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _summary(runs: Sequence[FinishedRun]) -> dict[str, list[str]]:
    found = {
        "tasks": [run.task for run in runs],
        "models": [f"{run.model} ({run.weights})" for run in runs],
        "variants": [run.variant for run in runs],
        "revisions": [_revision(run) for run in runs],
    }
    return {name: list(dict.fromkeys(values)) for name, values in found.items()}


def _revision(run: FinishedRun) -> str:
    facts = run.environment.get("iclgd") or {}
    revision = str(facts.get("revision") or "unknown")[:10]
    return f"{revision} with uncommitted changes" if facts.get("dirty") else revision
