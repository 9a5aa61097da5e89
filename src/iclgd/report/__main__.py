"""The command `iclgd-report`: finished run folders in; tables, figures and one page out."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iclgd.shown import pipe_may_close

if TYPE_CHECKING:
    from iclgd.report.formats import Table
    from iclgd.report.results import Results

log = logging.getLogger("iclgd.report")


def cli(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all was written, 2 if there was nothing to write of or nowhere to write to."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("iclgd").setLevel(logging.INFO)
    from iclgd.report.reading import ReportError

    try:
        layout = {name: getattr(options, name) or () for name in ("rows", "columns", "scores")}
        lines = report(options.folder, options.out, options.export_records, options.where or (), **layout)
        with pipe_may_close():
            sys.stdout.write("".join(f"{line}\n" for line in lines))
    except ReportError as error:
        log.error("iclgd-report: %s", error)
        return 2
    except OSError as error:
        log.error("iclgd-report: cannot be written: %s; name another folder with --out or --export-records", error)
        return 2
    return 0


def report(
    folders: Sequence[Path],
    out: Path | None = None,
    records: Path | None = None,
    where: Sequence[str] = (),
    **layout: Sequence[str],
) -> list[Path | str]:
    """Write tables, figures and report.html of all finished runs in or below the folders.

    Args:
        folders: run folders, sweeps or folders of sweeps.
        out: the folder to write into; `report` inside the first folder where None.
        records: also write the recordings there, in the published code's format.
        where: only runs with these settings, each as key=value.
        **layout: rows, columns and scores of the first table, as `tables.summary` takes them.

    Returns:
        The files written, and last a paragraph on what these runs can tell apart.

    Raises:
        ReportError: a folder does not exist, no run in them is finished, or recordings to export are missing.
        OSError: nothing can be written there.
    """
    from iclgd.report import chart, page, tables
    from iclgd.report.export_records import export_records
    from iclgd.report.reading import ReportError
    from iclgd.report.results import Results
    from iclgd.runs.files import refuse_link_out
    from iclgd.shown import printable

    results = Results.read(folders)
    for folder, reason in results.left_out:
        log.warning("left out: %s %s", printable(str(folder), 400), printable(reason, 400))
    if not results.runs:
        named = ", ".join(str(folder) for folder in folders)
        raise ReportError(f"no finished run in {named}: there are {len(results.left_out)} others (see iclgd-status)")
    if where:
        results = results.where(dict(_condition(text) for text in where))
    written: list[Path | str] = []
    if records is not None:  # first, for it may have to refuse
        written += [path for run in results.runs for path in export_records(run, records)]
    made = tables.tables(results, **layout)
    if out is None:
        out = folders[0] / "report"
        refuse_link_out(folders[0], "report/report.html")
    refuse_link_out(out, "figures/one.png")
    title = ", ".join(dict.fromkeys(folder.resolve().name for folder in folders))
    figures = list(results.figures.values())
    written += [page.write_page(results, figures, made, title, out / "report.html")]
    written += chart.write(figures, out / "figures")
    written += _write(results, made, out)
    return written + [
        printable(note, 4000)
        for table in made
        if table.name.startswith(("comparisons", "notice_matrix"))
        for note in table.notes[-1:]
        if note
    ]


def _write(results: Results, made: Sequence[Table], out: Path) -> list[Path]:
    from iclgd.report import formats
    from iclgd.runs.files import replacing

    endings: dict[str, Callable[[Table], str]] = {
        "md": formats.to_markdown,
        "tex": formats.to_latex,
        "csv": formats.to_csv,
    }
    texts = {f"{table.name}.{ending}": write(table) for table in made for ending, write in endings.items()}
    texts["scores.csv"] = formats.frame_to_csv(results.frame)
    for name, text in texts.items():
        with replacing(out / name, sync=False) as part:
            part.write_text(text, encoding="utf-8", newline="")
    return [out / name for name in texts]


def _condition(text: str) -> tuple[str, str]:
    from iclgd.report.reading import ReportError

    key, equals, value = text.partition("=")
    if not equals:
        raise ReportError(f"--where {text} has no value: write it as key=value, such as finetune.lr=0.01")
    return key, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="iclgd-report",
        description="Tables, figures and one self-contained page from finished runs, with no network and no model.",
    )
    add = parser.add_argument
    add("folder", type=Path, nargs="+", help="a run folder, a sweep's folder or a folder of sweeps")
    add("--out", type=Path, help="where to write (default: report inside the first FOLDER)")
    add("--rows", nargs="+", metavar="KEY", help="what the summary's rows are, such as finetune.name task.shots")
    add("--columns", nargs="+", metavar="KEY", help="what its columns are, such as task.name score (default: score)")
    add("--scores", nargs="+", metavar="SCORE", help="which scores it shows, such as sim_aou accuracy/ft")
    add("--where", nargs="+", metavar="KEY=VALUE", help="only runs with these settings, such as finetune.lr=0.01")
    add(
        "--export-records",
        type=Path,
        metavar="DIR",
        help="also write recordings as the papers' code does, one record_info.jsonl for zs, icl, ftzs and ft each; "
        "the runs must have kept them (runtime.save_recordings=true)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(cli())
