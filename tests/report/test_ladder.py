"""What the ladder shows, read off its specification."""

from __future__ import annotations

import numpy as np
import pytest

from figure_cases import by_name, encoded, every, results, rows
from iclgd.report import ladder
from iclgd.results import rates
from iclgd.results.frame import overall


def test_the_ladder_stands_between_the_best_floor_and_the_best_ceiling():
    made = results(("lcgd", "replay", "gd", "random_direction", "none"))
    figure = by_name(ladder.ladder(made))["ladder/mechanisms"]
    shown = [row for row in rows(figure) if row["value"] == 0]
    means = {row["variant"]: row["mean"] for row in shown}
    assert {row["floor"] for row in shown} == {max(means["No update"], means["Random direction"])}
    assert {row["ceiling"] for row in shown} == {means["ICL replayed"]}
    order = next(y["sort"] for y in encoded(figure, "y") if y.get("field") == "about")
    assert order == ["No update", "Random direction", "GD", "LCGD", "ICL replayed"]


def test_planted_truths_are_on_the_ladder_and_in_no_curve():
    both, alone = (
        every(results(("gd", "mean_shift"), ("sim_aou", "recovered"), layers=3, reference__name=names))
        for names in (["icl", "gd"], ["icl"])
    )
    shown = rows(both["layers/sim_aou"])
    assert len(shown) == len(rows(alone["layers/sim_aou"])) and "setting" not in shown[0]
    assert any("planted" in row for row in rows(both["ladder/mechanisms"]))


def test_the_ladder_shows_what_mechanisms_see_their_score_against_themselves_and_accuracy_between_zero_shot_and_icl():
    scores = ("sim_aou", "recovered", "accuracy/zsl", "accuracy/icl", "accuracy/ft")
    truths = ["icl", "mean_shift", "gd"]
    made = results(("gd", "mean_shift", "exact_patch"), scores, reference__name=truths)
    figure = by_name(ladder.ladder(made))["ladder/mechanisms"]
    shown = {(row["variant"], row["value"]): row for row in rows(figure)}
    assert {row["variant"]: (row["sees"], row["role"]) for row in shown.values()} == {
        "GD": ("demonstrations", "variant"),
        "Mean shift": ("calibration", "mechanism"),
        "Exact patch": ("queries", "anchor"),
    }
    means = overall(made.summary).set_index(["score", "finetune.name", "reference.name"])["mean"]
    for at, score in enumerate(("sim_aou", "recovered", "accuracy/ft")):
        assert shown["GD", at]["mean"] == pytest.approx(means[score, "gd", "icl"], rel=1e-4)
        assert shown["GD", at]["planted"] == pytest.approx(means[score, "gd", "gd"], rel=1e-4)
        assert shown["Exact patch", at]["planted"] is None
    for column, setting in (("floor", "zsl"), ("ceiling", "icl")):
        mean = means[f"accuracy/{setting}"].xs("icl", level="reference.name").mean()
        assert shown["GD", 2][column] == pytest.approx(mean, rel=1e-4)
    assert "Hollow" in figure.caption and "(of accuracy: ICL)" in figure.caption


def test_bounds_of_the_ladder_are_those_of_the_same_setting():
    scores = ("sim_aou", "accuracy/zsl", "accuracy/icl", "accuracy/ft")
    made = results(("gd", "none"), scores, task__shots=[4, 8])
    figure = by_name(ladder.ladder(made))["ladder/mechanisms"]
    means = overall(made.summary).set_index(["score", "task.shots"])["mean"]
    for row in rows(figure):
        score, shots = scores[row["value"] * 3], int(row["about"][-1])
        of = means.loc["accuracy/icl", shots].mean() if row["value"] else None
        assert row.get("ceiling") == (of and pytest.approx(of, rel=1e-4)), score
        if not row["value"]:
            assert row["floor"] in [one["mean"] for one in rows(figure) if one["about"] == f"No update · shots {shots}"]


def test_a_variant_stands_on_the_ladder_once_at_the_rate_that_its_other_draws_choose():
    made = results(("gd", "lcgd", "none"), finetune__lr=[1e-3, 1e-2, 1e-1], task__shots=[4, 8])
    figure = by_name(ladder.ladder(made))["ladder/mechanisms"]
    among, _ = rates.contenders(made)
    expected = {(one.variant, one.others["task.shots"]): np.mean(list(one.values["sim_aou"].values())) for one in among}
    shown = {row["about"]: row["mean"] for row in rows(figure) if row["value"] == 0}
    assert len(shown) == len(expected) == 6 and "the other draws choose" in figure.caption
    assert shown["GD · shots 4"] == pytest.approx(expected["gd", 4], rel=1e-4)
    assert shown["LCGD · shots 8"] == pytest.approx(expected["lcgd", 8], rel=1e-4)
