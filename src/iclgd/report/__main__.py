"""The command `iclgd-report`: finished run folders in; tables, figures and one page out."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iclgd.report.finished_run import FinishedRun
    from iclgd.report.formats import Table
    from iclgd.report.runs_frame import Runs

log = logging.getLogger("iclgd.report")


def cli(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all was written, 2 if there was nothing to write of."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("iclgd").setLevel(logging.INFO)
    from iclgd.report.finished_run import ReportError

    try:
        written = report(options.folder, options.out, options.export_records)
    except ReportError as error:
        log.error("iclgd-report: %s", error)
        return 2
    for path in written:
        sys.stdout.write(f"{path}\n")
    return 0


def report(folders: Sequence[Path], out: Path | None = None, records: Path | None = None) -> list[Path]:
    """Write tables, figures and report.html of all finished runs in or below the folders.

    Args:
        folders: run folders, sweeps or folders of sweeps.
        out: the folder to write into; `report` inside the first folder where None.
        records: also write the recordings there, in the published code's format.

    Returns:
        The files written.

    Raises:
        ReportError: a folder does not exist, no run in them is finished, or recordings to export are missing.
    """
    from iclgd.report.export_records import export_records
    from iclgd.report.finished_run import ReportError
    from iclgd.report.runs_frame import read_runs
    from iclgd.shown import printable

    found = read_runs(folders)
    for folder, reason in found.left_out:
        log.warning("left out: %s %s", folder, printable(reason, 400))
    if not found.finished:
        where = ", ".join(str(folder) for folder in folders)
        raise ReportError(f"no finished run in {where}: there are {len(found.left_out)} others (see iclgd-status)")
    written = []
    if records is not None:  # first, for it may have to refuse
        written += [path for run in found.finished for path in export_records(run, records)]
    out = folders[0] / "report" if out is None else out
    title = ", ".join(dict.fromkeys(folder.resolve().name for folder in folders))
    return written + _tables_and_page(found, title, out) + _figures(found.finished, out / "figures")


def _tables_and_page(found: Runs, title: str, out: Path) -> list[Path]:
    from iclgd.report import controls, formats, tables
    from iclgd.report.page import write_page
    from iclgd.report.runs_frame import frame
    from iclgd.runs.files import replacing

    makers = (tables.table1, tables.table2, tables.table3, controls.controls, controls.why_lcgd)
    made = [table for make in makers if (table := make(found.finished)) is not None]
    written = [write_page(found.finished, found.left_out, made, title, out / "report.html")]
    endings: dict[str, Callable[[Table], str]] = {
        "md": formats.to_markdown,
        "tex": formats.to_latex,
        "csv": formats.to_csv,
    }
    texts = {f"{table.name}.{ending}": write(table) for table in made for ending, write in endings.items()}
    texts["scores.csv"] = formats.frame_to_csv(frame(found.finished))
    for name, text in texts.items():
        written.append(out / name)
        with replacing(written[-1], sync=False) as part:
            part.write_text(text, encoding="utf-8", newline="")
    return written


def _figures(runs: Sequence[FinishedRun], out: Path) -> list[Path]:
    from iclgd.report import control_figures, paper_figures, style, sweep_figures

    draw = (
        paper_figures.draw_alpha,
        paper_figures.draw_by_layer,
        paper_figures.draw_gradient_norms,
        sweep_figures.draw_axes,
        sweep_figures.draw_layer_map,
        control_figures.draw_why_lcgd,
    )
    with style.print_style():
        return [path for figure in draw for path in figure(runs, out)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="iclgd-report",
        description="Tables, figures and one self-contained page from finished runs, with no network and no model.",
    )
    parser.add_argument("folder", type=Path, nargs="+", help="a run folder, a sweep's folder or a folder of sweeps")
    parser.add_argument("--out", type=Path, help="where to write (default: report inside the first FOLDER)")
    parser.add_argument(
        "--export-records",
        type=Path,
        metavar="DIR",
        help="also write recordings as the papers' code does, one record_info.jsonl for zs, icl, ftzs and ft each; "
        "the runs must have kept them (runtime.save_recordings=true)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(cli())
