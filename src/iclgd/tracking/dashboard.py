"""The command `iclgd-dashboard` builds a W&B workspace, or a report, for many runs: curves by layer, rate and shots.

Both are code, so that they can be read, tested and made again; `--dry-run` prints what would be sent.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iclgd.common import paths
from iclgd.config import TrackingConfig
from iclgd.tracking.session import describe, within

_REMEDY = "wandb-workspaces is not installed: pip install 'iclgd[dashboard]'"
_SAVING_SECONDS = 60.0
_MOST_RUNS = 1000  # W&B draws ten unless told otherwise, and would average only those
_LEGEND = (
    "Lines and bars are means over the runs of one finetuning variant, bands their standard error: over learning "
    "rates, shots and draws alike, unless the run sets are filtered. Intervals over draws, tests and held-out rates "
    "are in the page that iclgd-report makes."
)
_GROUPED: dict[str, Any] = {"groupby": "JobType", "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
_GROUPED["max_runs_to_show"] = _MOST_RUNS
_COLUMNS = (
    "run:displayName",
    "run:state",
    "run:jobType",
    "config:task.value.name",
    "config:model.value.name",
    "config:finetune.value.lr",
    "config:task.value.shots",
    "config:seed.value",
)


@dataclass(frozen=True)
class Measured:
    """A score as the dashboard shows it."""

    name: str
    label: str
    layerwise: bool


def default_metrics() -> list[str]:
    """The metrics that conf/config.yaml names."""
    import yaml

    config = yaml.safe_load((paths.config_folder() / "config.yaml").read_text(encoding="utf-8"))
    return next(entry["metric"] for entry in config["defaults"] if isinstance(entry, Mapping) and "metric" in entry)


def measured(metrics: Sequence[str]) -> list[Measured]:
    """The scores of files of conf/metric, or of yaml files of one's own, named by their paths.

    Raises:
        ValueError: there is no such file.
    """
    import yaml

    scores = []
    for metric in metrics:
        path = Path(metric) if metric.endswith(".yaml") else paths.config_folder() / "metric" / f"{metric}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(paths.config_files("metric")))
            raise ValueError(f"there is no metric {metric}; known here: {known}")
        for name, score in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            scores.append(Measured(name, score["label"], "layer" in score.get("axes", ["example", "layer"])))
    return scores


def workspace(entity: str, project: str, sweep: str | None, scores: Sequence[Measured]) -> Any:
    """The W&B workspace; nothing is sent.

    `entity` may be empty as long as it is not saved; without a sweep all runs of the project are shown.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pydantic, about the package's own code
        from wandb_workspaces import expr
        from wandb_workspaces import workspaces as ws

    group = ws.Metric("Group")
    return ws.Workspace(
        entity=entity,
        project=project,
        name=_title(sweep),
        sections=[
            ws.Section(name=name, panels=panels, is_open=name != "Runs") for name, panels in _sections(scores).items()
        ],
        settings=ws.WorkspaceSettings(max_runs=_MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(group == sweep) if sweep else "",
            order=[ws.Ordering(group), ws.Ordering(ws.Metric("JobType"))],
            pinned_columns=_columns(scores),
        ),
    )


def report(entity: str, project: str, sweep: str | None, scores: Sequence[Measured]) -> Any:
    """The same panels as a W&B report, which can be sent to others and written into; nothing is sent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from wandb_workspaces import expr
        from wandb_workspaces.reports import v2 as wr
        from wandb_workspaces.reports.v2.interface import Report, Runset

    chosen, name = expr.And(expr.Metric("Group") == sweep) if sweep else "", sweep or "all runs"
    blocks: list[Any] = [wr.P(_LEGEND), wr.TableOfContents()]
    for section, panels in _sections(scores).items():
        runs = Runset(name=name, filters=chosen, pinned_columns=_columns(scores))  # without entity: the report's own
        blocks += [wr.H1(section), wr.PanelGrid(runsets=[runs], panels=panels)]
    return Report(entity=entity, project=project, title=_title(sweep), blocks=blocks, width="fluid")


def _title(sweep: str | None) -> str:
    return f"iclgd: {sweep}" if sweep else "iclgd"


def _sections(scores: Sequence[Measured]) -> dict[str, list[Any]]:
    """The panels by the name of their section."""
    from wandb_workspaces.reports import v2 as wr

    accuracies, others = _apart(scores)

    def scatter(key: str, name: str, log: bool) -> list[Any]:
        pairs = [(f"{score.label} by {name}", wr.SummaryMetric(score.name)) for score in others + accuracies]
        return [wr.ScatterPlot(title=title, x=wr.Config(key), y=y, log_x=log) for title, y in pairs]

    def line(title: str, y: str, x: str, title_x: str) -> Any:
        return wr.LinePlot(title=title, y=[y], x=x, title_x=title_x, **_GROUPED)

    bars: dict[str, Any] = {"orientation": "v", "range_x": (0, 1), **_GROUPED}
    tables = [wr.WeavePanelSummaryTable(table_name=name) for name in ("sweep", "scores")]
    return {
        "By layer": [line(score.label, score.name, "layer", "layer") for score in others if score.layerwise],
        "By learning rate": scatter("finetune.lr", "learning rate", True),
        "By shots": scatter("task.shots", "shots", False),
        "Accuracies": [wr.BarPlot(title=s.label, metrics=[wr.SummaryMetric(s.name)], **bars) for s in accuracies],
        "Training": [line("training loss", "training/loss", "training/step", "step")],
        "Runs": [*tables, wr.RunComparer(diff_only="split")],
    }


def _apart(scores: Sequence[Measured]) -> tuple[list[Measured], list[Measured]]:
    """Accuracies, and the other scores."""
    accuracies = [score for score in scores if score.name.startswith("accuracy/")]
    return accuracies, [score for score in scores if score not in accuracies]


def _columns(scores: Sequence[Measured]) -> list[str]:
    accuracies, others = _apart(scores)
    return [*_COLUMNS, *(f"summary:{score.name}" for score in accuracies + others)]


def specification(made: Any) -> dict[str, Any]:
    """What would be sent for a workspace or a report, without the ids that are drawn anew each time."""
    view = made._to_model()
    spec = _without_ids(json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True)))
    return {"entity": made.entity, "project": made.project, "name": view.display_name, "spec": spec}


def _without_ids(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_ids(value) for key, value in content.items() if key not in ("__id__", "id")}
    return [_without_ids(value) for value in content] if isinstance(content, list) else content


def cli(arguments: Sequence[str] | None = None) -> None:
    """The command `iclgd-dashboard`."""
    paths.import_from_current_folder()
    parser = argparse.ArgumentParser(
        prog="iclgd-dashboard", description="Build a W&B workspace or report for iclgd's runs."
    )
    parser.add_argument("--entity", help="W&B user or team (default: yours)")
    parser.add_argument("--project", default=TrackingConfig().project, help="default: %(default)s")
    parser.add_argument("--sweep", metavar="NAME", help="show the runs of one sweep, such as first_look")
    parser.add_argument(
        "--metrics", metavar="NAME,...", help="files of conf/metric, or paths (default: those of conf/config.yaml)"
    )
    parser.add_argument("--report", action="store_true", help="a report instead of a workspace")
    parser.add_argument("--dry-run", action="store_true", help="print the specification; needs no account, no network")
    chosen = parser.parse_args(arguments)
    if chosen.sweep is not None and not re.fullmatch(r"[\w .-]+", chosen.sweep):
        parser.error(f"--sweep={chosen.sweep!r} is not a sweep's name: give one such as first_look")
    try:
        scores = measured(chosen.metrics.split(",") if chosen.metrics else default_metrics())
    except ValueError as error:
        parser.error(str(error))
    try:
        build = report if chosen.report else workspace
        made = build(chosen.entity or "", chosen.project, chosen.sweep, scores)
    except ImportError as error:
        parser.exit(1, f"iclgd-dashboard: {_REMEDY} ({error})\n")
    if chosen.dry_run:
        sys.stdout.write(json.dumps(specification(made), indent=2, ensure_ascii=False) + "\n")
        return
    try:
        sys.stdout.write(within(_SAVING_SECONDS, lambda: _save(made)) + "\n")
    except Exception as error:
        remedy = "check `wandb login`, --entity and --project, or use --dry-run"
        what = "report" if chosen.report else "workspace"
        parser.exit(1, f"iclgd-dashboard: the {what} was not saved: {describe(error)}; {remedy}\n")


def _save(made: Any) -> str:
    import wandb

    if not made.entity:
        made.entity = wandb.Api().default_entity
    return made.save().url
