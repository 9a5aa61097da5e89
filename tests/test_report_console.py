"""The table in the terminal, the figures of one run, and what reading makes of broken folders."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from iclgd.report import console, run_figures, runs_frame, settings, style
from iclgd.report.finished_run import Estimate, ReportError
from iclgd.shown import printable
from report_fixtures import write_run


def _printed(table, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(table)
    return out.getvalue()


@pytest.fixture
def first_look(tmp_path: Path) -> Path:
    folder = tmp_path / "first_look"
    write_run(folder / "aaa")
    write_run(folder / "bbb", variant="lcgd", lr=3e-3)
    return folder


def test_first_look_fits_80_columns(first_look):
    text = _printed(console.sweep_table([first_look]))
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.split() for line in text.splitlines()]
    assert ["gd", "lcgd"] in lines and ["score", "lr", "0.001", "lr", "0.003"] in lines
    assert ["SimAOU", "0.100", "[0.080,", "0.120]", "0.200", "[0.180,", "0.220]"] in lines
    assert ["accuracy", "icl", "80.0%", "[70.0,", "90.0]", "80.0%", "[70.0,", "90.0]"] in lines
    assert "SimAM_Δ: values left out as undefined: 1 (gd), 1 (lcgd)" in text


def test_seeds_become_mean_and_standard_deviation(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"s{seed}", seed=seed)
    text = _printed(console.sweep_table([tmp_path]))
    assert "0.110 ± 0.010" in text  # means 0.10, 0.11, 0.12 by construction
    assert "up to 3 seeds" in " ".join(text.split())


def test_many_settings_become_rows_and_divergence_is_said(tmp_path):
    for variant in ("gd", "lcgd"):
        for lr in (1e-3, 1e-2, 1e-1):
            write_run(tmp_path / f"{variant}{lr}", variant=variant, lr=lr, diverged=variant == "gd" and lr == 1e-1)
    text = _printed(console.sweep_table([tmp_path]))
    rows = [line.split() for line in text.splitlines()]
    assert ["variant", "lr", "SimAOU", "SimAM_Δ", "icl", "ft"] in rows
    assert ["gd", "0.1", "–", "–", "80.0%", "70.0%"] in rows  # noqa: RUF001
    assert [row[:2] for row in rows if row and row[0] in ("gd", "lcgd")] == [
        [variant, lr] for variant in ("gd", "lcgd") for lr in ("0.001", "0.01", "0.1")
    ]
    assert "diverged: 1 of 6 runs" in text


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [((0.8, 0.8, 0.7), "does not beat zero-shot"), ((0.7, 0.8, 0.7), "is within chance"), ((0.5, 0.8, 0.7), None)],
)
def test_words_where_icl_does_not_beat_zero_shot(tmp_path, accuracy, said):
    text = " ".join(_printed(console.run_table(write_run(tmp_path / "run", accuracy=accuracy))).split())
    assert (said in text) if said else ("zero-shot" not in text)


def test_cell_of_nothing_one_and_many():
    undefined, one = Estimate(float("nan"), 0, 0), Estimate(0.5, 0.4, 0.6)
    assert console.cell([undefined]) == console.UNDEFINED
    assert console.cell([one, undefined]) == "0.500 [0.400, 0.600]"
    assert console.cell([one], percent=True) == "50.0% [40.0, 60.0]"
    assert console.cell([one, Estimate(0.7, 0, 1)]) == "0.600 ± 0.141"
    assert console.cell([Estimate(0.5, float("nan"), float("nan"))]) == "0.500"


def test_markup_in_names_stays_text(tmp_path):
    run = write_run(tmp_path / "run", task="[red]x[/red]\x1b[31m\u202e", variant="[bold]")
    text = _printed(console.run_table(run))
    assert "[red]x[/red]" in text and "[bold]" in text
    assert "\x1b" not in text and "\u202e" not in text


def test_broken_and_unfinished_runs_are_listed(tmp_path):
    write_run(tmp_path / "good")
    write_run(tmp_path / "failed", state="failed")
    write_run(tmp_path / "running", state="running")
    (write_run(tmp_path / "cut") / "scores.json").write_text('{"sim_aou": {')
    (write_run(tmp_path / "odd") / "scores.json").write_text('{"sim_aou": {"mean": "many"}}')
    (write_run(tmp_path / "list") / "status.json").write_text("[]")
    (write_run(tmp_path / "keys") / "config.yaml").write_text("task: {name: x}\n")
    (write_run(tmp_path / "bytes") / "environment.json").write_bytes(b"\xff\xfe")
    write_run(tmp_path / ".hidden")
    found = runs_frame.read_runs([tmp_path, tmp_path / "good"])
    assert [run.name for run in found.finished] == ["good"]
    reasons = {path.name: reason for path, reason in found.left_out}
    assert set(reasons) == {"failed", "running", "cut", "odd", "list", "keys", "bytes"}
    assert reasons["failed"] == "is failed: ValueError: no such luck"
    assert reasons["keys"] == "config.yaml has no task.shots"
    assert reasons["cut"].startswith("scores.json cannot be read")
    with pytest.raises(ReportError, match=r"no finished run in .*failed.*iclgd-status"):
        console.sweep_table([tmp_path / "failed"])
    with pytest.raises(ReportError, match="is no folder"):
        console.sweep_table([tmp_path / "nowhere"])


def test_frame_is_tidy(first_look):
    frame = runs_frame.frame(runs_frame.read_runs([first_look]).finished)
    chosen = frame[(frame["variant"] == "lcgd") & (frame["score"] == "sim_aou")]
    assert len(chosen) == 1 + 6
    assert chosen[chosen["layer"].isna()]["mean"].item() == pytest.approx(0.2)
    assert chosen[chosen["layer"].notna()]["mean"].mean() == pytest.approx(0.2)
    assert set(frame["score"]) >= {"accuracy/zsl", "accuracy/icl", "accuracy/ft"}


def test_what_was_varied(tmp_path):
    for shots in (4, 16, 8):
        for variant in ("gd", "lcgd"):
            for seed in (0, 1):
                lr = {"gd": 1e-3, "lcgd": 2e-3}[variant]
                write_run(tmp_path / f"{shots}{variant}{seed}", shots=shots, variant=variant, seed=seed, lr=lr)
    runs = runs_frame.read_runs([tmp_path]).finished
    assert settings.varied(runs) == ["finetune.name", "task.shots"]  # the rate only follows from the variant
    assert settings.numeric_axes(runs) == ["task.shots"]
    groups = settings.group(runs)
    assert [tuple(entry.settings.values()) for entry in groups] == [
        (variant, shots) for variant in ("gd", "lcgd") for shots in ("4", "8", "16")
    ]
    assert all([run.seed for run in entry.runs] == [0, 1] for entry in groups)


def test_run_figures_are_drawn_the_same_each_time(first_look, tmp_path):
    run = runs_frame.read_run(first_look / "aaa")
    values, norms = run.table("scores"), run.table("gradient_norms")
    written = []
    for name in ("one", "two"):
        written.append(run_figures.draw_run_figures(run.scores, values, norms, run.config, tmp_path / name))
    assert [path.name for path in written[0]] == ["scores_by_layer.png", "gradient_norms.png", "accuracies.png"]
    for one, two in zip(*written, strict=True):
        assert one.read_bytes() == two.read_bytes()
        assert len(one.read_bytes()) > 5000


def test_figures_of_a_diverged_run_leave_out_what_is_undefined(tmp_path):
    run = runs_frame.read_run(write_run(tmp_path / "run", diverged=True))
    norms = run.table("gradient_norms")
    norms["value"] = float("nan")
    written = run_figures.draw_run_figures(run.scores, run.table("scores"), norms, run.config, tmp_path / "out")
    assert [path.name for path in written] == ["accuracies.png"]


def test_band_is_196_standard_errors():
    import pandas as pd

    values = pd.DataFrame({"layer": [0, 0, 0, 0, 1], "value": [1.0, 3.0, 1.0, 3.0, 7.0]})
    band = run_figures.mean_band(values)
    half = 1.96 * (4 / 3) ** 0.5 / 2
    assert band.loc[0, ["mean", "low", "high"]].tolist() == pytest.approx([2, 2 - half, 2 + half])
    assert band.loc[1, "mean"] == 7


def test_figure_text_holds_no_formula_and_no_control_character():
    assert style.figure_text("a$b$\x00\u202e\nc") == r"a\$b\$" + "\ufffd\ufffd c"
    assert len(printable("x" * 100)) == 60


def test_looks_differ():
    names = ["gd", "lcgd", "random_direction", "label_shuffled", "adam", "full_batch", "replay"]
    chosen = style.looks(names)
    assert len({(look.color, look.marker) for look in chosen.values()}) == len(names)
    assert style.looks(["lcgd"])["lcgd"] == chosen["lcgd"]


def test_scores_json_of_the_fixture_is_strict(first_look):
    json.loads((first_look / "aaa" / "scores.json").read_text(), parse_constant=pytest.fail)
