"""The end of a command: figures, W&B's summary of a sweep, and what is printed."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from iclgd.config import TrackingConfig
from iclgd.runs.execute import Ending, Outcome

if TYPE_CHECKING:
    from iclgd.report.chart import Figure

log = logging.getLogger(__name__)


def finish(config: DictConfig, outcomes: Sequence[Outcome], is_sweep: bool) -> None:
    """Draw the figures, and log a sweep's summary to W&B if a run of it was computed."""
    folders = list(dict.fromkeys(outcome.folder for outcome in outcomes if outcome.is_finished))
    drawn = figures(folders, is_sweep) if folders and config.runtime.figures else []
    if is_sweep and any(outcome.ending is Ending.done for outcome in outcomes):
        log_sweep(config.tracking, folders, drawn)


def figures(folders: Sequence[Path], is_sweep: bool) -> list[Figure]:
    """Draw the figures of finished runs where iclgd-report would put them; no run fails for a figure."""
    from iclgd.report import chart  # here, as below, because Altair, pandas and W&B take seconds
    from iclgd.report.figures import figures as figures_of
    from iclgd.results.frame import Results

    out = (folders[0].parent if is_sweep else folders[0]) / "report" / "figures"
    try:
        drawn = figures_of(Results.read(folders))
        chart.write([figure for figure in drawn if figure.headline], out)
    except Exception as error:
        log.warning("the figures could not be made: %s; iclgd-report FOLDER shows more", error)
        return []
    log.info("figures are in %s", out)
    return drawn


def log_sweep(tracking_config: DictConfig, folders: Sequence[Path], figures: Sequence[Figure]) -> None:
    """One summary run in W&B, as this command tracks its runs; tracking.log_sweep warns and never raises."""
    from iclgd import tracking

    try:
        settings = cast(TrackingConfig, OmegaConf.to_object(OmegaConf.merge(TrackingConfig, tracking_config)))
    except OmegaConfBaseException as error:  # swept over, so that the sweep has no single way
        log.warning("the sweep's summary is not tracked: %s", str(error).splitlines()[0])
        return
    tracking.log_sweep(settings, folders[0].parent.name, folders, figures)


def show(outcomes: Sequence[Outcome], total: int | None) -> None:
    """Print the tables, what was done, and what was not, of `total` runs if that is known."""
    finished = list(dict.fromkeys(outcome.folder for outcome in outcomes if outcome.is_finished))
    if finished:
        _show_tables(finished, len(outcomes) > 1)
    counts: dict[str, int] = {ending: sum(o.ending is ending for o in outcomes) for ending in Ending}
    counts["not started"] = max(0, (total or 0) - len(outcomes))
    words = ", ".join(f"{count} {ending}" for ending, count in counts.items() if count)
    sys.stdout.write(f"{words} in {os.path.relpath(outcomes[0].folder.parent)}\n")
    for outcome in outcomes:
        if not outcome.is_finished:
            again = "the same command runs it again" if outcome.ending is Ending.interrupted else ""
            message = "; ".join(filter(None, [outcome.message, again]))
            sys.stderr.write(f"{outcome.ending} {os.path.relpath(outcome.folder)}: {message}\n")


def _show_tables(folders: list[Path], is_sweep: bool) -> None:
    from rich.console import Console

    from iclgd.report import console

    try:
        table = console.table(folders)
    except Exception as error:
        log.warning("the table could not be made: %s; iclgd-report FOLDER shows more", error)
        return
    Console().print(table, crop=False)
    shown = os.path.relpath(folders[0].parent if is_sweep else folders[0])
    sys.stdout.write(f"all scores, figures and a page: iclgd-report {shown}\n")
