"""The command `iclgd-dashboard` builds a W&B workspace for the runs of a folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iclgd.common import paths
from iclgd.config import TrackingConfig
from iclgd.results.frame import Results
from iclgd.results.reading import ReportError
from iclgd.tracking.upload import UploadState, describe

_MAX_RUNS = 1000  # W&B draws ten unless told otherwise
_LOGARITHMIC = ("finetune.lr", "task.shots")


def workspace(results: Results, sweep: str, entity: str, project: str) -> Any:
    """The W&B workspace of a sweep's runs, which are the group `sweep`; nothing is sent."""
    from wandb_workspaces import expr
    from wandb_workspaces import workspaces as ws

    keys = [*results.varied, "seed"]
    filters = [expr.Metric("Group") == sweep]
    filters += [expr.Summary(name) != True for name in ("unstable", "diverged")]  # noqa: E712  builds a rule
    columns = ["run:displayName", "run:state", *(f"config:{_config_path(key)}" for key in keys)]
    runs = ws.RunsetSettings(
        filters=expr.And(*filters),
        pinned_columns=[*columns, *(f"summary:{name}" for name in results.scores)],
        run_settings=_colors(results),
    )
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"iclgd: {sweep}",
        sections=[
            ws.Section(name=name, panels=panels, is_open=True) for name, panels in _panels(results, keys).items()
        ],
        settings=ws.WorkspaceSettings(max_runs=_MAX_RUNS),
        runset_settings=runs,
    )


def _panels(results: Results, keys: Sequence[str]) -> dict[str, list[Any]]:
    """The panels by the name of their section."""
    from wandb_workspaces.reports import v2 as wr
    from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn as Column

    def line(title: str, y: str, x: str) -> Any:
        return wr.LinePlot(title=title, y=[y], x=x, title_x=x, max_runs_to_show=_MAX_RUNS)

    labels = {name: score.label for name, score in results.scores.items()}
    axes = [Column(metric=wr.Config(key), display_name=key, log=key in _LOGARITHMIC) for key in keys]
    axes += [Column(metric=wr.SummaryMetric(name), display_name=labels[name]) for name in results.headline]
    layered = [name for name in labels if any(run.scores.get(name, {}).get("layers") for run in results.runs)]
    return {
        "Settings and scores": [wr.ParallelCoordinatesPlot(title="settings and scores", columns=axes)],
        "By layer": [line(labels[name], name, "layer") for name in layered],
        "Training": [line("training loss", "training/loss", "training/step")],
        "Runs": [wr.WeavePanelSummaryTable(table_name="sweep"), wr.WeavePanelSummaryTable(table_name="scores")],
    }


def _colors(results: Results) -> dict[str, Any]:
    """By id of a W&B run the color of its variant in conf/finetune, of those that have both."""
    from wandb_workspaces.workspaces import RunSettings

    variants = {UploadState.read(run.folder).id: run.settings["finetune.name"] for run in results.runs}
    colors = {run_id: results.variants[variant].color for run_id, variant in variants.items() if run_id}
    return {run_id: RunSettings(color=color) for run_id, color in colors.items() if color}


def _config_path(key: str) -> str:
    group, _, name = key.partition(".")
    return f"{group}.value.{name}" if name else f"{group}.value"


def cli(arguments: Sequence[str] | None = None) -> None:
    """The command `iclgd-dashboard`."""
    paths.import_from_current_folder()
    parser = argparse.ArgumentParser(prog="iclgd-dashboard", description="Build a W&B workspace for a sweep's runs.")
    parser.add_argument("folder", type=Path, help="of the runs: gives swept keys, scores and colors")
    parser.add_argument("--entity", default="", help="W&B user or team (default: yours)")
    parser.add_argument("--project", default=TrackingConfig().project, help="default: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="print the specification; needs no account, no network")
    options = parser.parse_args(arguments)
    try:
        results = Results.read([options.folder]).required([options.folder])
    except ReportError as error:
        parser.error(str(error))
    try:
        view = workspace(results, options.folder.resolve().name, options.entity, options.project)
    except ImportError as error:
        remedy = "wandb-workspaces is not installed: pip install 'iclgd[dashboard]'"
        parser.exit(1, f"iclgd-dashboard: {remedy} ({error})\n")
    if options.dry_run:
        spec = view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)  # there is no public way
        content = {"entity": view.entity, "project": view.project, "name": view.name, "spec": json.loads(spec)}
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return
    try:
        import wandb

        view.entity = view.entity or wandb.Api().default_entity
        sys.stdout.write(view.save().url + "\n")
    except Exception as error:
        remedy = "check `wandb login`, --entity and --project, or use --dry-run"
        parser.exit(1, f"iclgd-dashboard: not saved: {describe(error)}; {remedy}\n")
