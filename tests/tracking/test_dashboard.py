"""The dashboard's specification: which panels it has, over what, for which runs; and how the command fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from iclgd.tracking import dashboard
from iclgd.tracking.session import UploadState
from report_fixtures import write_run


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    dashboard.cli([*arguments, "--dry-run"])
    return json.loads(capsys.readouterr().out)


def panels(spec: dict[str, Any], section: str) -> list[dict[str, Any]]:
    [found] = [s for s in spec["spec"]["section"]["panelBankConfig"]["sections"] if s["name"] == section]
    return found["panels"]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        dashboard.cli(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code, capsys.readouterr().err


def test_every_swept_key_is_an_axis_beside_the_headline_scores(capsys: pytest.CaptureFixture[str]) -> None:
    spec = dry_run(capsys, "--keys", "finetune.name,finetune.layers,task.shots,seed", "--metrics", "sim_aou,sim_am")
    [panel] = panels(spec, "Settings and scores")
    axes = [(column["accessor"], column.get("log", False)) for column in panel["config"]["columns"]]
    assert axes == [
        ("config:finetune.value.name", False),
        ("config:finetune.value.layers", False),
        ("config:task.value.shots", True),
        ("config:seed.value", False),
        ("summary:sim_aou", False),
    ]
    sections = spec["spec"]["section"]["panelBankConfig"]["sections"]
    names = ["Settings and scores", "By layer", "By task.shots", "By seed", "Training", "Runs"]
    assert [section["name"] for section in sections] == names
    [shots] = [panel["config"] for panel in panels(spec, "By task.shots")]
    assert (shots["xAxis"], shots["yAxis"], shots["xAxisLogScale"]) == (
        "config:task.value.shots",
        "summary:sim_aou",
        True,
    )
    columns = spec["spec"]["section"]["runSets"][0]["runFeed"]["columnOrder"]
    assert {"config:finetune.value.layers", "summary:sim_aou", "summary:sim_am"} <= set(columns)


def test_curves_by_layer_are_of_each_run(capsys: pytest.CaptureFixture[str]) -> None:
    made = [panel["config"] for panel in panels(dry_run(capsys, "--metrics", "sim_aou,alpha,rec2ftp"), "By layer")]
    assert [(config["metrics"], config["xAxis"]) for config in made] == [(["sim_aou"], "layer"), (["alpha"], "layer")]
    assert all(config["limit"] == 1000 and "groupBy" not in config for config in made)
    assert made[0]["chartTitle"] == "SimAOU"


def test_a_folder_gives_keys_and_colors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for variant in ("gd", "lcgd"):
        for seed in (0, 1):
            folder = write_run(tmp_path / "mine" / f"{variant}{seed}", variant=variant, seed=seed, examples=3, layers=2)
            config = yaml.safe_load((folder / "config.yaml").read_text())
            config["finetune"]["color"] = {"gd": "#0072B2", "lcgd": "#D55E00"}[variant]
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            (folder / "wandb").mkdir()
            UploadState(f"id-{variant}{seed}").write(folder)
    keys, colors = dashboard.from_folder(tmp_path / "mine")
    assert keys == ["finetune.name", "seed"]
    spec = dry_run(capsys, str(tmp_path / "mine"))
    assert spec["name"] == "iclgd: mine"
    blue, orange = "#0072B2", "#D55E00"
    assert colors == {"id-gd0": blue, "id-gd1": blue, "id-lcgd0": orange, "id-lcgd1": orange}
    assert spec["spec"]["section"]["customRunColors"] == colors


def test_unstable_runs_are_filtered_out(capsys: pytest.CaptureFixture[str]) -> None:
    [runs] = dry_run(capsys, "--sweep", "first_look")["spec"]["section"]["runSets"]
    rules = [(rule["key"]["name"], rule["op"], rule["value"]) for rule in runs["filters"]["filters"]]
    assert rules == [("group", "=", "first_look"), ("unstable", "!=", True), ("diverged", "!=", True)]
    [everything] = dry_run(capsys)["spec"]["section"]["runSets"]
    assert [rule["key"]["name"] for rule in everything["filters"]["filters"]] == ["unstable", "diverged"]


def test_a_report_has_the_panels_of_the_workspace(capsys: pytest.CaptureFixture[str]) -> None:
    spec, made = dry_run(capsys, "--sweep", "first_look"), dry_run(capsys, "--report", "--sweep", "first_look")
    blocks = made["spec"]["blocks"]
    headings = [block["children"][0]["text"] for block in blocks if block["type"] == "heading"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    assert headings == [section["name"] for section in spec["spec"]["section"]["panelBankConfig"]["sections"]]
    for heading, grid in zip(headings, grids, strict=True):
        shown = grid["panelBankSectionConfig"]["panels"]
        assert [panel["config"] for panel in shown] == [panel["config"] for panel in panels(spec, heading)]
    assert grids[0]["runSets"][0]["filters"]["filters"]


def test_the_specification_is_the_same_every_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(capsys) == dry_run(capsys)


def test_an_absent_metric_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = refusal(capsys, "--metrics", "absent")
    assert code == 2
    assert "there is no metric absent; choose from accuracy" in message


def test_a_metric_of_ones_own_is_named_by_its_path(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine: {function: mine.mine, label: My score}")
    [panel] = panels(dry_run(capsys, "--metrics", str(tmp_path / "mine.yaml")), "By layer")
    assert (panel["config"]["metrics"], panel["config"]["chartTitle"]) == (["mine"], "My score")


def test_a_dry_run_opens_no_connection(tmp_path: Path) -> None:
    code = """
import socket

def refuse(*arguments):
    raise AssertionError(f"a connection to {arguments[1:]}")

socket.socket.connect = refuse
from iclgd.tracking.dashboard import cli
cli(["--dry-run"])
"""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["project"] == "iclgd"
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, message = refusal(capsys, "--sweep", "a' or 'b\\", "--dry-run")
    assert code == 2
    assert "is not a sweep's name" in message


def test_the_package_is_optional(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    code, message = refusal(capsys, "--dry-run")
    assert code == 1
    assert "wandb-workspaces is not installed: pip install 'iclgd[dashboard]'" in message


def test_saving_sends_the_specification(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
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
    dashboard.cli(["--project", "mine"])
    assert capsys.readouterr().out == "https://app.example/me/mine?nw=abc\n"
    [view] = sent
    assert (view.entity, view.project, view.display_name) == ("me", "mine", "iclgd")


def test_a_failure_to_save_is_told_without_the_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise RuntimeError("the key 0123456789abcdef0123456789abcdef01234567 is unknown")

    monkeypatch.setattr("wandb.Api", refuse)
    code, message = refusal(capsys)
    assert code == 1
    assert "not saved: RuntimeError: the key *** is unknown; check `wandb login`" in message
