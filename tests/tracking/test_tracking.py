"""Which W&B run a run is: its name, what is sent when, and the agents of W&B's own sweeps."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
from wandb.sdk.lib import config_util

from command_line import ROOT
from configs import config as composed
from iclgd import tracking
from iclgd.config.enumerations import TrackerName, TrackingMode
from iclgd.tracking.upload import UploadState
from tracking_cases import FakeRun, finished_run, no_account, settings, use_run  # noqa: F401  fixture
from wandb_reader import read_runs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of 2022, and says so
    import sweeps  # W&B's own engine, which its server runs
    from sweeps.config import cfg

pytestmark = pytest.mark.usefixtures("no_account")
FILES = sorted((ROOT / "sweeps" / "wandb").glob("*.yaml"))
AGENT = {"SWEEP_ID": "swp1", "RUN_ID": "agents1", "PROJECT": "theirs", "ENTITY": "lab"}


def test_216_runs_have_216_names() -> None:
    """Every swept key is in the name: layers, rates, shots, draws, and a key of which no name was thought."""
    axes = {
        "finetune.layers": ["[0]", "[1]", "[2,3]"],
        "finetune.lr": ["0.1", "0.3", "1"],
        "task.shots": ["2", "4"],
        "seed": ["0", "1", "2"],
        "finetune.epochs": ["1", "2"],
        "runtime.dtype": ["float32", "float64"],
    }
    names = set()
    base = composed("tracking=none")
    for values in itertools.product(*axes.values()):
        layers, lr, shots, seed, *_ = map(yaml.safe_load, values)
        config = replace(
            base,
            finetune=replace(base.finetune, lr=float(lr), layers=layers),
            task=replace(base.task, shots=shots),
            seed=seed,
        )
        names.add(tracking.run_name(config, [f"{key}={value}" for key, value in zip(axes, values, strict=True)]))
    assert len(names) == 216
    assert "lcgd capitals lr 0.1 layers 2-3 shots 4 seed 1 epochs 2 dtype float64" in names


def test_a_finished_run_that_was_never_logged_is_logged_from_its_folder(tmp_path: Path, monkeypatch) -> None:
    """One that was recorded offline is sent when it is to be online; one that was sent is left alone."""
    folder, sent = finished_run(tmp_path / "sweep" / "run"), []
    use_run(monkeypatch, FakeRun(tmp_path))
    monkeypatch.setattr(wandb, "init", lambda **arguments: sent.append(arguments["mode"]) or FakeRun(tmp_path))
    tracking.log_run(settings(name=TrackerName.none), folder)
    assert not (folder / "wandb").exists()
    for mode in ("offline", "offline", "online", "online"):
        tracking.log_run(settings(mode=TrackingMode(mode)), folder)
    assert sent == ["offline", "online"]


def test_a_sweep_is_a_run_of_its_own(tmp_path: Path, monkeypatch) -> None:
    folder, given = finished_run(tmp_path / "rates" / "run"), []
    use_run(monkeypatch, FakeRun(tmp_path))
    monkeypatch.setattr(wandb, "init", lambda **arguments: given.append(arguments) or FakeRun(tmp_path))
    tracking.log_sweep(settings().tracking, "rates", [folder], ())
    [arguments] = given
    assert arguments["id"].startswith("sweep-rates-")
    assert (arguments["name"], arguments["group"], arguments["job_type"]) == ("sweep rates", "rates", "sweep")
    assert arguments["dir"] == tmp_path / "rates" and arguments["mode"] == "offline"


@pytest.mark.parametrize("overrides", ["tracking=none", "tracking=wandb tracking.mode=disabled"])
def test_without_tracking_wandb_is_not_imported(tmp_path: Path, overrides: str) -> None:
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1] / "support")!r})
from configs import config
from iclgd import tracking
made = config(*{overrides.split()!r})
tracking.log_run(made, Path("run"))
tracking.log_sweep(made.tracking, "b", [Path("run")], ())
assert not any(name.partition(".")[0] == "wandb" for name in sys.modules)
assert not list(Path(".").iterdir())
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True, timeout=300)


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def arguments_of(chosen: dict[str, Any]) -> list[str]:
    """What `${args_no_hyphens}` becomes, by W&B's own function."""
    return create_sweep_command_args({"args": chosen})["args_no_hyphens"]


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


def test_the_run_is_the_agents_and_tells_the_search_its_mean(tmp_path: Path):
    folder = finished_run(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in AGENT.items():
            patch.setenv(f"WANDB_{name}", value)
        tracking.log_run(settings("runtime.objective=sim_am"), folder)
        wandb.teardown()
    [recorded] = read_runs(tmp_path)
    run = recorded.run
    assert (run.run_id, run.sweep_id, run.project, run.entity) == ("agents1", "swp1", "theirs", "lab")
    assert UploadState.read(folder).id == "agents1"
    mean = recorded.summary["sim_am"]
    seen = sweeps.SweepRun(summaryMetrics=recorded.summary, sampledHistory=recorded.history)
    assert seen.metric_extremum("objective", "maximize") == mean
    assert seen.metric_extremum("sim_am", "maximize") != mean  # why the score's own name would not do


def test_settings_stand_beside_the_parameters_of_the_sweep(tmp_path: Path, monkeypatch):
    chosen = tmp_path / "config.yaml"
    config_util.save_config_file_from_dict(str(chosen), {"finetune": {"value": "gd"}, "task.shots": {"value": 4}})
    config = {"finetune": {"name": "gd", "lr": 0.1}, "task": {"shots": 4}, "seed": 0}
    assert tracking.without_parameters(config) == config
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(chosen))
    own = {"task": {"shots": 4}, "seed": 0}
    assert tracking.without_parameters(config) == {**own, "finetune.name": "gd", "finetune.lr": 0.1}
