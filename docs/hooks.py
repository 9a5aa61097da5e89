"""Pages of the site that are made from the program: keys, scores, variants, and the notebooks as text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File

from iclgd.cli import keys
from iclgd.common import paths
from iclgd.config import FinetuneConfig, ScoreConfig
from iclgd.config.enumerations import Better

BETTER = {Better.higher: "higher", Better.lower: "lower", Better.neither: "neither"}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that have no file in docs/ (an event of mkdocs)."""
    notebooks = sorted((Path(config.docs_dir) / "notebooks").glob("*.ipynb"))
    pages = {f"notebooks/{path.stem}.md": notebook(path) for path in notebooks}
    pages |= {"reference/keys.md": key_page(), "reference/variants.md": variant_page()}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the table of scores in where a page asks for it (an event of mkdocs)."""
    return markdown.replace("<!-- table of scores -->", score_table())


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
            score = ScoreConfig(**fields)
            limits = "any" if score.limits is None else f"{score.limits[0]:g} to {score.limits[1]:g}"
            better = BETTER[Better(score.better)]
            said = [f"`{path.stem}`", f"`{name}`", _cell(score.label), limits, better, _cell(_head(text))]
            lines.append(f"| {' | '.join(said)} |")
    return "\n".join(lines)


def variant_page() -> str:
    """Every file of conf/finetune."""
    lines = ["# Variants", "", VARIANTS_OPEN, "", "| `finetune=` | label | role | meaning |", "|---|---|---|---|"]
    variants = []
    for path in (paths.config_folder() / "finetune").glob("*.yaml"):
        text = path.read_text("utf-8")
        variants.append((FinetuneConfig(**yaml.safe_load(text)), path.stem, _head(text)))
    for variant, name, meaning in sorted(variants, key=lambda entry: (entry[0].order, entry[1])):
        lines.append(f"| `{name}` | {_cell(variant.label or name)} | {variant.role} | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


VARIANTS_OPEN = """\
Each variant is one file of `conf/finetune`, in the order in which tables show them. Floors and ceilings say how low and
how high a score can be. Controls and rivals differ from a variant in one thing. [Your own variant](../guide/variant.md)
needs one file."""


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


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "\\n")
