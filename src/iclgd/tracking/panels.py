"""The W&B workspace and the W&B report of a sweep, built from its runs; nothing is sent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wandb_workspaces import expr
from wandb_workspaces import workspaces as ws
from wandb_workspaces.reports import v2 as wr
from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn as Column
from wandb_workspaces.reports.v2.interface import Report, Runset, RunsetGroup, RunsetGroupKey

from iclgd.report.chart import colors
from iclgd.report.figures import figures
from iclgd.report.marks import LOGARITHMIC, axis_title
from iclgd.results.averages import Layers
from iclgd.results.findings import findings
from iclgd.results.frame import Results
from iclgd.results.remarks import layer_notes
from iclgd.tracking.upload import UploadState

_MAX_RUNS = 1000  # W&B draws ten unless told otherwise
_VARIANTS = "variants"  # the name of the set of runs that is grouped by variant


def workspace(results: Results, sweep: str, entity: str, project: str) -> ws.Workspace:
    """The W&B workspace of a sweep's runs, which are the group `sweep`."""
    paths = [key.partition(".") for key in _keys(results)]
    columns = ["run:displayName", "run:state", *(f"config:{group}.value{dot}{name}" for group, dot, name in paths)]
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


def report(results: Results, sweep: str, entity: str, project: str) -> Report:
    """The W&B report of a sweep: its findings, each run's settings and scores, variants compared, and the ladder."""
    # Runsets name no project: with one, W&B is asked for its number before anything is sent.
    runs = Runset(name="runs", filters=_runs_of(sweep, with_own=False))
    grouped = Runset(name=_VARIANTS, filters=_runs_of(sweep, with_own=False), groupby=["config.finetune.name"])
    whole = Runset(name="the sweep", filters=_runs_of(sweep, sane=False))
    variant = wr.Config("finetune.name")
    group_colors: dict[Any, Any] = {
        RunsetGroup(_VARIANTS, (RunsetGroupKey(variant, name),)): color for name, color in _colors(results).items()
    }
    run_colors: dict[Any, Any] = {**_run_colors(results)}
    bars = [
        wr.BarPlot(title=results.scores[name].label, metrics=[wr.SummaryMetric(name)], max_bars_to_show=100)
        for name in results.headline
    ]
    # The layers that means in W&B are over are each run's own, so that another sweep changes none.
    notes = [f"In these panels: {note}" for note in layer_notes(replace(results, layers=Layers.all))]
    of_runs, of_variants = _settings_and_scores(results), [*bars, *_by_layer(results)]
    content = {
        "Findings": wr.UnorderedList([*(findings(results) or ["none from these runs"]), *notes]),
        "Settings and scores": wr.PanelGrid(runsets=[runs], panels=of_runs, custom_run_colors=run_colors),
        "Variants": wr.PanelGrid(runsets=[grouped], panels=of_variants, custom_run_colors=group_colors),
        "Drawn by iclgd": wr.PanelGrid(runsets=[whole], panels=[*_drawings(results), *_tables()]),
    }
    blocks = [block for title, block_content in content.items() for block in (wr.H2(title), block_content)]
    return Report(project=project, entity=entity, title=f"iclgd: {sweep}"[:128], blocks=blocks, width="fluid")


def _runs_of(sweep: str, sane: bool = True, with_own: bool = True) -> Any:
    """Runs of the group, if `sane` those not marked as unstable or diverged, and the sweep's own run if `with_own`."""
    rules = [expr.Metric("Group") == sweep]
    rules += [expr.Summary(name) != True for name in ("unstable", "diverged") if sane]  # noqa: E712  builds a rule
    return expr.And(*rules, *([] if with_own else [expr.Metric("JobType") != "sweep"]))


def _settings_and_scores(results: Results) -> list[Any]:
    """Parallel coordinates over every swept key, and each headline score over rates and shots that were swept."""
    labels = {name: results.scores[name].label for name in results.headline}
    axes = [Column(metric=wr.Config(key), display_name=key, log=key in LOGARITHMIC) for key in _keys(results)]
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
    return wr.LinePlot(title=title, y=[y], x=x, title_x=x, max_runs_to_show=_MAX_RUNS)


def _drawings(results: Results) -> list[Any]:
    """The report's own ladder, curves and maps, which the sweep's run holds with `runtime.figures=true`."""
    keys: dict[str, list[str]] = {}
    for figure in figures(results):
        if figure.headline:
            keys.setdefault(figure.title, []).append(f"figures/{figure.name}")
    return [wr.MediaBrowser(title=title, media_keys=names) for title, names in keys.items()]


def _tables() -> list[Any]:
    return [wr.WeavePanelSummaryTable(table_name=name) for name in ("sweep", "scores")]


def _colors(results: Results) -> dict[str, str]:
    """The color of each variant in the report's figures."""
    by_label = colors(results.variants)
    return {name: by_label[label] for name, label in results.labels.items()}


def _run_colors(results: Results) -> dict[str, str]:
    """The same by id of a W&B run, of those that have one."""
    by_name = _colors(results)
    ids = {UploadState.read(run.folder).id: run.settings["finetune.name"] for run in results.runs}
    return {run_id: by_name[name] for run_id, name in ids.items() if run_id}


def _keys(results: Results) -> list[str]:
    return [*results.varied, "seed"]
