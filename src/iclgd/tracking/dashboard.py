"""The command `iclgd-dashboard` builds a W&B workspace and a W&B report for the runs of a folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from iclgd.common import paths
from iclgd.common.printable import pipe_may_close
from iclgd.config import TrackingConfig
from iclgd.results.averages import Layers
from iclgd.results.findings import findings
from iclgd.results.frame import Results
from iclgd.results.reading import ReportError
from iclgd.results.remarks import layer_notes
from iclgd.tracking.upload import UploadState, describe

_MAX_RUNS = 1000  # W&B draws ten unless told otherwise
_VARIANTS = "variants"  # the name of the set of runs that is grouped by variant


def workspace(results: Results, sweep: str, entity: str, project: str) -> Any:
    """The W&B workspace of a sweep's runs, which are the group `sweep`; nothing is sent."""
    from wandb_workspaces import workspaces as ws

    keys = [*results.varied, "seed"]
    columns = ["run:displayName", "run:state", *(f"config:{_config_path(key)}" for key in keys)]
    runs = ws.RunsetSettings(
        filters=_runs_of(sweep),
        pinned_columns=[*columns, *(f"summary:{name}" for name in results.scores)],
        run_settings={run: ws.RunSettings(color=color) for run, color in _run_colors(results).items()},
    )
    sections = {
        "Settings and scores": _settings_and_scores(results),
        "By layer": _by_layer(results),
        "Training": [_line("training loss", "training/loss", "training/step")],
        "Drawn by iclgd": _drawings(results),
        "Runs": _tables(),
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"iclgd: {sweep}",
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        settings=ws.WorkspaceSettings(max_runs=_MAX_RUNS),
        runset_settings=runs,
    )


def report(results: Results, sweep: str, entity: str, project: str) -> Any:
    """The W&B report of a sweep: its findings, each run's settings and scores, variants compared, and the ladder."""
    from wandb_workspaces.reports import v2 as wr
    from wandb_workspaces.reports.v2.interface import Report, Runset, RunsetGroup, RunsetGroupKey

    # Runsets name no project: with one, W&B is asked for its number before anything is sent.
    runs = Runset(name="runs", filters=_runs_of(sweep, with_own=False))
    grouped = Runset(name=_VARIANTS, filters=_runs_of(sweep, with_own=False), groupby=["config.finetune.name"])
    variant = wr.Config("finetune.name")
    group_colors: dict[Any, Any] = {
        RunsetGroup(_VARIANTS, (RunsetGroupKey(variant, name),)): color for name, color in _colors(results).items()
    }
    bars = [
        wr.BarPlot(title=results.scores[name].label, metrics=[wr.SummaryMetric(name)], max_bars_to_show=100)
        for name in results.headline
    ]
    run_colors: dict[Any, Any] = {**_run_colors(results)}
    grids = {
        "Findings": wr.UnorderedList([*_sentences(results)]),
        "Settings and scores": wr.PanelGrid(
            runsets=[runs], panels=_settings_and_scores(results), custom_run_colors=run_colors
        ),
        "Variants": wr.PanelGrid(
            runsets=[grouped], panels=[*bars, *_by_layer(results)], custom_run_colors=group_colors
        ),
        "Drawn by iclgd": wr.PanelGrid(
            runsets=[Runset(name="the sweep", filters=_runs_of(sweep, sane=False))],
            panels=[*_drawings(results), *_tables()],
        ),
    }
    blocks = [block for title, content in grids.items() for block in (wr.H2(title), content)]
    return Report(project=project, entity=entity, title=f"iclgd: {sweep}"[:128], blocks=blocks, width="fluid")


def _sentences(results: Results) -> list[str]:
    """The findings, and the layers that means in W&B are over: each run's own, so that another sweep changes none."""
    notes = layer_notes(replace(results, layers=Layers.all))
    return [*(findings(results) or ["none from these runs"]), *(f"In these panels: {note}" for note in notes)]


def _runs_of(sweep: str, sane: bool = True, with_own: bool = True) -> Any:
    """Runs of the group, if `sane` those not marked as unstable or diverged, and the sweep's own run if `with_own`."""
    from wandb_workspaces import expr

    rules = [expr.Metric("Group") == sweep]
    rules += [expr.Summary(name) != True for name in ("unstable", "diverged") if sane]  # noqa: E712  builds a rule
    return expr.And(*rules, *([] if with_own else [expr.Metric("JobType") != "sweep"]))


def _settings_and_scores(results: Results) -> list[Any]:
    """Parallel coordinates over every swept key, and each headline score over rates and shots that were swept."""
    from wandb_workspaces.reports import v2 as wr
    from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn as Column

    from iclgd.report.marks import LOGARITHMIC, axis_title  # here, for Altair takes a second

    labels = {name: results.scores[name].label for name in results.headline}
    keys = [*results.varied, "seed"]
    axes = [Column(metric=wr.Config(key), display_name=key, log=key in LOGARITHMIC) for key in keys]
    axes += [Column(metric=wr.SummaryMetric(name), display_name=label) for name, label in labels.items()]
    panels: list[Any] = [wr.ParallelCoordinatesPlot(title="settings and scores", columns=axes)]
    for key in (key for key in LOGARITHMIC if key in results.varied):
        for name, label in labels.items():
            title, y = f"{label} by {axis_title(results, key)}", wr.SummaryMetric(name)
            panels.append(wr.ScatterPlot(title=title, x=wr.Config(key), y=y, log_x=True))
    return panels


def _by_layer(results: Results) -> list[Any]:
    layered = [name for name in results.scores if any(run.scores.get(name, {}).get("layers") for run in results.runs)]
    return [_line(results.scores[name].label, name, "layer") for name in layered]


def _line(title: str, y: str, x: str) -> Any:
    from wandb_workspaces.reports import v2 as wr

    return wr.LinePlot(title=title, y=[y], x=x, title_x=x, max_runs_to_show=_MAX_RUNS)


def _drawings(results: Results) -> list[Any]:
    """The report's own ladder, curves and maps, which the sweep's run holds with `runtime.figures=true`."""
    from wandb_workspaces.reports import v2 as wr

    from iclgd.report.figures import figures  # here, for Altair takes a second

    keys: dict[str, list[str]] = {}
    for figure in figures(results):
        if figure.headline:
            keys.setdefault(figure.title, []).append(f"figures/{figure.name}")
    return [wr.MediaBrowser(title=title, media_keys=names) for title, names in keys.items()]


def _tables() -> list[Any]:
    from wandb_workspaces.reports import v2 as wr

    return [wr.WeavePanelSummaryTable(table_name=name) for name in ("sweep", "scores")]


def _colors(results: Results) -> dict[str, str]:
    """The color of each variant in the report's figures."""
    from iclgd.report.chart import colors  # here, for Altair takes a second

    by_label = colors(results.variants)
    return {name: by_label[label] for name, label in results.labels.items()}


def _run_colors(results: Results) -> dict[str, str]:
    """The same by id of a W&B run, of those that have one."""
    colors = _colors(results)
    ids = {UploadState.read(run.folder).id: run.settings["finetune.name"] for run in results.runs}
    return {run_id: colors[name] for run_id, name in ids.items() if run_id}


def _config_path(key: str) -> str:
    group, dot, name = key.partition(".")
    return f"{group}.value{dot}{name}"


def cli(arguments: Sequence[str] | None = None) -> None:
    """The command `iclgd-dashboard`."""
    paths.import_from_current_folder()
    parser = argparse.ArgumentParser(prog="iclgd-dashboard", description="Build a W&B workspace and report of a sweep.")
    parser.add_argument("folder", type=Path, help="of the runs: gives swept keys, scores and colors")
    parser.add_argument("--entity", default="", help="W&B user or team (default: yours)")
    parser.add_argument("--project", default=TrackingConfig().project, help="default: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="print the specifications; needs no account, no network")
    options = parser.parse_args(arguments)
    try:
        results = Results.read([options.folder]).required([options.folder])
    except ReportError as error:
        parser.error(str(error))
    about = (results, options.folder.resolve().name, options.entity, options.project)
    try:
        views = workspace(*about), report(*about)
    except ImportError as error:
        remedy = "wandb-workspaces is not installed: pip install 'iclgd[dashboard]'"
        parser.exit(1, f"iclgd-dashboard: {remedy} ({error})\n")
    if options.dry_run:
        # There is no public way to the specification.
        specs = [json.loads(view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)) for view in views]
        first = views[0]
        content = {"entity": first.entity, "project": first.project, "name": first.name}
        content |= {"workspace": specs[0], "report": specs[1]}
        with pipe_may_close():
            sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return
    try:
        import wandb

        for view in views:
            view.entity = view.entity or wandb.Api().default_entity
            view.save()
            sys.stdout.write(f"{view.url}\n")
    except Exception as error:
        remedy = "check `wandb login`, --entity and --project, or use --dry-run"
        parser.exit(1, f"iclgd-dashboard: not saved: {describe(error)}; {remedy}\n")
