"""The dashboard's specification: which panels it has, over what, for which runs; and how the command fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from iclgd.tracking import dashboard

LAYERWISE = ["sim_aou", "sim_aou_norm", "sim_aou_random", "sim_am", "sim_am_zsl", "sim_am_delta", "gradient_norm"]
ACCURACIES = ["accuracy/zsl", "accuracy/icl", "accuracy/ft"]
MEASURED = [*LAYERWISE[:-1], "rec2ftp", "gradient_norm"]


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


def test_sections(capsys: pytest.CaptureFixture[str]) -> None:
    spec = dry_run(capsys, "--entity", "lab", "--sweep", "first_look")
    assert (spec["entity"], spec["project"], spec["name"]) == ("lab", "iclgd", "iclgd: first_look")
    sections = spec["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [
        "By layer",
        "By learning rate",
        "By shots",
        "Accuracies",
        "Training",
        "Runs",
    ]


def test_curves_over_layer_by_job_type(capsys: pytest.CaptureFixture[str]) -> None:
    made = [panel["config"] for panel in panels(dry_run(capsys), "By layer")]
    assert [config["metrics"] for config in made] == [[name] for name in LAYERWISE]
    assert {config["xAxis"] for config in made} == {"layer"}
    assert {(c["groupBy"], c["groupAgg"], c["groupArea"], c["limit"]) for c in made} == {
        ("jobType", "mean", "stderr", 1000)
    }
    assert made[0]["chartTitle"] == "SimAOU"


@pytest.mark.parametrize(
    ("section", "axis", "log"),
    [("By learning rate", "config:finetune.value.lr", True), ("By shots", "config:task.value.shots", False)],
)
def test_scores_by_setting(capsys: pytest.CaptureFixture[str], section: str, axis: str, log: bool) -> None:
    made = [panel["config"] for panel in panels(dry_run(capsys), section)]
    assert [config["yAxis"] for config in made] == [f"summary:{name}" for name in MEASURED + ACCURACIES]
    assert {(config["xAxis"], config["xAxisLogScale"]) for config in made} == {(axis, log)}


def test_accuracies_and_runs(capsys: pytest.CaptureFixture[str]) -> None:
    spec = dry_run(capsys)
    bars = [panel["config"] for panel in panels(spec, "Accuracies")]
    assert [bar["metrics"] for bar in bars] == [[f"summary_metrics.{name}"] for name in ACCURACIES]
    tables = [panel["config"]["panel2Config"]["exp"]["fromOp"] for panel in panels(spec, "Runs")[:2]]
    assert [table["inputs"]["key"]["val"] for table in tables] == ["sweep", "scores"]
    columns = spec["spec"]["section"]["runSets"][0]["runFeed"]["columnOrder"]
    assert set(columns) >= {"run:jobType", "config:finetune.value.lr", "summary:accuracy/icl", "summary:sim_aou"}


def test_a_report_has_the_panels_of_the_workspace(capsys: pytest.CaptureFixture[str]) -> None:
    spec, made = dry_run(capsys, "--sweep", "first_look"), dry_run(capsys, "--report", "--sweep", "first_look")
    assert (made["entity"], made["project"], made["name"]) == ("", "iclgd", "iclgd: first_look")
    blocks = made["spec"]["blocks"]
    headings = [block["children"][0]["text"] for block in blocks if block["type"] == "heading"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    assert headings == [section["name"] for section in spec["spec"]["section"]["panelBankConfig"]["sections"]]
    for heading, grid in zip(headings, grids, strict=True):
        shown = grid["panelBankSectionConfig"]["panels"]
        assert [panel["config"] for panel in shown] == [panel["config"] for panel in panels(spec, heading)]
        places = {(panel["layout"]["x"], panel["layout"]["y"]) for panel in shown}
        assert len(places) == len(shown)
        [runs] = grid["runSets"]
        [rule] = runs["filters"]["filters"]
        assert (rule["key"]["name"], rule["op"], rule["value"]) == ("group", "=", "first_look")
        assert runs["runFeed"]["columnOrder"] == spec["spec"]["section"]["runSets"][0]["runFeed"]["columnOrder"]
    assert made == dry_run(capsys, "--report", "--sweep", "first_look")
    assert dry_run(capsys, "--report")["spec"]["blocks"][4]["metadata"]["runSets"][0]["filters"]["filters"] == []


def test_losses_over_steps(capsys: pytest.CaptureFixture[str]) -> None:
    [panel] = panels(dry_run(capsys), "Training")
    assert (panel["config"]["xAxis"], panel["config"]["metrics"]) == ("training/step", ["training/loss"])


def test_only_the_runs_of_the_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    [runs] = dry_run(capsys, "--sweep", "first_look")["spec"]["section"]["runSets"]
    [rule] = runs["filters"]["filters"]
    assert (rule["key"], rule["op"], rule["value"]) == ({"section": "run", "name": "group"}, "=", "first_look")
    [everything] = dry_run(capsys)["spec"]["section"]["runSets"]
    assert everything["filters"]["filters"] == []


def test_the_specification_is_the_same_every_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(capsys) == dry_run(capsys)


def test_other_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    made = panels(dry_run(capsys, "--metrics", "alpha,rec2ftp"), "By layer")
    assert [panel["config"]["metrics"] for panel in made] == [["alpha"]]
    code, message = refusal(capsys, "--metrics", "absent")
    assert code == 2
    assert "there is no metric absent; known here: accuracy" in message


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


def test_a_report_is_saved(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb_workspaces.reports.v2 import interface

    sent: list[Any] = []

    class Api:
        default_entity = "me"
        client = type("Client", (), {"app_url": "https://app.example/"})

        def projects(self, entity: str) -> list[Any]:
            return [type("Project", (), {"name": "mine"})]

    def execute(api: Api, query: Any, variables: dict[str, Any]) -> Any:
        sent.append(variables)
        sent[-1]["spec"] = json.loads(sent[-1]["spec"])
        view = {"id": "VmlldzoxMg==", "name": "abc", "displayName": variables["displayName"], "spec": "{}"}
        return {"upsertView": {"view": view | {"project": {"name": "mine", "entityName": "me"}}}}

    monkeypatch.setattr("wandb.Api", Api)
    monkeypatch.setattr("wandb.termlog", lambda message: None)
    monkeypatch.setattr(interface, "_get_api", Api)
    monkeypatch.setattr(interface, "execute_graphql", execute)
    monkeypatch.setattr(interface, "get_app_url", lambda api: "https://app.example", raising=False)
    dashboard.cli(["--project", "mine", "--report"])
    assert "/me/mine/reports/iclgd--VmlldzoxMg" in capsys.readouterr().out
    [view] = sent
    assert (view["entityName"], view["projectName"], view["displayName"], view["type"]) == (
        "me",
        "mine",
        "iclgd",
        "runs",
    )
    assert sum(block["type"] == "panel-grid" for block in view["spec"]["blocks"]) == 6


def test_a_failure_to_save_is_told_without_the_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise RuntimeError("the key 0123456789abcdef0123456789abcdef01234567 is unknown")

    monkeypatch.setattr("wandb.Api", refuse)
    code, message = refusal(capsys)
    assert code == 1
    assert "the workspace was not saved: RuntimeError: the key *** is unknown; check `wandb login`" in message
