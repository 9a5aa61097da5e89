"""Writes the pictures of README and docs, and the numbers that they quote, from runs (`make figures`).

The sweeps of the gallery are run in outputs/ where they are not finished, which takes minutes; with `--long` those of
SmolLM2-135M too, which takes hours. Pictures and numbers of sweeps that are not there stay as they are.
docs/pictures.json says which code each picture comes from, and tests/report/test_pictures.py which are older than the
code.

A quoted number stands between two comments, the first of which names sweep, mechanism and score:
`<!-- ladder gd recovered -->.15 [.13, .17]<!-- -->`; with `mean` behind the score, without its interval; a setting such
as `task.shots=4` behind it takes some of the runs. A quoted table has a row for each mechanism and a column for each of
the scores, whose means stand in one cell where `+` joins them:
`<!-- table ladder sim_aou recovered+accuracy/ft -->`. Of several sweeps, joined by commas, each has these columns.
"""

from __future__ import annotations

import argparse
import ast
import base64
import functools
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import vl_convert

import chromium
from iclgd.common.digests import digest_of_text
from iclgd.report.chart import Figure
from iclgd.report.figures import figures
from iclgd.results.frame import Results, overall
from iclgd.results.planted_truths import ICL, TRUTH
from iclgd.results.rates import summary_at_chosen_rates
from iclgd.results.reading import ReportError
from wandb_panels import panels

ROOT = Path(__file__).resolve().parents[1]
DOCS, PICTURES = ROOT / "docs", ROOT / "docs" / "pictures.json"
QUOTED = re.compile(r"<!-- (\w+) (\w+) ([\w/]+)( mean)?( [\w.]+=\S+)? -->.*?<!-- -->", re.DOTALL)
TABLE = re.compile(r"<!-- table ([\w,]+) ([\w/+ ]+) -->\n.*?<!-- -->", re.DOTALL)
_TOY = "model=toy task=toy"
_PLANTED = "'reference.name=${finetune.name}' reference.permutation=1"
LONG = {
    "ladder": ["sweeps=mechanisms", f"sweeps=mechanisms {_PLANTED}"],
    "ladder_first_of_five": ["sweeps=mechanisms task=first_of_five"],
    "rates": [
        "-m task=capitals task.queries=40 metric=[sim_aou,recovered,accuracy] finetune=gd,lcgd "
        "finetune.lr=1e-3,2e-3,5e-3,1e-2,2e-2 seed=0,1,2,3,4"
    ],
    "properties": ["sweeps=properties"],
    "properties_toy": [f"sweeps=properties {_TOY} seed=0,1,2,3,4"],
    "shots": ["sweeps=shots task=first_of_five"],
    "shots_animals": ["sweeps=shots task=animal_of_five"],
    "twins": ["sweeps=twins"],
}
SWEEPS = {  # the commands of each
    "gallery_ladder": [f"sweeps=mechanisms {_TOY}", f"sweeps=mechanisms {_TOY} {_PLANTED}"],
    "gallery": [
        f"-m {_TOY} finetune=gd,lcgd,random_direction seed=0,1,2 task.shots=8 finetune.lr=0.01,0.03,0.1,0.3",
        f"-m {_TOY} finetune=gd,lcgd,random_direction seed=0,1,2 task.shots=2,4 finetune.lr=0.03",
    ],
    "plane": ["sweeps=plane"],
    "first_look": ["sweeps=first_look"],
    "would_it_notice": [
        f"sweeps=would_it_notice {_TOY} finetune.other_task=toy_other task.rates={{gd:0.3,lcgd:0.3}}",
    ],
}


@dataclass(frozen=True)
class Picture:
    """A picture of docs/: the figure it shows, of the runs of a sweep with some settings."""

    sweep: str
    figure: str
    where: tuple[str, ...] = ()

    def draw(self, outputs: Path) -> Figure:
        """The figure as `iclgd-report --figures` draws it."""
        if self.figure == "wandb":
            return panels(outputs / self.sweep, "sim_aou", "SimAOU")
        conditions = dict(text.split("=") for text in self.where)
        results = Results.read([outputs / self.sweep]).where(conditions)
        figure = next((one for one in figures(results) if one.name == self.figure), None)
        if figure is None:
            raise ReportError(f"the runs of {self.sweep} have no figure {self.figure}")
        return figure


DRAWN = {
    "ladder.png": Picture("ladder", "ladder/mechanisms"),
    "planted_truths.png": Picture("would_it_notice", "planted_truths/sim_aou"),
    "report.png": Picture("ladder", "page"),
    "guide/wandb.svg": Picture("gallery", "wandb"),
    "gallery/ladder": Picture("gallery_ladder", "ladder/mechanisms"),
    "gallery/layers_map": Picture("gallery_ladder", "layers/sim_aou"),
    "gallery/layers": Picture("gallery", "layers/sim_aou", ("task.shots=8", "finetune.lr=0.03")),
    "gallery/rates": Picture("gallery", "along.finetune.lr/sim_aou", ("task.shots=8",)),
    "gallery/shots": Picture("gallery", "along.task.shots/sim_aou", ("finetune.lr=0.03",)),
    "gallery/plane": Picture("plane", "plane", ("task.name=plane_linear", "seed=0")),
    "gallery/rate_map": Picture("gallery", "rate_map/sim_aou", ("task.shots=8",)),
}


def drawing_code() -> str:
    """One digest of the code that summarises and draws; comments and layout of its Python files do not count."""
    rooms = [ROOT / "src" / "iclgd" / name for name in ("report", "results", "statistics")]
    files = [path for room in rooms for path in room.glob("*.*")] + [ROOT / "tools" / "wandb_panels.py"]
    texts = {path: path.read_text("utf-8") for path in sorted(files)}
    code = (ast.dump(ast.parse(text)) if path.suffix == ".py" else text for path, text in texts.items())
    return digest_of_text(*(f"{path.name} {text}" for path, text in zip(texts, code, strict=True)))


def older_than_the_code() -> list[str]:
    """The pictures that other code than this one drew, that were never recorded, or whose runs are of no revision."""
    recorded, code, older = json.loads(PICTURES.read_text("utf-8")), drawing_code(), []
    for name in DRAWN:
        picture = recorded.get(name, {})
        if "None" in picture.get("runs_of", ""):
            older.append(f"{name} (its runs are of no known revision)")
        elif picture.get("drawn_by") != code:
            older.append(name)
    return older


def save(figure: Figure, name: str) -> None:
    """Write a figure under docs/: as the name's ending says, or without one as SVG and PDF."""
    if name.endswith(".png"):  # half of the resolution of figures for papers, a third of the bytes
        (DOCS / name).write_bytes(vl_convert.vegalite_to_png(figure.specification, ppi=150))
    else:
        for ending in [""] if "." in name else [".svg", ".pdf"]:
            figure.save(DOCS / f"{name}{ending}")


def photograph(sweep: Path, path: Path) -> None:
    """The head of a sweep's report page as a browser shows it."""
    subprocess.run([sys.executable, "-m", "iclgd.report", str(sweep), "--out", str(sweep / "report")], check=True)
    with chromium.browser() as tab:
        tab.send("Emulation.setDeviceMetricsOverride", width=1400, height=1000, deviceScaleFactor=1, mobile=False)
        tab.open(sweep / "report" / "report.html", "document.documentElement?.dataset.drawn === 'true'")
        clip = {"x": 0, "y": 0, "width": 1400, "height": 1960, "scale": 0.55}
        shot = tab.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
    path.write_bytes(base64.b64decode(shot["data"]))


def write_picture(name: str, picture: Picture, outputs: Path) -> dict[str, str]:
    """Write a picture, in the gallery also as a PDF for papers, and return what is recorded of it."""
    if picture.figure == "page":
        photograph(outputs / picture.sweep, DOCS / name)
    else:
        save(picture.draw(outputs), name)
    runs = Results.read([outputs / picture.sweep])
    revisions = sorted({str((run.environment.get("iclgd") or {}).get("revision")) for run in runs})
    about = f"{len(runs)} runs of {', '.join(revisions)}"
    return {"sweep": picture.sweep, "figure": picture.figure, "runs_of": about, "drawn_by": drawing_code()}


def means(results: Results) -> pd.DataFrame:
    """Means over draws and layers, without runs in which another mechanism plays ICL's part."""
    rows = overall(summary_at_chosen_rates(results))
    return rows[rows[TRUTH] == ICL] if TRUTH in rows else rows


def short(value: float, digits: int = 3) -> str:
    """A number without the zero before its point; a dash where it is undefined."""
    return "\N{EN DASH}" if math.isnan(value) else re.sub(r"^(-?)0\.", r"\1.", f"{value:z.{digits}f}")


def quoted(results: Results, mechanism: str, score: str, mean_only: bool) -> str | None:
    """A mean over draws as texts quote it, `.15 [.13, .17]`; None where the sweep is not so far."""
    rows = means(results)
    rows = rows[(rows["finetune.name"] == mechanism) & (rows["score"] == score)].to_dict("records")
    if not rows:
        return None
    [row] = rows
    mean, low, high = (short(row[name]) for name in ("mean", "low", "high"))
    return mean if mean_only or row["unit"] != "draws" else f"{mean} [{low}, {high}]"


def table(sweeps: Sequence[Results], columns: Sequence[str]) -> str:
    """A Markdown table of means over draws: a row for each mechanism, each of the columns for each sweep.

    Where draws of a mechanism are left out as unstable or diverged, their number stands behind its mean.
    """
    heads = ["mechanism", "sees"]
    cells = {name: [variant.sees.replace("_", " ")] for name, variant in sweeps[0].variants.items()}
    for results in sweeps:
        task = f"{results[0].settings['task.name']}: " if len(sweeps) > 1 else ""
        rows = means(results).set_index(["finetune.name", "score"])
        for column in columns:
            scores = column.split("+")
            heads.append(task + ", ".join(results.scores[score].label for score in scores))
            for name in cells:
                of_name = [rows.loc[(name, score)] for score in scores]
                left_out = max(int(row["unstable"] + row["diverged"]) for row in of_name)
                note = f" ({left_out} left out)" if left_out else ""
                cells[name].append(", ".join(short(row["mean"], 2) for row in of_name) + note)
    lines = [heads, ["---"] * len(heads), *([sweeps[0].labels[name], *row] for name, row in cells.items())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_numbers(text: str, outputs: Path) -> str:
    """A text with the quoted numbers and tables of those sweeps that are there."""

    @functools.cache
    def read(sweep: str) -> Results | None:
        return Results.read([outputs / sweep]) if (outputs / sweep).is_dir() else None

    def number(match: re.Match[str]) -> str:
        sweep, mechanism, score, mean, setting = match.groups("")
        results = read(sweep)
        if results is None:
            return match[0]
        if setting:
            results = results.where(dict([setting.strip().split("=")]))
        value = quoted(results, mechanism, score, bool(mean))
        return f"<!-- {sweep} {mechanism} {score}{mean}{setting} -->{value}<!-- -->" if value else match[0]

    def whole_table(match: re.Match[str]) -> str:
        names, columns = match.groups()
        sweeps = [results for name in names.split(",") if (results := read(name)) is not None]
        if len(sweeps) < len(names.split(",")):
            return match[0]
        return f"<!-- table {names} {columns} -->\n{table(sweeps, columns.split())}<!-- -->"

    return TABLE.sub(whole_table, QUOTED.sub(number, text))


def main() -> None:
    """Run what is missing, then write pictures, their record and numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs", help="where the sweeps are")
    parser.add_argument("--long", action="store_true", help="also run what takes hours")
    parser.add_argument("--keep", action="store_true", help="run nothing")
    options = parser.parse_args()
    sweeps = {} if options.keep else SWEEPS | (LONG if options.long else {})
    for sweep, commands in sweeps.items():
        for command in commands:
            arguments = [*shlex.split(command), f"sweep_name={sweep}", f"paths.outputs={options.outputs}"]
            subprocess.run([sys.executable, "-m", "iclgd", *arguments], check=True)
    record = json.loads(PICTURES.read_text("utf-8")) if PICTURES.exists() else {}
    for name, picture in DRAWN.items():
        if not (options.outputs / picture.sweep).is_dir():
            sys.stdout.write(f"docs/{name} stays as it is: there are no runs of {picture.sweep}\n")
            continue
        try:
            record[name] = write_picture(name, picture, options.outputs)
            sys.stdout.write(f"docs/{name}\n")
        except ReportError as error:
            sys.stdout.write(f"docs/{name} stays as it is: {error}\n")
    PICTURES.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]:
        page.write_text(with_numbers(page.read_text("utf-8"), options.outputs), "utf-8")


if __name__ == "__main__":
    main()
