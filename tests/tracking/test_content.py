"""What W&B records of a run and of a sweep equals what the run folders hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import psutil
import pytest
import wandb

from iclgd import tracking
from iclgd.config import schema
from iclgd.report.figures import figures
from iclgd.results.frame import Results
from iclgd.results.reading import read_run
from iclgd.tracking import content
from report_fixtures import write_run
from tracking_cases import NORMS, FakeRun, finished_run, no_account, settings  # noqa: F401  fixture
from wandb_reader import Recorded, read_runs

pytestmark = pytest.mark.usefixtures("no_account")


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> list[Recorded]:
    """W&B's recordings of one run after its process was killed at the first attempt, and after the second."""
    folder = finished_run(tmp_path_factory.mktemp("sweeps") / "first_look" / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "write_run", _kill_wandb)
        tracking.log_run(settings(), folder)
    tracking.log_run(settings(), folder, ["finetune.epochs=2"])
    wandb.teardown()  # waits until everything is on disk
    return read_runs(folder / "wandb")


def _kill_wandb(*arguments: object, **options: object) -> None:
    for child in psutil.Process().children():
        if child.name().startswith("wandb-core"):
            child.kill()
            child.wait()
    raise ConnectionResetError


def test_when_its_process_is_killed_the_next_recording_is_the_only_one(attempts: list[Recorded]) -> None:
    assert [recorded.exit_code for recorded in attempts] == [0]


def test_a_run_reads_back_whole(attempts: list[Recorded]) -> None:
    """Identity, config, curves, summary, tables and artifact."""
    [recorded], config = attempts, settings()
    run, folder = recorded.run, recorded.path.parents[2]
    scores = json.loads((folder / "scores.json").read_text())
    assert (run.run_group, run.job_type, run.project) == ("first_look", "lcgd", "iclgd")
    assert list(run.tags) == ["capitals", "a/model", "lcgd"]
    assert run.display_name == f"lcgd capitals lr {config.finetune.lr:g} layers all shots 4 seed 0 epochs 2"
    assert {key: value for key, value in recorded.config.items() if key != "_wandb"} == schema.as_dict(config)
    assert recorded.summary["diverged"] is True
    for name, score in scores.items():
        assert recorded.summary[name] == score["mean"]
        if score["layers"]:
            assert recorded.curve(name) == score["layers"]
            assert recorded.summary[f"{name}/layer_2"] == score["layers"][2]
            assert recorded.summary[f"{name}/defined_layers"] == sum(mean is not None for mean in score["layers"])
            assert recorded.metrics[name].step_metric == "layer"
    assert recorded.curve("training/loss", "training/step") == [2.0, 1.5, 1.25]
    assert recorded.metrics["training/loss"].step_metric == "training/step"
    assert recorded.table("scores") == content.score_rows(read_run(folder))
    assert recorded.table("gradient_norms") == NORMS.to_dict("records")
    assert [row["_step"] for row in recorded.history] == list(range(len(recorded.history)))
    [artifact] = [one for one in recorded.artifacts if one.type == "result"]  # tables are artifacts too
    assert artifact.name == f"result-{run.run_id}"
    files = {"fingerprint.json", "config.yaml", "prompts.json", "scores.json", "environment.json"}
    assert {file.path for file in artifact.manifest.contents} == files
    told = {path.name for path in (recorded.path.parent / "files").iterdir()}
    assert not told & {"wandb-metadata.json", "requirements.txt"}  # nothing about the machine


def test_a_run_is_sent_once(attempts: list[Recorded]) -> None:
    folder = attempts[0].path.parents[2]
    tracking.log_run(settings(), folder)
    assert len(list((folder / "wandb").glob("*run-*"))) == 1


def test_the_summary_of_a_sweep(tmp_path: Path) -> None:
    """A row for each run, also for one that failed, and the first figures of the report."""
    folders = []
    for variant, lr in (("gd", 1e-3), ("gd", 1e-2), ("lcgd", 1e-3), ("lcgd", 1e-2)):
        state = "failed" if (variant, lr) == ("lcgd", 1e-2) else "done"
        folders.append(
            write_run(tmp_path / f"{variant}{lr}", variant=variant, lr=lr, examples=4, layers=3, state=state)
        )
    drawn, run = figures(Results.read(folders)), FakeRun(tmp_path)
    content.write_sweep(run, folders, drawn)
    table = run.logged.pop("sweep")
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.data]
    assert [row["run"] for row in rows] == [folder.name for folder in folders]
    assert [row["state"] for row in rows] == ["sane", "sane", "sane", "is failed: ValueError: no such luck"]
    assert [row["finetune.lr"] for row in rows] == [1e-3, 1e-2, 1e-3, None]
    for folder, row in zip(folders[:3], rows, strict=False):
        scores = json.loads((folder / "scores.json").read_text())
        assert row["sim_aou"] == scores["sim_aou"]["mean"]
        assert row["accuracy/icl"] == scores["accuracy/icl"]["mean"]
    assert rows[3]["sim_aou"] is None
    assert run.summary == {"runs": 4, "done": 3}
    headlines = [figure for figure in drawn if figure.headline]
    assert run.logged.keys() == {f"figures/{figure.name}" for figure in headlines}
    svg = headlines[0].save(tmp_path / "figure.svg").read_text()
    assert _numberless(svg) in _numberless(content._drawing(headlines[0]))


def _numberless(svg: str) -> str:
    """Without the numbers of gradients, which Vega counts through a process."""
    return re.sub(r"gradient_\d+", "gradient", svg)
