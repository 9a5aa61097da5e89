"""The dashboard's specification: which panels it has, over what, for which runs; and how the command fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from iclgd.tracking import dashboard
from iclgd.tracking.upload import UploadState
from report_fixtures import change, write_run

COLORS = {"gd": "#0072B2", "lcgd": "#D55E00"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over variants, rates, layers and shots."""
    root = tmp_path_factory.mktemp("sweeps") / "mine"
    for number, (variant, shots, lr) in enumerate([("gd", 4, 0.1), ("gd", 8, 0.1), ("lcgd", 4, 0.2), ("lcgd", 4, 0.3)]):
        finetune = {"color": COLORS[variant], "layers": "0" if number % 2 else "all"}
        run = write_run(
            root / f"{variant}{number}", variant=variant, shots=shots, lr=lr, finetune=finetune, examples=3, layers=2
        )
        UploadState(f"id-{number}").write(run)
    change(root / "gd1", "scores.json", sim_aou__layers=[0.1, None])
    return root


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        dashboard.cli(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code, capsys.readouterr().err


@pytest.fixture(scope="module")
def spec(folder: Path) -> dict[str, Any]:
    """What the command prints in a process of its own, which may open no connection."""
    code = """
import socket
import sys

def refuse(*arguments):
    raise AssertionError(f"a connection to {arguments[1:]}")

socket.socket.connect = refuse
from iclgd.tracking.dashboard import cli
cli([*sys.argv[1:], "--dry-run"])
"""
    command = [sys.executable, "-c", code, str(folder)]
    ended = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, "")
    return json.loads(ended.stdout)


def test_the_workspace_has_every_swept_key_beside_the_headline_scores(spec: dict[str, Any]) -> None:
    sections = {one["name"]: one for one in spec["workspace"]["section"]["panelBankConfig"]["sections"]}
    panel, *scatters = [one["config"] for one in sections["Settings and scores"]["panels"]]
    axes = [(column["accessor"].partition(":")[2], column.get("log", False)) for column in panel["columns"]]
    assert axes == [
        *(("finetune.value.name", False), ("task.value.shots", True), ("finetune.value.lr", True)),
        *(("finetune.value.layers", False), ("seed.value", False), ("sim_aou", False), ("sim_am_delta", False)),
    ]
    axes = [(plot["xAxis"], plot["yAxis"], plot["xAxisLogScale"]) for plot in scatters]
    scores, keys = ("sim_aou", "sim_am_delta"), ("finetune.value.lr", "task.value.shots")
    assert axes == [(f"config:{key}", f"summary:{score}", True) for key in keys for score in scores]
    curves = [one["config"] for one in sections["By layer"]["panels"]]
    assert {(curve["metrics"][0], curve["xAxis"]) for curve in curves} >= {("sim_aou", "layer"), ("sim_am", "layer")}
    [runs] = spec["workspace"]["section"]["runSets"]
    assert {"config:finetune.value.layers", "summary:accuracy/icl"} <= set(runs["runFeed"]["columnOrder"])
    rules = [(rule["key"]["name"], rule["op"], rule["value"]) for rule in runs["filters"]["filters"]]
    assert rules == [("group", "=", "mine"), ("unstable", "!=", True), ("diverged", "!=", True)]
    assert (spec["name"], spec["project"]) == ("iclgd: mine", "iclgd")


def grids(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [block["metadata"] for block in spec["report"]["blocks"] if block["type"] == "panel-grid"]


def test_the_report_has_variants_grouped_in_their_colors_and_what_iclgd_draws(spec: dict[str, Any]) -> None:
    headings = [b["children"][0]["text"] for b in spec["report"]["blocks"] if b["type"] == "heading"]
    assert headings == ["Findings", "Settings and scores", "Variants", "Drawn by iclgd"]
    notes = json.dumps([block for block in spec["report"]["blocks"] if block["type"] == "list"])
    assert "In these panels: Means of SimAOU are over layer 0 (1 of 2), layers 0-1 (2 of 2): " in notes
    runs, variants, sweep = grids(spec)
    [grouping] = variants["runSets"][0]["grouping"]
    assert (grouping["section"], grouping["name"]) == ("config", "finetune.value.name")
    by_group = {key.rpartition(":")[2]: color for key, color in variants["customRunColors"].items()}
    assert by_group == COLORS and set(runs["customRunColors"]) == {f"id-{number}" for number in range(4)}
    drawn = [panel["config"] for panel in sweep["panelBankSectionConfig"]["panels"]]
    keys = [key for config in drawn for key in config.get("mediaKeys", ())]
    assert {"figures/ladder/mechanisms", "figures/layers/sim_aou", "figures/rate_map/sim_aou"} <= set(keys)
    jobs = [[rule["op"] for rule in grid["runSets"][0]["filters"]["filters"] if rule["key"]["name"] == "jobType"]
            for grid in (runs, variants, sweep)]  # fmt: skip
    assert jobs == [["!="], ["!="], []]


def test_a_folder_without_runs_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, message = refusal(capsys, str(tmp_path))
    assert code == 2 and "no finished run in" in message


def test_the_package_is_optional(capsys, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.delitem(sys.modules, "iclgd.tracking.panels", raising=False)
    monkeypatch.delattr("iclgd.tracking.panels", raising=False)
    code, message = refusal(capsys, str(folder), "--dry-run")
    assert code == 1
    assert "wandb-workspaces is not installed: pip install 'iclgd[dashboard]'" in message


def test_saving_sends_the_specification(capsys, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    from wandb_workspaces.workspaces import interface, internal

    sent: list[Any] = []

    class Api:
        default_entity = "me"

    def upsert(view: Any) -> Any:
        sent.append(view)
        return {"upsertView": {"view": {"name": "nw-abc-v", "id": "1"}}}

    monkeypatch.setattr("wandb.Api", Api)
    monkeypatch.setattr("wandb.termlog", lambda message: None)
    monkeypatch.setattr(internal, "upsert_view2", upsert)
    monkeypatch.setattr(interface, "get_app_url", lambda api: "https://app.example")
    monkeypatch.setattr("wandb_workspaces.reports.v2.interface.Report.save", lambda report: sent.append(report))
    monkeypatch.setattr("wandb_workspaces.reports.v2.interface.Report.url", "https://app.example/report")
    dashboard.cli([str(folder), "--project", "likeness"])
    assert capsys.readouterr().out == "https://app.example/me/likeness?nw=abc\nhttps://app.example/report\n"
    view, report = sent
    assert (report.entity, report.project, report.title) == ("me", "likeness", "iclgd: mine")
    assert (view.entity, view.project, view.display_name) == ("me", "likeness", "iclgd: mine")


def test_a_failure_to_save_is_told_without_the_key(capsys, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def refuse() -> None:
        raise RuntimeError("the key 0123456789abcdef0123456789abcdef01234567 is unknown")

    monkeypatch.setattr("wandb.Api", refuse)
    code, message = refusal(capsys, str(folder))
    assert code == 1
    assert "not saved: RuntimeError: the key *** is unknown; check `wandb login`" in message
