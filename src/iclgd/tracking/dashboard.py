"""The command `iclgd-dashboard` builds a W&B workspace and a W&B report for the runs of a folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iclgd.common import paths
from iclgd.common.printable import pipe_may_close
from iclgd.config import TrackingConfig
from iclgd.results.frame import Results
from iclgd.results.reading import ReportError
from iclgd.tracking.upload import describe


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
    try:
        from iclgd.tracking import panels  # here, for wandb-workspaces need not be installed
    except ImportError as error:
        remedy = "wandb-workspaces is not installed: pip install 'iclgd[dashboard]'"
        parser.exit(1, f"iclgd-dashboard: {remedy} ({error})\n")
    about = (results, options.folder.resolve().name, options.entity, options.project)
    views: list[Any] = [panels.workspace(*about), panels.report(*about)]
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
