"""The command `iclgd-report`: finished run folders in; tables, figures and one page out."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from iclgd.common.paths import import_from_current_folder
from iclgd.common.printable import pipe_may_close, printable

log = logging.getLogger("iclgd.report")

_LISTS = {  # arguments of several values, each with what its values are called
    "rows": ("KEY", "rows of the summary, such as finetune.name task.shots"),
    "columns": ("KEY", "columns of the summary, such as task.name score (default: score)"),
    "scores": ("SCORE", "scores in the summary, such as sim_aou accuracy/ft"),
    "figures": ("FIGURE", "write nothing but these figures, such as ladder/mechanisms layers/sim_aou"),
    "where": ("KEY=VALUE", "only runs with these settings, such as finetune.lr=0.01"),
}


def cli(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all was written, 2 if there is nothing to report or it cannot be written."""
    import_from_current_folder()
    options = vars(_parser().parse_args(arguments))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("iclgd").setLevel(logging.INFO)
    from iclgd.results.reading import ReportError  # here, as in `report`, so that --help is quick

    try:
        lines = report(**options)
        with pipe_may_close():
            sys.stdout.write("".join(f"{line}\n" for line in lines))
        return 0
    except ReportError as error:
        log.error("iclgd-report: %s", error)
    except OSError as error:
        log.error("iclgd-report: cannot be written: %s; name another folder with --out or --export-records", error)
    return 2


def report(
    folders: Sequence[Path],
    out: Path | None = None,
    export_records: Path | None = None,
    where: Sequence[str] = (),
    figures: Sequence[str] = (),
    layers: str = "common",
    **layout: Sequence[str],
) -> list[Path | str]:
    """Write tables, figures and report.html of all finished runs in or below the folders.

    Args:
        folders: run folders, sweeps or folders of sweeps.
        out: the folder to write into; `report` inside the first folder where None.
        export_records: also write the recordings there, in the published code's format.
        where: only runs with these settings, each as key=value.
        figures: write these figures, and nothing else.
        layers: what means are over: the layers in which every setting has a value (common), those that each run trained
            (trained), or all.
        **layout: rows, columns and scores of the first table, as `tables.summary` takes them.

    Returns:
        The files written, and last a paragraph on what these runs can tell apart.

    Raises:
        ReportError: a folder does not exist, no run in them is finished, recordings to export are missing, or these
            runs have no such figure.
    """
    from iclgd.report import chart, formats, page, tables
    from iclgd.report import export_records as records
    from iclgd.report.figures import figures as figures_of
    from iclgd.results.averages import Layers
    from iclgd.results.findings import findings
    from iclgd.results.frame import Results
    from iclgd.results.reading import ReportError
    from iclgd.runs.files import write_text

    results = Results.read(folders, Layers(layers))
    for folder, reason in results.left_out:
        log.warning("left out: %s %s", printable(str(folder), 400), printable(reason, 400))
    conditions = [text.partition("=") for text in where]
    if not all(equals for _, equals, _ in conditions):
        raise ReportError(f"--where {' '.join(where)}: write each as key=value, such as finetune.lr=0.01")
    results = results.required(folders).where({key: value for key, _, value in conditions})
    out = out or folders[0] / "report"
    if figures:
        by_name = {figure.name: figure for figure in figures_of(results)}
        if unknown := [name for name in figures if name not in by_name]:
            raise ReportError(f"no figure {', '.join(unknown)}: these runs have {', '.join(by_name)}")
        return [*chart.write([by_name[name] for name in figures], out)]
    # Recordings go first, for they may be missing.
    written = [path for run in results if export_records for path in records.export_records(run, export_records)]
    all_tables, all_figures = tables.tables(results, **layout), figures_of(results)
    sentences = [*findings(results), *tables.conclusions(all_tables)]
    title = ", ".join(dict.fromkeys(folder.resolve().name for folder in folders))
    texts = {"report.html": page.render(results, all_figures, all_tables, title, sentences)}
    for table in all_tables:
        texts[f"{table.name}.md"] = formats.to_markdown(table)
        texts[f"{table.name}.tex"] = formats.to_latex(table)
        texts[f"{table.name}.csv"] = formats.to_csv(table.records)
    texts["scores.csv"] = formats.to_csv(results.frame)
    written += [write_text(out / name, text) for name, text in texts.items()]
    written += chart.write([figure for figure in all_figures if figure.headline], out / "figures")
    return [*written, *(printable(sentence, 4000) for sentence in sentences)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="iclgd-report",
        description="Tables, figures and one self-contained page from finished runs, with no network and no model.",
    )
    add = parser.add_argument
    add("folders", metavar="folder", type=Path, nargs="+", help="a run folder, a sweep's folder or a folder of sweeps")
    add("--out", type=Path, help="where to write (default: report inside the first FOLDER)")
    for name, (metavar, what) in _LISTS.items():
        add(f"--{name}", nargs="+", metavar=metavar, default=(), help=what)
    about = "layers that means are over: those where every setting has a value, those trained, or all (default: common)"
    add("--layers", choices=("common", "trained", "all"), default="common", help=about)
    add("--export-records", type=Path, metavar="DIR", help="also write recordings in the format of the papers' code")
    return parser


if __name__ == "__main__":
    sys.exit(cli())
