"""Tables from fixture folders, against golden files, in the layout that the user asks for, and their escaping.

After a wanted change: ICLGD_WRITE_GOLDEN=1 pytest tests/report/test_tables.py, then read the difference.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclgd.report import formats, tables
from iclgd.report.formats import Table
from iclgd.results import published
from iclgd.results.frame import Results
from iclgd.results.reading import ReportError
from report_fixtures import write_run

GOLDEN = Path(__file__).parent / "golden"
PAPER = {"model": "KoboldAI/fairseq-dense-1.3B", "shots": 32}


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> Results:
    """Two tasks, two variants, three seeds on the paper's model; untrained weights on one task."""
    root = tmp_path_factory.mktemp("paper")
    for seed in range(3):
        for task in ("sst2", "my_own"):
            for variant in ("gd", "lcgd"):
                draw = {"task": task, "variant": variant, "seed": seed, "permutation": seed}
                write_run(root / f"{task}-{variant}-{seed}", **PAPER, **draw)
        for weights in ("keep_embeddings", "random"):
            low = (0.5, 0.5, 0.5)
            write_run(root / f"{weights}-{seed}", **PAPER, task="sst2", weights=weights, seed=seed, permutation=seed,
                      shift=-0.05, accuracy=low)  # fmt: skip
    return Results.read([root])


def made(results: Results, name: str) -> Table:
    (table,) = [table for table in tables.tables(results) if table.name == name]
    return table


@pytest.mark.parametrize("name", ["summary", "comparisons"])
def test_tables_are_as_the_golden_ones(paper, name):
    table = made(paper, name)
    written = {"md": formats.to_markdown(table), "tex": formats.to_latex(table), "csv": formats.to_csv(table.records)}
    for ending, text in written.items():
        path = GOLDEN / f"{name}.{ending}"
        if os.environ.get("ICLGD_WRITE_GOLDEN"):
            path.write_text(text, encoding="utf-8", newline="")
        golden = path.read_text("utf-8")
        if ending != "csv":
            assert text == golden
            continue
        ours, theirs = (list(csv.reader(io.StringIO(content))) for content in (text, golden))
        assert [len(row) for row in ours] == [len(row) for row in theirs]
        for one, other in zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True):
            assert one == other or float(one) == pytest.approx(float(other), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("change", [{"task.shots": 16}, {"model.name": "gpt2"}])
def test_another_model_or_number_of_shots_is_not_compared(paper, change):
    setting = {**paper.runs[0].settings, "task.name": "sst2", "model.weights": "pretrained", "finetune.name": "gd"}
    setting |= {"score": "sim_aou_norm", "layer": 3}
    assert published.mean_and_std(setting) and published.of_layer(setting)
    assert published.mean_and_std(setting | change) is published.of_layer(setting | change) is None
    untrained = setting | {"score": "sim_aou", "model.weights": "random"}
    assert published.mean_and_std(untrained) and published.mean_and_std(untrained | {"finetune.name": "lcgd"}) is None


def test_rows_and_columns_as_the_user_says(paper):
    table = tables.summary(paper, ["task", "score"], ["finetune.name", "model.weights"], ["SimAOU", "accuracy/icl"])
    assert table.header[:3] == ("task", "score", "draws")
    assert set(table.header[3:]) == {"gd · pretrained", "lcgd · pretrained", "gd · keep_embeddings", "gd · random"}
    rows = {row[:2]: dict(zip(table.header[3:], row[3:], strict=True)) for row in table.rows}
    assert rows["sst2", "SimAOU"]["lcgd · pretrained"].startswith("0.212 ± 0.012 [")
    assert rows["my_own", "SimAOU"]["gd · random"] == ""  # not measured is not undefined
    named = tables.summary(paper, ["variant"], [], ["sim_aou"])
    assert named.header[:3] == ("variant", "weights", "task")  # what varied and was not named comes after
    with pytest.raises(ReportError, match="no column 'rate'"):
        tables.summary(paper, ["rate"])
    with pytest.raises(ReportError, match="no run has a score 'sim'"):
        tables.summary(paper, [], [], ["sim"])


def test_diverged_and_undefined_are_said_not_averaged(tmp_path):
    write_run(tmp_path / "a", variant="gd")
    write_run(tmp_path / "b", variant="lcgd", diverged=True)
    write_run(tmp_path / "c", variant="none", scores=("sim_am",))
    table = tables.summary(Results.read([tmp_path]))
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert rows["lcgd"]["SimAOU"] == "diverged" and rows["lcgd"]["draws"] == "0, 1 diverged"
    assert rows["lcgd"]["Accuracy (ICL)"] == "80.0% [70.0, 90.0]"
    assert (rows["none"]["SimAOU"], rows["none"]["SimAM"]) == ("", "0.050 [0.030, 0.070]")


def test_a_wide_table_is_cut_into_blocks_that_fit_the_page_and_lose_no_column():
    row = ("a long name of a variant", *["0.123 ± 0.045 [-0.123, 0.456]"] * 20)
    table = Table("t", "t", ("variant", *["score"] * 20), 1, (row,))
    blocks = table.blocks()
    assert [column for block in blocks for column in block] == list(range(1, 21)) and len(blocks) == 3


def test_numbers_as_text():
    assert formats.number(-0.0001, -0.2, 0.0004) == "0.000 [-0.200, 0.000]"
    assert formats.number(0.5, 0.25, 0.75, 0.1, share=True) == "50.0% ± 10.0 [25.0, 75.0]"
    assert formats.number(0.00211, 0.00181, digits=5, high=0.0024) == "0.00211 [0.00181, 0.00240]"
    assert (formats.number(math.nan), formats.number(-0.0001, sign="+")) == ("–", "+0.000")  # noqa: RUF001


HOSTILE = "<script>alert(1)</script>|&%$#_{}~^\\`*\x00\u202e\n=1+1"


def _table(text: str) -> Table:
    return Table("t", text, (text, "value"), 1, ((text, "1"),), (text,), ({"name": text, "value": 1.0},))


def test_markup_is_escaped_everywhere():
    markdown, latex = formats.to_markdown(_table(HOSTILE)), formats.to_latex(_table(HOSTILE))
    assert "<" not in markdown and "&lt;script&gt;" in markdown
    assert all(line.replace("\\|", "").count("|") == 3 for line in markdown.splitlines() if line.startswith("|"))
    body = latex.split("\\midrule")[1].split("\\bottomrule")[0]
    assert body.count("&") - body.count("\\&") == 1
    assert r"\textless{}script\textgreater{}" in body and r"\textbackslash{}" in body
    assert not set("\x00\u202e") & set(markdown + latex)


@given(st.text(max_size=40))
def test_any_text_keeps_the_tables_shape(text):
    table = _table(text)
    lines = [line for line in formats.to_markdown(table).split("\n") if line.startswith("|")]
    assert len(lines) == 3
    rows = list(csv.reader(io.StringIO(formats.to_csv(table.records))))
    assert [len(row) for row in rows] == [2, 2]
    latex = formats.to_latex(table)
    stripped = latex.replace(r"\{", "").replace(r"\}", "")
    assert stripped.count("{") == stripped.count("}")
    assert latex.count("\\\\\n") == 2


def test_links_in_markdown_are_only_text(tmp_path):
    write_run(tmp_path / "run", model="a/![x](https://e/p.png)")
    results = Results.read([tmp_path])
    assert "](https" not in formats.to_markdown(tables.summary(results, ["model"]))


def test_variants_at_chosen_rates_show_what_finetuning_has_a_part_in(tmp_path):
    for lr, shift in ((0.01, 0.0), (0.1, 0.5)):
        for seed in range(3):
            write_run(tmp_path / f"gd{lr}{seed}", lr=lr, seed=seed, shift=shift, scores=("sim_aou",))
        write_run(tmp_path / f"lcgd{lr}", variant="lcgd", lr=lr, shift=shift, scores=("sim_aou",))
    table = made(Results.read([tmp_path]), "held_out")
    assert table.header == ("variant", "chosen rates", "draws", "SimAOU", "Accuracy (FT)")  # but not that of ICL
    assert table.rows == (("gd", "0.1 (edge)", "3", "0.610 ± 0.010 [0.572, 0.648]", "70.0% ± 0.0 [48.1, 85.5]"),)
    assert (
        table.notes[1].startswith("Edge: ") and table.notes[2] == "lcgd: 2 rates and one draw, so that no rate is best"
    )
