"""The papers' tables from fixture folders, against golden files, and their escaping.

After a wanted change: ICLGD_WRITE_GOLDEN=1 pytest tests/test_report_tables.py, then read the difference.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from iclgd.report import finished_run, formats, published, runs_frame, summary, tables
from iclgd.report.formats import Table
from iclgd.report.settings import group
from report_fixtures import write_run

GOLDEN = Path(__file__).parent / "golden"
PAPER = {"model": "KoboldAI/fairseq-dense-1.3B", "shots": 32}


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> list[finished_run.FinishedRun]:
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
    return list(runs_frame.read_runs([root]).finished)


@pytest.mark.parametrize("name", ["table1", "table2", "table3"])
def test_tables_are_as_the_golden_ones(paper, name):
    table = getattr(tables, name)(paper)
    written = {
        "md": formats.to_markdown(table),
        "tex": formats.to_latex(table),
        "csv": formats.to_csv(table),
    }
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


def test_published_numbers_stand_beside_what_they_match_and_nothing_else(paper):
    table = tables.table2(paper)
    by_row = {(row[0], row[1]): row for row in table.rows}
    assert by_row["SimAOU", "gd"][2:] != ()
    tasks = table.header[2:]
    at = table.rows.index(by_row["SimAOU", "lcgd"])
    ours, theirs, gap = (dict(zip(tasks, table.rows[at + i][2:], strict=True)) for i in range(3))
    assert ours["sst2"].startswith("0.212 ± 0.012 [") and ours["sst2"].endswith("] *")
    assert theirs == {"sst2": "0.13 ± 0.01", "my_own": ""}  # table 2 of the paper
    assert gap == {"sst2": "+0.082", "my_own": ""}


@pytest.mark.parametrize("change", [{"shots": 16}, {"model": "gpt2"}])
def test_another_model_or_number_of_shots_is_not_compared(tmp_path, change):
    run = runs_frame.read_run(write_run(tmp_path / "run", **(PAPER | {"task": "sst2"} | change)))
    assert published.mean_and_std(run, "sim_aou") is None and published.layers(run, "sim_aou_norm") is None


def test_published_curves_average_to_the_published_table():
    numbers = published.published()
    for task, curves in numbers["layers"]["sim_am_delta"].items():
        for variant, curve in curves.items():
            assert len(curve) == 24
            assert math.fsum(curve) / 24 == pytest.approx(
                numbers["variants"]["sim_am_delta"][variant][task][0], abs=0.02
            )
    assert numbers["untrained_gd"]["sim_aou"]["pretrained"]["mr"] == numbers["variants"]["sim_aou"]["gd"]["mr"]


def test_untrained_gd_is_compared_with_table_1(paper):
    run = next(run for run in paper if run.weights == "random")
    assert published.mean_and_std(run, "sim_am_delta") == (0.11, 0.04)


def test_seed_summary_by_hand(paper):
    runs = [run for run in paper if (run.task, run.variant, run.weights) == ("sst2", "gd", "pretrained")]
    found = summary.summarise(runs, "sim_aou")  # means 0.10, 0.11, 0.12
    assert (found.mean, found.std, found.seeds) == (pytest.approx(0.11), pytest.approx(0.01), 3)
    half = 4.302652729911275 * 0.01 / 3**0.5  # Student's t with 2 degrees of freedom
    assert (found.low, found.high) == (pytest.approx(0.11 - half), pytest.approx(0.11 + half))


def test_an_interval_ends_where_the_score_does(tmp_path):
    for seed, share in enumerate((0.1, 0.9)):
        write_run(tmp_path / str(seed), seed=seed, accuracy=(0.5, share, 0.5))
    found = summary.summarise(runs_frame.read_runs([tmp_path]).finished, "accuracy/icl")
    assert (found.mean, found.low, found.high) == (pytest.approx(0.5), 0.0, 1.0)


def test_curve_of_one_seed_has_standard_errors_and_of_several_standard_deviations(paper):
    runs = [run for run in paper if (run.task, run.variant, run.weights) == ("sst2", "gd", "pretrained")]
    mean, half = summary.curve(runs[:1], "sim_aou")
    values = runs[0].values["sim_aou"]
    assert mean == pytest.approx(values.mean(0))
    assert half == pytest.approx(1.96 * values.std(0, ddof=1) / len(values) ** 0.5)
    mean, half = summary.curve(runs, "sim_aou")
    assert half == pytest.approx(np.std([run.layers("sim_aou") for run in runs], axis=0, ddof=1))


def test_differences_are_paired_and_say_which_can_be_told(tmp_path):
    for seed in range(3):
        for variant in ("gd", "lcgd"):
            write_run(tmp_path / f"{variant}{seed}", variant=variant, seed=seed)
    gd, lcgd = group(runs_frame.read_runs([tmp_path]).finished)
    found = {d.score: d.result for d in summary.differences([(lcgd, gd)], ["sim_aou", "sim_am_delta", "nothing"])}
    assert set(found) == {"sim_aou", "sim_am_delta"}
    assert found["sim_aou"].difference.mean == pytest.approx(0.102)
    assert found["sim_aou"].over == "seeds" and found["sim_aou"].n == 3
    assert found["sim_am_delta"].distinguishable


def test_diverged_and_undefined_are_said_not_averaged(tmp_path):
    write_run(tmp_path / "a", variant="gd")
    write_run(tmp_path / "b", variant="lcgd", diverged=True)
    write_run(tmp_path / "c", variant="none", scores=("sim_am",))
    rows = {(row[0], row[1]): row[2] for row in tables.table2(runs_frame.read_runs([tmp_path]).finished).rows}
    assert rows["SimAOU", "lcgd"] == "diverged"
    assert ("SimAOU", "none") not in rows  # not measured is not undefined
    assert rows["SimAM", "none"] == "0.050 [0.030, 0.070] *"
    assert rows["accuracy zsl", "all"] == "50.0% [40.0, 60.0]"


def test_variants_with_rates_of_their_own_are_compared_with_gd_at_its_own(tmp_path):
    for lr in (1e-3, 1e-2):  # 1e-3 is the task's own rate for gd
        write_run(tmp_path / f"gd{lr}", lr=lr, shift=lr * 50)
    write_run(tmp_path / "adam", variant="adam", lr=3e-4)
    found = [r for r in tables.table2(runs_frame.read_runs([tmp_path]).finished).records if r["variant"] == "adam"]
    aou = next(record for record in found if record["score"] == "sim_aou")
    assert aou["over_baseline"] == pytest.approx(0.05 - (0.10 + 0.05)) and aou["distinguishable"]


def test_a_number_that_rounds_to_nothing_has_no_sign():
    assert tables.number(summary.Summary(-0.0001, float("nan"), -0.2, 0.0004, 1)) == "0.000 [-0.200, 0.000]"


HOSTILE = "<script>alert(1)</script>|&%$#_{}~^\\`*\x00\u202e\n=1+1"


def _table(text: str) -> Table:
    return Table("t", text, (text, "value"), 1, ((text, "1"),), (text,), ({"name": text, "value": 1.0},))


def test_markup_is_escaped_everywhere():
    markdown, latex, table = formats.to_markdown(_table(HOSTILE)), formats.to_latex(_table(HOSTILE)), _table("=1+1")
    assert "<" not in markdown and "&lt;script&gt;" in markdown
    assert all(line.replace("\\|", "").count("|") == 3 for line in markdown.splitlines() if line.startswith("|"))
    body = latex.split("\\midrule")[1].split("\\bottomrule")[0]
    assert body.count("&") - body.count("\\&") == 1
    assert r"\textless{}script\textgreater{}" in body and r"\textbackslash{}" in body
    assert not set("\x00\u202e") & set(markdown + latex)
    assert "'=1+1" in formats.to_csv(table)


@given(st.text(max_size=40))
def test_any_text_keeps_the_tables_shape(text):
    table = _table(text)
    lines = [line for line in formats.to_markdown(table).split("\n") if line.startswith("|")]
    assert len(lines) == 3
    rows = list(csv.reader(io.StringIO(formats.to_csv(table))))
    assert [len(row) for row in rows] == [2, 2]
    latex = formats.to_latex(table)
    stripped = latex.replace(r"\{", "").replace(r"\}", "")
    assert stripped.count("{") == stripped.count("}")
    assert latex.count("\\\\\n") == 2


def test_a_run_that_two_sweeps_made_counts_once(tmp_path):
    for sweep in ("single", "multirun"):
        write_run(tmp_path / sweep / "0123456789ab")
    found = runs_frame.read_runs([tmp_path])
    assert len(found.finished) == 1
    assert [reason.startswith("is the same run as") for _, reason in found.left_out] == [True]


def test_precision_and_what_is_compared_with_are_settings_not_draws(tmp_path):
    for name, dtype, other in (("a", "float32", "gd"), ("b", "bfloat16", "gd"), ("c", "float32", "lcgd")):
        folder = write_run(tmp_path / name)
        environment = json.loads((folder / "environment.json").read_text()) | {"dtype": dtype}
        (folder / "environment.json").write_text(json.dumps(environment))
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["metric"]["compare_with"] = other
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    groups = group(runs_frame.read_runs([tmp_path]).finished)
    assert [len(entry.runs) for entry in groups] == [1, 1, 1]


def test_draws_of_untrained_weights_are_paired_with_their_own(tmp_path):
    for variant in ("gd", "lcgd"):
        for seed in range(3):
            folder = write_run(tmp_path / f"{variant}{seed}", variant=variant, weights="random", shift=10 * seed)
            config = yaml.safe_load((folder / "config.yaml").read_text())
            config["model"]["weights_seed"] = seed
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
    first, second = group(runs_frame.read_runs([tmp_path]).finished)
    (found,) = summary.differences([(second, first)], ["sim_aou"])
    assert found.result.n == 3 and found.result.difference.mean == pytest.approx(0.1)


def test_a_diverged_seed_does_not_shrink_the_error_bars(tmp_path):
    for seed in range(3):
        write_run(tmp_path / str(seed), seed=seed, diverged=seed == 0)
    runs = runs_frame.read_runs([tmp_path]).finished
    known = np.array([run.layers("sim_aou") for run in runs if not run.diverged])
    assert summary.curve(runs, "sim_aou")[1] == pytest.approx(known.std(0, ddof=1))
    write_run(tmp_path / "other" / "0", diverged=True)
    write_run(tmp_path / "other" / "1", seed=1)
    pair = runs_frame.read_runs([tmp_path / "other"]).finished
    assert summary.curve(pair, "sim_aou")[1] == pytest.approx(summary.curve(pair[1:], "sim_aou")[1])


def test_the_frame_as_csv_and_links_in_markdown_are_only_text(tmp_path):
    folder = write_run(tmp_path / "run", task='=HYPERLINK("https://e")', model="a/![x](https://e/p.png)")
    runs = runs_frame.read_runs([tmp_path]).finished
    assert "'=HYPERLINK" in formats.frame_to_csv(runs_frame.frame(runs)) and folder.is_dir()
    assert "](https" not in formats.to_markdown(tables.table3(runs))
