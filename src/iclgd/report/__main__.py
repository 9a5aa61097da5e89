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


def cli(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all was written, 2 if there is nothing to report or it cannot be written."""
    import_from_current_folder()
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("iclgd").setLevel(logging.INFO)
    from iclgd.results.reading import ReportError  # here, as in `write`, so that --help is quick
    from iclgd.runs.files import DamagedRun

    try:
        lines = write(options)
        with pipe_may_close():
            sys.stdout.write("".join(f"{line}\n" for line in lines))
        return 0
    except (ReportError, DamagedRun) as error:
        log.error("iclgd-report: %s", error)
    except OSError as error:
        log.error("iclgd-report: cannot be written: %s; name another folder with --out or --export-records", error)
    return 2


def write(options: argparse.Namespace) -> list[Path | str]:
    """Write what the options ask for; returns the files, and then sentences on what these runs can tell apart.

    Raises:
        ReportError: a folder does not exist, no run in them is finished or has these settings, recordings to export are
            missing, or a figure is unknown.
    """
    from iclgd.report import chart, formats, page, tables
    from iclgd.report import export_records as records
    from iclgd.report.figures import figures
    from iclgd.results.averages import Layers
    from iclgd.results.findings import findings
    from iclgd.results.frame import Results
    from iclgd.results.reading import ReportError
    from iclgd.runs.files import write_text

    results = Results.read(options.folders, Layers(options.layers))
    for folder, reason in results.left_out:
        log.warning("left out: %s %s", printable(str(folder), 400), printable(reason, 400))
    conditions = [text.partition("=") for text in options.where]
    if not all(equals for _, equals, _ in conditions):
        raise ReportError(f"--where {' '.join(options.where)}: write each as key=value, such as finetune.lr=0.01")
    results = results.required(options.folders).where({key: value for key, _, value in conditions})
    out = options.out or options.folders[0] / "report"
    drawn = {figure.name: figure for figure in figures(results)}
    if unknown := [name for name in options.figures if name not in drawn]:
        raise ReportError(f"no figure {', '.join(unknown)}: these runs have {', '.join(drawn)}")
    if options.figures:
        return [*chart.write([drawn[name] for name in options.figures], out)]
    # Recordings go first, for they may be missing.
    folder = options.export_records
    written: list[Path] = [path for run in results if folder for path in records.export_records(run, folder)]
    all_tables = tables.tables(results, options.rows, options.columns, options.scores)
    sentences = [*tables.conclusions(all_tables), *findings(results)]  # the shortest one last
    title = ", ".join(dict.fromkeys(folder.resolve().name for folder in options.folders))
    texts = {"report.html": page.render(results, list(drawn.values()), all_tables, title, sentences[::-1])}
    for table in all_tables:
        texts[f"{table.name}.md"] = formats.to_markdown(table)
        texts[f"{table.name}.tex"] = formats.to_latex(table)
        texts[f"{table.name}.csv"] = formats.to_csv(table.records)
    texts["scores.csv"] = formats.to_csv(results.frame)
    written += [write_text(out / name, text) for name, text in texts.items()]
    written += chart.write([figure for figure in drawn.values() if figure.headline], out / "figures")
    return [*written, *(printable(sentence, 4000) for sentence in sentences)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="iclgd-report",
        description="Tables, figures and one self-contained page from finished runs, with no network and no model.",
    )
    add, several = parser.add_argument, {"nargs": "+", "default": ()}
    add("folders", metavar="folder", type=Path, nargs="+", help="a run folder, a sweep's folder or a folder of sweeps")
    add("--out", type=Path, help="where to write (default: report inside the first FOLDER)")
    add("--rows", metavar="KEY", help="rows of the summary, such as finetune.name task.shots", **several)
    add("--columns", metavar="KEY", help="its columns, such as task.name score (default: score)", **several)
    add("--scores", metavar="SCORE", help="its scores, such as sim_aou accuracy/ft", **several)
    about = "write nothing but these figures, such as ladder/mechanisms layers/sim_aou"
    add("--figures", metavar="FIGURE", help=about, **several)
    add("--where", metavar="KEY=VALUE", help="only runs with these settings, such as finetune.lr=0.01", **several)
    about = "layers that means are over: those where every setting has a value, those trained, or all (default: common)"
    add("--layers", choices=("common", "trained", "all"), default="common", help=about)
    add("--export-records", type=Path, metavar="DIR", help="also write recordings in the format of the papers' code")
    return parser


if __name__ == "__main__":
    sys.exit(cli())
