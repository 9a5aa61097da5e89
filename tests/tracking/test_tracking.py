"""Which W&B run a run is: its name, id and group, what is sent when, and the agents of W&B's own sweeps."""

from __future__ import annotations

import itertools
import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb
import yaml
from hydra.errors import HydraException
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
from wandb.sdk.lib import config_util

from command_line import ROOT, iclgd
from configs import config as composed
from iclgd import tracking
from iclgd.cli import summary
from iclgd.config import enumerations
from iclgd.config.enumerations import TrackingMode
from iclgd.runs.execute import Ending, Outcome
from iclgd.tracking.session import UploadState
from report_fixtures import write_run
from tracking_cases import (
    NORMS,
    SCORES,
    fresh_process,  # noqa: F401  fixture
    recorded_in,
    settings,
    track,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of 2022, and says so
    import sweeps  # W&B's own engine, which its server runs
    from sweeps.config import cfg

pytestmark = pytest.mark.usefixtures("fresh_process")
FILES = sorted((ROOT / "sweeps" / "wandb").glob("*.yaml"))


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
    assert "lcgd reviews lr 0.1 layers 2-3 shots 4 seed 1 epochs 2 dtype float64" in names


def test_runs_of_one_process_do_not_leak_into_each_other(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), tracking.tracker(settings(), tmp_path / "a", "aaaaaaaaaaaa", "first_look"):
        raise ZeroDivisionError
    track(tmp_path / "b", composed("tracking=wandb", "finetune=gd", "task.shots=2"))
    [first], [second] = recorded_in(tmp_path / "a"), recorded_in(tmp_path / "b")
    assert (first.run.run_id[:12], first.config["task"]["shots"], first.exit_code) == ("aaaaaaaaaaaa", 4, 1)
    assert (second.run.run_id[:12], second.config["task"]["shots"], second.exit_code) == ("0123456789ab", 2, 0)
    assert (first.run.job_type, second.run.job_type) == ("lcgd", "gd")
    assert "sim_aou" not in first.summary
    assert wandb.run is None


def test_a_retried_run_keeps_its_id_and_each_sweep_has_its_own(tmp_path: Path) -> None:
    first, again, other = (tracking._state(tmp_path / name, "0123456789ab") for name in ("a", "a", "b"))
    assert first.id != other.id and other.id.startswith("0123456789ab-")
    first.write(tmp_path / "a")
    again = tracking._state(tmp_path / "a", "0123456789ab")
    assert again.id == first.id


def test_a_finished_run_that_was_never_logged_is_logged_from_its_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = write_run(tmp_path / "sweep" / "run", examples=4, layers=3)
    NORMS.to_parquet(folder / "gradient_norms.parquet")
    pd.DataFrame({"step": [0], "loss": [1.5]}).to_parquet(folder / "losses.parquet")
    tracking.send_finished(settings(name=enumerations.TrackerName.none), folder)
    assert not (folder / "wandb").exists()
    tracking.send_finished(settings(), folder)
    assert "is logged now, from its folder" in caplog.text
    [recorded] = recorded_in(folder / "wandb")
    scores = json.loads((folder / "scores.json").read_text())
    assert recorded.summary["sim_aou"] == scores["sim_aou"]["mean"] and recorded.run.run_group == "sweep"
    assert recorded.curve("sim_aou") == scores["sim_aou"]["layers"]
    tracking.send_finished(settings(), folder)
    assert len(recorded_in(folder / "wandb")) == 1  # it is there already


@pytest.mark.parametrize("overrides", ["tracking=none", "tracking=wandb tracking.mode=disabled"])
def test_without_tracking_wandb_is_not_imported(tmp_path: Path, overrides: str) -> None:
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1] / "support")!r})
from configs import config
from iclgd import tracking
made = config(*{overrides.split()!r})
with tracking.tracker(made, Path("run"), "a", "b") as tracker:
    tracker.log_run({{"sim_aou": {{"mean": 1.0, "layers": [1.0]}}}})
tracking.log_sweep(made.tracking, "b", [Path("run")], Path("."))
assert not any(name.partition(".")[0] == "wandb" for name in sys.modules)
assert not list(Path(".").iterdir())
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True, timeout=300)


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(HydraException, match=r"tracking\.name"):
        composed("tracking.name=tensorboard")


def test_skipped_runs_that_never_went_to_wandb_are_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "_show_tables", lambda *_: None)
    for name in ("unsent", "sent", "online", "computed", "none"):
        (tmp_path / name / "wandb" / "offline-run-1").mkdir(parents=True)
    (tmp_path / "sent" / "wandb" / "offline-run-1" / "run-1.wandb.synced").touch()
    (tmp_path / "online" / "wandb" / "iclgd.json").write_text('{"id": "x", "modes": {"/iclgd": "online"}}')
    (tmp_path / "none" / "wandb" / "offline-run-1").rmdir()
    results = [Outcome(Ending.done if f.name == "computed" else Ending.skipped, f) for f in sorted(tmp_path.iterdir())]
    summary.summarise(results)
    assert capsys.readouterr().out.endswith(
        "1 of those skipped never went to W&B: the same command with tracking.mode=online sends them\n"
    )
    summary.summarise([outcome for outcome in results if outcome.folder.name != "unsent"])
    assert "never went to W&B" not in capsys.readouterr().out


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
        tracker.log_run({"sim_aou": SCORES["sim_aou"] | {"mean": 0.5, "layers": [0.25, 0.75]}}, losses=[1.0])
    [recorded] = recorded_in(tmp_path)
    run = recorded.run
    assert (run.run_id, run.sweep_id, run.project, run.entity) == ("agents1", "swp1", "theirs", "lab")
    assert UploadState.read(tmp_path / "run", "").id == "agents1"
    seen = sweeps.SweepRun(summaryMetrics=recorded.summary, sampledHistory=recorded.history)
    assert seen.metric_extremum("objective", "maximize") == 0.5
    assert seen.metric_extremum("sim_aou", "maximize") == 0.75  # why the score's own name would not do


def test_settings_stand_beside_the_parameters_of_the_sweep(agent: None, tmp_path: Path, monkeypatch):
    chosen = tmp_path / "config.yaml"
    config_util.save_config_file_from_dict(str(chosen), {"finetune": {"value": "gd"}, "task.shots": {"value": 4}})
    settings = {"finetune": {"name": "gd", "lr": 0.1}, "task": {"shots": 4}, "seed": 0}
    assert tracking.without_parameters(settings) == settings
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(chosen))
    assert tracking.without_parameters(settings) == {
        "task": {"shots": 4},
        "seed": 0,
        "finetune.name": "gd",
        "finetune.lr": 0.1,
    }


def test_an_agent_asks_for_one_run_at_a_time(agent: None, tmp_path: Path):
    refused = iclgd(tmp_path, "-m", "seed=0,1")
    assert refused.returncode == 2 and "one run at a time: leave -m and sweeps= out" in refused.stderr
