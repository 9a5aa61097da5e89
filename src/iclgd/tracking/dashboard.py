"""The command `iclgd-dashboard` builds a W&B workspace, or a report, from the keys that a sweep varies.

`--dry-run` prints what would be sent.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iclgd.common import paths
from iclgd.config import TrackingConfig
from iclgd.results.frame import Results
from iclgd.results.reading import ReportError
from iclgd.tracking.session import UploadState, describe

_REMEDY = "wandb-workspaces is not installed: pip install 'iclgd[dashboard]'"
_MAX_RUNS = 1000  # W&B draws ten unless told otherwise
_KEYS = ("finetune.name", "finetune.lr", "finetune.layers", "task.shots", "seed")
_LOGARITHMIC = ("finetune.lr", "task.shots")
_NOT_NUMBERS = ("finetune.layers",)
_LEGEND = (
    "One curve or point is one run; unstable and diverged runs are left out. Intervals over draws, tests and held-out "
    "rates are in the page that iclgd-report makes."
)


@dataclass(frozen=True)
class Score:
    """A score as the dashboard shows it."""

    name: str
    label: str
    layerwise: bool
    headline: bool


@dataclass(frozen=True)
class Dashboard:
    """What a workspace or report shows.

    Attributes:
        keys: the swept keys.
        scores: the scores.
        colors: by id of a W&B run, the color of its variant in conf/finetune.
        sweep: the group of the runs; None for every run of the project.
    """

    keys: Sequence[str]
    scores: Sequence[Score]
    colors: Mapping[str, str] = field(default_factory=dict)
    sweep: str | None = None

    @property
    def title(self) -> str:
        """What the workspace or report is called."""
        return f"iclgd: {self.sweep}" if self.sweep else "iclgd"

    @property
    def headlines(self) -> list[Score]:
        """The headline scores, or all of them if none is one."""
        return [score for score in self.scores if score.headline] or list(self.scores)

    def columns(self) -> list[str]:
        """Columns of the table of runs."""
        keys = [f"config:{_config_path(key)}" for key in self.keys]
        return ["run:displayName", "run:state", *keys, *(f"summary:{score.name}" for score in self.scores)]

    def filters(self) -> Any:
        """Runs of the sweep that are neither unstable nor diverged; the sweep's own run is neither."""
        from wandb_workspaces import expr

        rules = [expr.Summary(name) != True for name in ("unstable", "diverged")]  # noqa: E712  builds a rule
        return expr.And(*([expr.Metric("Group") == self.sweep] if self.sweep else []), *rules)

    def sections(self) -> dict[str, list[Any]]:
        """The panels by the name of their section."""
        from wandb_workspaces.reports import v2 as wr
        from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn

        def line(title: str, y: str, x: str) -> Any:
            return wr.LinePlot(title=title, y=[y], x=x, title_x=x, max_runs_to_show=_MAX_RUNS)

        def column(key: str) -> Any:
            return ParallelCoordinatesPlotColumn(metric=wr.Config(key), display_name=key, log=key in _LOGARITHMIC)

        axes = [column(key) for key in self.keys]
        for score in self.headlines:
            axes.append(ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(score.name), display_name=score.label))
        sections: dict[str, list[Any]] = {
            "Settings and scores": [wr.ParallelCoordinatesPlot(title="settings and scores", columns=axes)],
            "By layer": [line(score.label, score.name, "layer") for score in self.scores if score.layerwise],
        }
        for key in self.keys:
            if key.endswith("name") or key in _NOT_NUMBERS:
                continue
            sections[f"By {key}"] = [
                wr.ScatterPlot(
                    title=f"{score.label} by {key}",
                    x=wr.Config(key),
                    y=wr.SummaryMetric(score.name),
                    log_x=key in _LOGARITHMIC,
                )
                for score in self.headlines
            ]
        sections["Training"] = [line("training loss", "training/loss", "training/step")]
        tables = [wr.WeavePanelSummaryTable(table_name=name) for name in ("sweep", "scores")]
        sections["Runs"] = [*tables, wr.RunComparer(diff_only="split")]
        return sections

    def workspace(self, entity: str, project: str) -> Any:
        """The W&B workspace; nothing is sent. `entity` may be empty until it is saved."""
        from wandb_workspaces import workspaces as ws

        sections = [
            ws.Section(name=name, panels=panels, is_open=name != "Runs") for name, panels in self.sections().items()
        ]
        runs = ws.RunsetSettings(
            filters=self.filters(),
            order=[ws.Ordering(ws.Metric("Group")), ws.Ordering(ws.Metric("JobType"))],
            pinned_columns=self.columns(),
            run_settings={name: ws.RunSettings(color=color) for name, color in self.colors.items()},
        )
        return ws.Workspace(
            entity=entity,
            project=project,
            name=self.title,
            sections=sections,
            settings=ws.WorkspaceSettings(max_runs=_MAX_RUNS),
            runset_settings=runs,
        )

    def report(self, entity: str, project: str) -> Any:
        """The same panels as a W&B report, which can be sent to others; nothing is sent."""
        from wandb_workspaces.reports import v2 as wr
        from wandb_workspaces.reports.v2.interface import Report, Runset

        blocks: list[Any] = [wr.P(_LEGEND), wr.TableOfContents()]
        for section, panels in self.sections().items():
            runs = Runset(name=self.sweep or "all runs", filters=self.filters(), pinned_columns=self.columns())
            blocks += [wr.H1(section), wr.PanelGrid(runsets=[runs], panels=panels)]
        return Report(entity=entity, project=project, title=self.title, blocks=blocks, width="fluid")


def _config_path(key: str) -> str:
    group, _, name = key.partition(".")
    return f"{group}.value.{name}" if name else f"{group}.value"


def from_folder(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The keys that the runs of a folder vary, seeds included, and each run's color by its W&B id.

    Raises:
        ReportError: there is no finished run.
    """
    results = Results.read([folder]).required([folder])
    keys = list(results.varied)
    if len({run.settings["seed"] for run in results.runs}) > 1:
        keys.append("seed")
    colors = {}
    for run in results.runs:
        variant = results.variants[run.settings["finetune.name"]]
        name = UploadState.read(run.folder, "").id
        if name and variant.color:
            colors[name] = variant.color
    return keys, colors


def default_metrics() -> list[str]:
    """The metrics that conf/config.yaml names."""
    import yaml

    config = yaml.safe_load((paths.config_folder() / "config.yaml").read_text(encoding="utf-8"))
    return next(item["metric"] for item in config["defaults"] if isinstance(item, Mapping) and "metric" in item)


def scores_of(metrics: Sequence[str]) -> list[Score]:
    """The scores of files of conf/metric, or of yaml files of one's own, named by their paths.

    Raises:
        ValueError: there is no such file.
    """
    import yaml

    scores = []
    for metric in metrics:
        path = Path(metric) if metric.endswith(".yaml") else paths.config_folder() / "metric" / f"{metric}.yaml"
        if not path.is_file():
            raise ValueError(
                f"there is no metric {metric}; choose from {', '.join(sorted(paths.config_files('metric')))}"
            )
        for name, config in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            layerwise = "layer" in config.get("axes", ["example", "layer"])
            scores.append(Score(name, config["label"], layerwise, config.get("headline", False)))
    return scores


def specification(view: Any) -> dict[str, Any]:
    """What would be sent for a workspace or a report, without the ids that are drawn anew each time."""
    model = view._to_model()
    spec = _without_ids(json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True)))
    return {"entity": view.entity, "project": view.project, "name": model.display_name, "spec": spec}


def _without_ids(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_ids(value) for key, value in content.items() if key not in ("__id__", "id")}
    return [_without_ids(value) for value in content] if isinstance(content, list) else content


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="iclgd-dashboard", description="Build a W&B workspace or report for iclgd's runs."
    )
    parser.add_argument("folder", nargs="?", type=Path, help="a sweep's runs: gives swept keys, and colors by variant")
    parser.add_argument("--entity", default="", help="W&B user or team (default: yours)")
    parser.add_argument("--project", default=TrackingConfig().project, help="default: %(default)s")
    parser.add_argument("--sweep", metavar="NAME", help="show one sweep's runs, such as first_look (default: FOLDER's)")
    parser.add_argument("--keys", metavar="KEY,...", help="the swept keys (default: those of FOLDER)")
    parser.add_argument(
        "--metrics", metavar="NAME,...", help="files of conf/metric, or paths (default: those of conf/config.yaml)"
    )
    parser.add_argument("--report", action="store_true", help="a report instead of a workspace")
    parser.add_argument("--dry-run", action="store_true", help="print the specification; needs no account, no network")
    return parser


def cli(arguments: Sequence[str] | None = None) -> None:
    """The command `iclgd-dashboard`."""
    paths.import_from_current_folder()
    parser = _parser()
    options = parser.parse_args(arguments)
    sweep = options.sweep or (options.folder.resolve().name if options.folder else None)
    if sweep is not None and not re.fullmatch(r"[\w .-]+", sweep):
        parser.error(f"--sweep={sweep!r} is not a sweep's name: give one such as first_look")
    try:
        keys, colors = from_folder(options.folder) if options.folder else (list(_KEYS), {})
        scores = scores_of(options.metrics.split(",") if options.metrics else default_metrics())
    except (ValueError, ReportError) as error:
        parser.error(str(error))
    dashboard = Dashboard(options.keys.split(",") if options.keys else keys, scores, colors, sweep)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of pydantic, about wandb-workspaces' own code
            build = dashboard.report if options.report else dashboard.workspace
            view = build(options.entity, options.project)
    except ImportError as error:
        parser.exit(1, f"iclgd-dashboard: {_REMEDY} ({error})\n")
    if options.dry_run:
        sys.stdout.write(json.dumps(specification(view), indent=2, ensure_ascii=False) + "\n")
        return
    try:
        sys.stdout.write(_save(view) + "\n")
    except Exception as error:
        remedy = "check `wandb login`, --entity and --project, or use --dry-run"
        parser.exit(1, f"iclgd-dashboard: not saved: {describe(error)}; {remedy}\n")


def _save(view: Any) -> str:
    import wandb

    if not view.entity:
        view.entity = wandb.Api().default_entity
    return view.save().url
