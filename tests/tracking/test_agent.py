"""W&B's own sweeps: their files are valid, their agent calls the command unchanged, and the run is the agent's."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from wandb import wandb_agent
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
from wandb.sdk.lib import config_util

from command_line import ROOT, environment, iclgd
from configs import config as composed
from iclgd import tracking
from iclgd.config.enumerations import TrackingMode
from iclgd.tracking.agent import beside_parameters
from iclgd.tracking.kept import Kept
from report_fixtures import write_run
from wandb_reader import Recorded, read_runs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of 2022, and says so
    import sweeps  # W&B's own engine, which its server runs
    from sweeps.config import cfg

FILES = sorted((ROOT / "sweeps" / "wandb").glob("*.yaml"))
SCORES = {
    "sim_aou": {"mean": 0.5, "layers": [0.25, 0.75], "n": 4, "undefined": 0, "ci": None},
    "accuracy/ft": {"mean": 0.75, "layers": [], "n": 4, "undefined": 0, "ci": None},
}


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def arguments_of(chosen: dict[str, Any]) -> list[str]:
    """What `${args_no_hyphens}` becomes, by W&B's own function."""
    return create_sweep_command_args({"args": chosen})["args_no_hyphens"]


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that an agent started."""
    for name, value in {"SWEEP_ID": "swp1", "RUN_ID": "agents1", "PROJECT": "theirs", "ENTITY": "lab"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.delenv("WANDB_SERVICE", raising=False)
    wandb.teardown()  # what an earlier test set up has read other variables
    yield
    wandb.teardown()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_files_are_valid_and_every_choice_of_theirs_composes(path: Path):
    content = read(path)
    assert cfg.schema_violations_from_proposed_config(content) == []
    assert content["command"] == ["${env}", "${program}", "${args_no_hyphens}"] and content["program"] == "iclgd"
    runs: list[Any] = []
    seen: set[str] = set()
    while len(runs) < 200 and (run := sweeps.next_run(content, runs)) is not None:
        runs.append(run)
        if seen.issuperset(arguments_of(run.config)):
            continue  # each value is composed once: it takes a fifth of a second
        seen.update(arguments_of(run.config))
        made = composed(*arguments_of(run.config))
        assert made.tracking.mode is TrackingMode.online
        for key, chosen in run.config.items():
            section, _, name = key.partition(".")
            value = getattr(getattr(made, section), name or "name") if section != "seed" else made.seed
            assert str(value) == str(chosen["value"])
        if content["method"] == "bayes":
            assert content["metric"]["name"] == "objective" and made.runtime.objective
            return
    [told] = re.findall(r"= (\d+) runs", path.read_text().splitlines()[0])
    assert len(runs) == int(told)


def test_the_run_is_the_agents_and_tells_the_search_its_mean(agent: None, tmp_path: Path):
    made = composed("tracking=wandb", "runtime.objective=sim_aou")
    with tracking.tracker(made, tmp_path / "run", "0123456789ab", "single") as tracker:
        tracker.log_run(SCORES, losses=[1.0])
    wandb.teardown()
    [recorded] = read_runs(tmp_path)
    run = recorded.run
    assert (run.run_id, run.sweep_id, run.project, run.entity) == ("agents1", "swp1", "theirs", "lab")
    assert Kept.of(tmp_path / "run", "").id == "agents1"
    seen = sweeps.SweepRun(summaryMetrics=recorded.summary, sampledHistory=recorded.history)
    assert seen.metric_extremum("objective", "maximize") == 0.5
    assert seen.metric_extremum("sim_aou", "maximize") == 0.75  # why the score's own name would not do


def test_settings_stand_beside_the_parameters_of_the_sweep(agent: None, tmp_path: Path, monkeypatch):
    chosen = tmp_path / "config.yaml"
    config_util.save_config_file_from_dict(str(chosen), {"finetune": {"value": "gd"}, "task.shots": {"value": 4}})
    settings = {"finetune": {"name": "gd", "lr": 0.1}, "task": {"shots": 4}, "seed": 0}
    assert beside_parameters(settings) == settings
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(chosen))
    assert beside_parameters(settings) == {"task": {"shots": 4}, "seed": 0, "finetune.name": "gd", "finetune.lr": 0.1}


def test_a_run_that_is_done_is_sent_to_each_agent_that_asks(agent: None, tmp_path: Path, monkeypatch):
    folder, made = write_run(tmp_path / "single" / "run", examples=4, layers=3), composed("tracking=wandb")
    (folder / "scores.json").write_text(json.dumps(SCORES))
    monkeypatch.setattr(tracking, "_stored", lambda folder: {"scores": SCORES})
    for name in ("agents1", "agents1", "agents2"):
        monkeypatch.setenv("WANDB_RUN_ID", name)
        wandb.teardown()
        tracking.send_finished(made, folder)
    wandb.teardown()
    assert sorted(one.run.run_id for one in read_runs(folder)) == ["agents1", "agents2"]
    assert all(one.summary["accuracy/ft"] == 0.75 for one in read_runs(folder))


def test_an_agent_asks_for_one_run_at_a_time(agent: None, tmp_path: Path):
    refused = iclgd(tmp_path, "-m", "seed=0,1")
    assert refused.returncode == 2 and "one run at a time: leave -m and sweeps= out" in refused.stderr


class Server:
    """What W&B's server answers to an agent: what its engine chooses next, given the runs as their files have them."""

    def __init__(self, content: dict[str, Any], outputs: Path) -> None:
        self.content, self.outputs = content, outputs
        self.asked: list[Any] = []
        self.told: list[list[Any]] = []

    def recorded(self) -> list[Recorded]:
        whole = [
            one for one in read_runs(self.outputs) if one.exit_code is not None
        ]  # W&B may have failed and begun anew
        return sorted(whole, key=lambda one: one.run.run_id)

    def runs(self) -> list[Any]:
        found = zip(self.asked, self.recorded(), strict=True)
        return [
            sweeps.SweepRun(
                name=one.run.run_id,
                config=asked.config,
                state="finished",
                summaryMetrics=one.summary,
                sampledHistory=one.history,
            )
            for asked, one in found
        ]

    def heartbeat(self, api: object, agent_id: str, metrics: object, status: dict[str, bool]) -> list[dict[str, Any]]:
        if any(status.values()):
            return []
        if len(self.asked) == 2:
            return [{"type": "exit"}]
        self.asked.append(sweeps.next_run(self.content, self.runs()))
        chosen = {
            key: {"value": float(x) if hasattr(x := v["value"], "dtype") else x}
            for key, v in self.asked[-1].config.items()
        }
        run = {"type": "run", "run_id": f"run{len(self.asked)}", "program": self.content["program"], "args": chosen}
        return [run]


@pytest.mark.soak
def test_an_agent_searches_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The real agent and W&B's real engine, without their server: what one tells the other is read from W&B's files."""
    content = read(ROOT / "sweeps" / "wandb" / "lr_search.yaml")
    small = {"tracking.mode": "offline", "model": "toy", "task": "toy", "task.shots": 3, "task.queries": 4}
    content["parameters"] |= {key: {"value": value} for key, value in small.items()}
    command = tmp_path / "bin" / "iclgd"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m iclgd "$@"\n')
    command.chmod(0o755)
    for name, value in environment(fake=False).items():
        monkeypatch.setenv(name, value)
    for name, value in {"SWEEP_ID": "swp1", "DIR": str(tmp_path), "PROJECT": "theirs"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("RUN_ID", "SWEEP_PARAM_PATH"):  # the agent's own process is given them
        monkeypatch.setenv(f"WANDB_{name}", "")
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    server = Server(content, tmp_path / "outputs")
    answers = {
        "_sweep_with_runs": lambda *_: {"config": yaml.safe_dump(content)},
        "_register_agent": lambda *_, **__: {"id": "agent"},
        "_agent_heartbeat": server.heartbeat,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(f"wandb.apis.public.sweeps.{name}", answer)
    monkeypatch.setattr("wandb.Api", lambda: None)
    monkeypatch.setattr(wandb_agent.Agent, "POLL_INTERVAL", 0.1)
    monkeypatch.setattr(logging.getLogger("wandb.wandb_agent"), "disabled", True)
    made = wandb_agent.Agent(api=None, queue=multiprocessing.Queue(), sweep_id="swp1")
    made.run()
    wandb.teardown()

    assert (made._failed, len(server.asked)) == (0, 2)
    recorded = server.recorded()
    assert [one.run.run_id for one in recorded] == ["run1", "run2"]
    rates = [one.config["finetune.lr"] for one in recorded]
    assert rates[0] != rates[1] and all(1e-4 <= rate <= 1e-1 for rate in rates)
    for one in recorded:
        assert one.exit_code == 0 and one.run.sweep_id == "swp1" and one.config["task.shots"] == 3
        assert (one.config["finetune"], one.config["finetune.objective"]) == ("lcgd", "lcgd")
        assert one.config["runtime"]["objective"] == one.config["runtime.objective"] == "sim_aou"
        assert one.summary["objective"] == one.summary["sim_aou"]
    assert len(list((tmp_path / "outputs" / "single").iterdir())) == 2
