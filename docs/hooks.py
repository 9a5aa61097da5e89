"""Pages that are made from the program: keys, scores, mechanisms and models (`make pages` writes them), and notebooks.

`python docs/hooks.py` writes the committed pages; tests/test_docs.py fails where one is older than the schema or conf/.
mkdocs calls `on_files` to add the notebooks to the site.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from mkdocs.structure.files import File
from omegaconf import OmegaConf

from iclgd.cli import keys
from iclgd.common import paths
from iclgd.config import FinetuneConfig, ScoreConfig
from iclgd.config.enumerations import Better

T = TypeVar("T")
DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "tools" / "families" / "results.json"  # written by make families
TABLE_STARTS, TABLE_ENDS = "<!-- table of scores, written by make pages -->", "<!-- end of the table -->"
BETTER = {Better.higher: "higher", Better.lower: "lower", Better.neither: "neither"}


def on_files(files: Any, config: Any) -> Any:
    """Add the notebooks as pages (an event of mkdocs)."""
    notebooks = sorted((Path(config.docs_dir) / "notebooks").glob("*.ipynb"))
    pages = {f"notebooks/{path.stem}.md": notebook(path) for path in notebooks}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def pages() -> dict[Path, str]:
    """The committed pages that are made from the program: path and text."""
    scores = (DOCS / "scores.md").read_text("utf-8")
    before, rest = scores.split(TABLE_STARTS, 1)
    after = rest.split(TABLE_ENDS, 1)[1]
    return {
        DOCS / "scores.md": f"{before}{TABLE_STARTS}\n\n{score_table()}\n\n{TABLE_ENDS}{after}",
        DOCS / "reference" / "keys.md": key_page(),
        DOCS / "reference" / "mechanisms.md": mechanism_page(),
        DOCS / "models.md": model_page(),
    }


def key_page() -> str:
    """Every key of the schema, a table for each group."""
    lines, group = ["# Every key", "", KEYS_OPEN], None
    for key in keys.keys():
        head, _, name = key.name.rpartition(".")
        if head != group:
            group = head
            lines += ["", f"## {f'`{group}`' if group else 'Top level'}", "", "| key | values | default | meaning |"]
            lines += ["|---|---|---|---|"]
        default = f"`{_cell(key.default)}`" if key.default else "none"
        lines += [f"| `{name}` | `{_cell(key.kind)}` | {default} | {_cell(key.comment)} |"]
    return "\n".join(lines) + "\n"


KEYS_OPEN = """\
Any key can be set on the command line, as `task.shots=4`. `iclgd --keys` prints this page as text, and
`iclgd --cfg job ...` prints the values that a command would use. The defaults below are those of the schema. Files in
`conf/` set others, such as `task=reviews`, and in `metric.scores.NAME` the word `NAME` stands for a score."""


def score_table() -> str:
    """Every score of conf/metric: its file, what it is called, its range and its meaning."""
    lines = ["| `metric=` | score | label | range | more alike | meaning |", "|---|---|---|---|---|---|"]
    for path in sorted((paths.config_folder() / "metric").glob("*.yaml")):
        text = path.read_text("utf-8")
        for name, fields in yaml.safe_load(text).items():
            score = _typed(ScoreConfig, fields)
            limits = "any" if score.limits is None else f"{score.limits[0]:g} to {score.limits[1]:g}"
            better = BETTER[Better(score.better)]
            said = [f"`{path.stem}`", f"`{name}`", _cell(score.label), limits, better, _cell(_head(text))]
            lines.append(f"| {' | '.join(said)} |")
    return "\n".join(lines)


def mechanism_page() -> str:
    """Every file of conf/finetune, a table for each role."""
    by_role: dict[str, list[tuple[int, str]]] = {}
    for path in (paths.config_folder() / "finetune").glob("*.yaml"):
        text = path.read_text("utf-8")
        options = _typed(FinetuneConfig, yaml.safe_load(text))
        row = [
            f"`{path.stem}`",
            _cell(options.label or path.stem),
            _seen(text, options),
            _with_links(_cell(_head(text))),
        ]
        by_role.setdefault(options.role, []).append((options.order, f"| {' | '.join(row)} |"))
    lines = ["# Mechanisms", "", MECHANISMS_OPEN]
    for role, meaning in ROLES.items():
        lines += ["", f"## {meaning[0]}", "", meaning[1], "", "| `finetune=` | label | sees | what it does |"]
        lines += ["|---|---|---|---|", *(row for _, row in sorted(by_role.pop(role, [])))]
    if by_role:
        raise ValueError(f"docs/hooks.py has no heading for the roles {', '.join(by_role)}")
    return "\n".join(lines) + "\n"


def _typed(schema: type[T], fields: dict[str, Any]) -> T:
    """Fields as the schema types them; what another group would fill in stays open."""
    return cast(T, OmegaConf.merge(OmegaConf.structured(schema), fields))


def _seen(text: str, options: FinetuneConfig) -> str:
    """What a mechanism sees, with the comment behind `sees` in its file."""
    comment = re.search(r"^sees: \w+ # (.*)$", text, re.MULTILINE)
    return SEES[options.sees] + (f" ({_cell(comment[1])})" if comment else "")


SEES = {
    "demonstrations": "demonstrations",
    "nothing": "nothing",
    "one_at_a_time": "demonstrations, one at a time",
    "calibration": "demonstrations, calibration rows",
    "queries": "**the measured queries**",
}
ROLES = {
    "variant": ("Variants", "The two ways of finetuning that the papers compare with ICL."),
    "mechanism": ("Mechanisms from the literature", "Other processes that have been proposed as what ICL might be."),
    "floor": ("Floors", "These cannot be like ICL. They say what a score gives for nothing."),
    "control": ("Controls", "These lack one thing that learning from the demonstrations needs."),
    "rival": ("Rivals", "These differ from a variant in one thing, and may explain a difference otherwise."),
    "anchor": ("Anchors", "These put out what ICL puts out by construction, but compute it in another way."),
    "ceiling": ("Ceilings", "These say how high a score can be."),
}
MECHANISMS_OPEN = """\
Each way to act like ICL without a context is one file of `conf/finetune`, chosen with `finetune=NAME`. Within a table,
rows stand in the order in which reports show them. *Sees* is what it may learn from. Calibration rows are rows of the
train split that are neither demonstrations nor measured, and their labels are not used. What sees the measured queries
is not a method but a ceiling.
[Your own mechanism](../guide/mechanism.md) says how they work, and when each is refused."""


def model_page() -> str:
    """Every causal language model of transformers: what works, and how far it is from the naive code."""
    results = json.loads(RESULTS.read_text("utf-8"))
    by_state: dict[str, list[dict[str, Any]]] = {}
    for result in results["families"].values():
        by_state.setdefault(result["state"], []).append(result)
    works, refused, absent = (by_state.pop(state, []) for state in ("works", "refused", "not built"))
    if by_state:
        raise ValueError(f"{RESULTS} has results that should be mended first: {', '.join(by_state)}")
    counts = {"count": len(works), "classes": len({result["architecture"] for result in works})}
    versions = f"transformers {results['transformers']} and torch {results['torch']}"
    lines = ["# Model families", "", MODELS_OPEN.format(**counts, versions=versions), ""]
    lines += ["| family | class | attention scores | patches | context is shared | largest difference |"]
    lines += ["|---|---|---|---|---|---|", *map(_model_row, works)]
    lines += ["", "## Refused", "", REFUSED_OPEN, "", "| family | reason |", "|---|---|"]
    lines += [f"| `{result['name']}` | {_cell(_reason(result['reason']))} |" for result in refused]
    lines += ["", "## Not tried", "", ABSENT_OPEN, "", ", ".join(f"`{result['name']}`" for result in absent) + "."]
    return "\n".join(lines) + "\n"


def _model_row(result: dict[str, Any]) -> str:
    layers, scored = result["layers"], result["layers_with_scores"]
    scores = "all layers" if scored == layers else f"{scored} of {layers} layers" if scored else "none"
    answers = ["yes" if result[key] else "no" for key in ("patches", "shared_prefix")]
    cells = [f"`{result['name']}`", f"`{result['architecture']}`", scores, *answers, f"{result['difference']:.0e}"]
    return f"| {' | '.join(cells)} |"


def _reason(text: str) -> str:
    """A refusal without its error's name, the temporary folder of the model, and what stands in all of them."""
    return re.sub(r"^\w+: |model\.name=\S+ |; it is not measured\. Choose another model.*", "", text)


MODELS_OPEN = """\
{count} families of causal language models ({classes} classes) work with {versions}. `make families` builds a tiny
random model of every family that transformers registers, with every kind of layer that its config has. It records the
model without and with context and after two steps of `gd` and `lcgd`, and compares every recorded tensor with a naive
implementation: one query at a time, the full context, transformers' eager attention. The last column is the largest
difference of any tensor in float32, relative to the largest value in its layer; more than 1e-5 would be an error.

- *Attention scores* are undefined (NaN) in layers without softmax attention, such as state-space layers. Scores of
  attention outputs, predictions and weights are there in every layer.
- *Patches* says whether `exact_patch` and `static_patch` have a form for the family.
- *Context is shared*: keys and values of the context are computed once for all queries. Elsewhere the context is read
  again for every query, which is slower."""
REFUSED_OPEN = """\
These load, but a record would be wrong or has no meaning. The model of a user is refused with the same words."""
ABSENT_OPEN = """\
No tiny model of these runs on tokens alone: they need other packages or other inputs, or stay large."""


def notebook(path: Path) -> str:
    """A notebook's cells as a page, with a link to the notebook itself."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    texts = list(_cells(cells))
    return "\n\n".join([texts[0], f"[Download this notebook]({path.name})", *texts[1:]]) + "\n"


def _cells(cells: list[dict[str, Any]]) -> Iterator[str]:
    for cell in cells:
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"


def _head(text: str) -> str:
    """The comment at the head of a yaml file, without Hydra's own line."""
    lines = re.match(r"(?:#.*\n)*", text)[0].splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if "@package" not in line)


def _with_links(text: str) -> str:
    """The text with links to the papers that it names."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "\\n")


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
