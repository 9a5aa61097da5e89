"""Which rate stands for a variant, and what its differences from its rivals are."""

from __future__ import annotations

import numpy as np
import pytest

from iclgd.report import controls
from iclgd.report.runs_frame import read_runs
from iclgd.report.settings import group
from report_fixtures import LABELS, write_run

PUBLISHED, BETTER, WORSE = 5e-4, 5e-3, 5e-2
SHIFTS = {PUBLISHED: 0.0, BETTER: 0.2, WORSE: -0.1}


def sweep(root, seeds=(0, 1, 2), variants=("gd", "lcgd", "lcgd_norm_matched", "random_direction")):
    for variant in variants:
        for lr, shift in SHIFTS.items():
            for seed in seeds:
                write_run(root / f"{variant}{lr}{seed}", variant=variant, lr=lr, seed=seed, shift=shift)
    for variant in ("none", "activation_match"):
        for seed in seeds:
            write_run(root / f"{variant}{seed}", variant=variant, seed=seed, diverged=variant == "none", shift=0.5,
                      scores=(*LABELS, "sim_aou_reordered", "sim_am_delta_reordered"))  # fmt: skip
    return read_runs([root]).finished


def test_a_variant_stands_at_its_best_rate_and_at_the_published_one(tmp_path):
    runs = sweep(tmp_path)
    chosen = [(c.entry.runs[0].variant, c.entry.runs[0].lr, c.rate) for c in controls.contenders(group(runs))]
    for variant in ("gd", "lcgd", "lcgd_norm_matched", "random_direction"):
        rates = {rate: lr for name, lr, rate in chosen if name == variant}
        assert rates == {"best of 3 rates": BETTER, "published rate": PUBLISHED}
    assert [rate for name, _, rate in chosen if name in ("none", "activation_match")] == ["", ""]
    assert not any("Best at the lowest or highest" in note for note in controls.controls(runs).notes)


def test_the_best_rate_may_be_the_published_one(tmp_path):
    for lr, shift in ((PUBLISHED, 0.3), (BETTER, 0.0)):
        write_run(tmp_path / str(lr), variant="gd", lr=lr, shift=shift)
    (only,) = controls.contenders(group(read_runs([tmp_path]).finished))
    assert (only.entry.runs[0].lr, only.rate) == (PUBLISHED, "best of 2 rates, the published one")
    assert only.at_edge


def test_a_rate_that_diverged_is_not_the_best(tmp_path):
    write_run(tmp_path / "a", variant="gd", lr=BETTER, diverged=True, shift=1.0)
    write_run(tmp_path / "b", variant="gd", lr=WORSE)
    (best,) = controls.contenders(group(read_runs([tmp_path]).finished))
    assert best.entry.runs[0].lr == WORSE


def test_activation_match_bounds_sim_aou_and_nothing_else(tmp_path):
    groups = group(sweep(tmp_path))
    floor, ceiling, noise = controls.bounds(groups, "sim_aou")
    matched = [run.estimate("sim_aou").mean for e in groups for run in e.runs if run.variant == "activation_match"]
    random = [e for e in groups if e.runs[0].variant == "random_direction" and e.runs[0].lr == BETTER]
    assert ceiling == pytest.approx(np.mean(matched))
    assert floor == pytest.approx(np.mean([run.estimate("sim_aou").mean for run in random[0].runs]))
    assert np.isfinite(noise)
    _, ceiling, noise = controls.bounds(groups, "sim_am_delta")
    assert np.isnan(ceiling) and np.isfinite(noise)


def test_differences_are_paired_at_each_variants_best_rate(tmp_path):
    runs = sweep(tmp_path)
    table = controls.why_lcgd(runs)
    at_best = {(r.variant, r.seed): r.estimate("sim_aou").mean for r in runs if r.lr == BETTER}
    record = next(r for r in table.records if (r["first"], r["second"], r["score"]) == ("lcgd", "gd", "sim_aou"))
    expected = [at_best["lcgd", seed] - at_best["gd", seed] for seed in range(3)]
    assert record["difference"] == pytest.approx(np.mean(expected))
    assert (record["over"], record["n"]) == ("seeds", 3)
    asked = [row[2] for row in table.rows]
    assert "lcgd_norm_matched minus gd" in asked and "lcgd minus gd_norm_matched" not in asked
    assert not any("One draw only" in note for note in table.notes)


def test_one_draw_says_that_a_floor_needs_several(tmp_path):
    table = controls.controls(sweep(tmp_path, seeds=(0,)))
    assert any("One draw only" in note for note in table.notes)
    assert ("reviews", "pretrained", "ICL, reordered (noise ceiling)") in {row[:3] for row in table.rows}


def test_without_controls_there_are_no_such_tables(tmp_path):
    write_run(tmp_path / "gd")
    runs = read_runs([tmp_path]).finished
    assert controls.controls(runs) is None and controls.why_lcgd(runs) is None


def test_settings_that_differ_in_more_than_the_rate_are_never_paired(tmp_path):
    for shots in (4, 8):
        write_run(tmp_path / f"gd{shots}", variant="gd", shots=shots, shift=shots)
    write_run(tmp_path / "lcgd", variant="lcgd", shots=8, shift=8)
    write_run(tmp_path / "none", variant="none", shots=8)
    runs = read_runs([tmp_path]).finished
    table = controls.why_lcgd(runs)
    (record,) = [r for r in table.records if (r["first"], r["score"]) == ("lcgd", "sim_aou")]
    assert record["shots"] == 8 and record["difference"] == pytest.approx(0.1)
    shown = controls.controls(runs)
    assert "shots" in shown.header and len({row[:6] for row in shown.rows if row[3] == "gd"}) == 2
