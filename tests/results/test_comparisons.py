"""Rates are chosen on other draws, comparisons are paired and asked for by the variants, and few draws mark nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import figure_cases as cases
from iclgd.results import comparisons, rates
from iclgd.results.frame import Results
from iclgd.statistics import draws_interval, smallest_difference
from report_fixtures import change, write_run

LOW, GOOD, HIGH = 5e-4, 5e-3, 5e-2
SHIFTS = {LOW: 0.0, GOOD: 0.2, HIGH: -0.1}
FEW = ("sim_aou", "sim_am_delta")
ROLES = {"none": "floor", "random_direction": "floor", "other": "control"}


def sweep(root, seeds=range(3), variants=("gd", "lcgd", "random_direction")):
    for variant in variants:
        for lr, shift in SHIFTS.items():
            for seed in seeds:
                looks = {"role": ROLES.get(variant, "variant"), "order": len(variant)}
                own = {"variant": variant, "lr": lr, "seed": seed, "shift": shift, "finetune": looks}
                write_run(root / f"{variant}{lr}{seed}", scores=FEW, examples=6, **own)
    return Results.read([root])


def found(results):
    among, notes = rates.contenders(results)
    return {one.variant: one for one in among}, notes, comparisons.differences(results, among)


def test_each_draw_stands_at_the_rate_that_the_others_choose(tmp_path):
    results = sweep(tmp_path)
    write_run(tmp_path / "lucky", variant="gd", lr=HIGH, seed=3, shift=3.0, scores=FEW)  # one draw at one rate only
    among, _, _ = found(results)
    assert {tuple(one.rates.values()) for one in among.values()} == {(GOOD,) * 3} and not among["gd"].at_edge
    runs = {(run.settings["finetune.name"], run.settings["finetune.lr"], run.settings["seed"]): run for run in results}
    held = among["gd"].values["sim_am_delta"]  # SimAOU chooses, and the others follow
    assert held == {(seed, None): runs["gd", GOOD, seed].mean("sim_am_delta") for seed in range(3)}


def test_numbers_at_chosen_rates_by_hand(tmp_path, monkeypatch):
    undefined = {0: (), 1: ("sim_am_delta", "random"), 2: ("sim_am_delta",), 3: ("sim_am_delta", "random")}
    for seed, lucky in enumerate((0.0, 0.0, 1.0, 0.0)):
        for lr, shift in ((LOW, 0.1), (HIGH, lucky)):
            folder = write_run(tmp_path / f"{lr}{seed}", lr=lr, seed=seed, shift=shift, scores=(*FEW, "random"))
            for name in {*undefined[seed], "random"}:
                change(folder, "scores.json", **{f"{name}__mean": None, f"{name}__ci": None})
    write_run(tmp_path / "other", variant="lcgd", seed=0, scores=(*FEW, "random"))
    results = Results.read([tmp_path])
    monkeypatch.setitem(results.scores, "sim_aou", replace(results.scores["sim_aou"], limits=(0.05, 2)))
    chosen = rates.at_chosen_rates(results, list(found(results)[0].values()))
    by_score = {record["score"]: record for record in chosen.to_dict("records")}
    values = [0.1, 0.11, 0.22, 0.13]  # 0.1 + 0.01 seed, and 0.1 more at the low rate, where the third draw stands
    told, over = by_score["sim_aou"], draws_interval(values, (0.05, 2), chosen=True)
    assert (told["rates"], told["draws"], told["unit"]) == ("0.0005, 0.05 (edge)", 4, "draws")
    assert [told[name] for name in ("mean", "std", "low", "high")] == pytest.approx(
        [np.mean(values), np.std(values, ddof=1), over.low, over.high]
    )
    assert told["low"] == 0.05, "cut at the score's limits"
    assert (told["layers"], by_score["accuracy/ft"]["layers"]) == (6, 0)
    one, none = by_score["sim_am_delta"], by_score["random"]
    assert one["draws"] == 1 and math.isfinite(one["mean"]) and math.isnan(one["std"])
    assert none["draws"] == 0 and math.isnan(none["mean"]) and math.isnan(none["std"])
    rows = rates.summary_at_chosen_rates(results)
    assert list(rows.index) == list(range(len(rows))) and rows["layer"].dtype == "Int64"
    rows = rows.set_index(["finetune.name", "score"])
    assert sorted(rows.index) == sorted((name, score) for name in ("gd", "lcgd") for score in results.scores)
    assert rows.loc[("gd", "sim_aou"), ["mean", "rates"]].tolist() == [told["mean"], told["rates"]]
    assert rows.loc[("gd", "sim_aou"), ["unstable", "diverged", "examples"]].tolist() == [0, 0, "all"]
    assert rows["layer"].isna().all() and rows.loc[("lcgd", "sim_aou"), "mean"] == pytest.approx(0.2)


def test_an_unstable_run_has_scores_but_neither_chooses_nor_compares(tmp_path):
    for seed in range(3):
        runs = [
            (write_run(tmp_path / f"low{seed}", lr=LOW, seed=seed, scores=FEW), False),
            (write_run(tmp_path / f"good{seed}", lr=GOOD, seed=seed, shift=1.0, scores=FEW), seed == 2),
            (write_run(tmp_path / f"lcgd{seed}", variant="lcgd", seed=seed, scores=FEW), seed == 1),
        ]
        for folder, unstable in runs:
            change(folder, "status.json", unstable=unstable)
    among, _, made = found(Results.read([tmp_path]))
    assert set(among["gd"].rates.values()) == {LOW} and among["gd"].at_edge, "the lowest of two"
    assert set(among["lcgd"].values["sim_aou"]) == {(0, None), (2, None)}
    assert {(one.first.variant, one.results["sim_aou"].draws) for one in made} == {("lcgd", 2)}


def test_marks_take_five_draws_and_are_corrected_for_all(tmp_path):
    among, _, made = found(sweep(tmp_path, seeds=range(5)))
    told = {(one.first.variant, one.second.variant, s): r for one in made for s, r in one.results.items()}
    assert len(told) == 6 and all(result.draws == 5 for result in told.values())
    first, second = (list(among[name].values["sim_aou"].values()) for name in ("lcgd", "gd"))
    t = stats.ttest_rel(first, second).statistic / math.sqrt(2.5)  # the rates were chosen on these draws
    p = 2 * stats.t.sf(abs(t), 4)
    result = told["lcgd", "gd", "sim_aou"]
    assert result.p == pytest.approx(p) and p <= result.p_holm <= 6 * p and result.marked


def test_a_variant_says_what_it_is_compared_with(tmp_path):
    for variant, against in (("gd", {}), ("mine", {"gd": "what mine adds", "absent": "nothing"}), ("other", None)):
        for seed in range(2):
            looks = {"against": against, "role": ROLES.get(variant, "variant")}
            write_run(tmp_path / f"{variant}{seed}", variant=variant, seed=seed, finetune=looks, scores=FEW)
    _, _, made = found(Results.read([tmp_path]))
    assert [(one.first.variant, one.second.variant, one.asks) for one in made] == [("mine", "gd", "what mine adds")]


@pytest.mark.parametrize("key", ["shots", "query_seed", "layers"])
def test_settings_that_differ_in_anything_else_are_never_paired(tmp_path, key):
    for variant, value in (("gd", 1), ("gd", 2), ("lcgd", 2)):
        for seed in range(3):
            name = f"{variant}{value}{seed}"
            folder = write_run(tmp_path / name, variant=variant, seed=seed, shift=value, scores=FEW)
            change(folder, **{f"{'finetune' if key == 'layers' else 'task'}__{key}": value})
    _, _, made = found(Results.read([tmp_path]))
    assert len(made) == 1 and made[0].results["sim_aou"].mean == pytest.approx(0.102)


def test_what_a_sweep_can_tell_is_said(tmp_path):
    _, _, made = found(sweep(tmp_path / "few"))
    assert "With fewer than 5 draws no comparison is marked" in comparisons.power_text(made)
    _, _, made = found(sweep(tmp_path / "five", seeds=range(5)))
    spread = np.nanmedian([result.spread for one in made for result in one.results.values()])
    smallest = smallest_difference(spread, 5, 0.05 / 6)  # of six comparisons
    text = comparisons.power_text(made)
    assert f"spread by {spread:.3f} from draw to draw (median). That includes the error which choosing rates" in text
    assert f"A true difference of {smallest:.3f} would be marked four times in five" in text
    assert comparisons.power_text([]) == ""
    same = [replace(one, results={s: replace(r, spread=0.0) for s, r in one.results.items()}) for one in made]
    assert comparisons.power_text(same).startswith("One draw of demonstrations, or draws that do not differ")


def test_shares_at_chosen_rates_have_intervals(tmp_path):
    for lr, ft in ((LOW, 0.5), (HIGH, 0.75)):
        for seed in range(4):
            shares = (0.5, 0.7, ft + 0.05 * (seed % 2))
            write_run(tmp_path / f"{lr}{seed}", lr=lr, seed=seed, shift=ft, scores=FEW, accuracy=shares)
    results = Results.read([tmp_path])
    record = rates.at_chosen_rates(results, rates.contenders(results)[0]).set_index("score").loc["accuracy/ft"]
    expected = draws_interval([0.75, 0.8, 0.75, 0.8], trials=[20] * 4, chosen=True)
    assert (record["low"], record["high"]) == pytest.approx((expected.low, expected.high))
    assert record["low"] < 0.75 and record["high"] > 0.8


def test_the_edge_is_that_of_the_rates_tried_and_a_draw_that_is_never_sane_counts():
    lrs = [0.001, 0.01, 0.1, 1.0, 10.0]
    made = cases.results(("gd",), FEW, diverges=lambda s: s["finetune.lr"] in (lrs[0], lrs[-1]), finetune__lr=lrs)
    [one] = rates.contenders(made)[0]
    assert not {lrs[0], lrs[-1]} & set(one.rates.values()) and not one.at_edge
    made = cases.results(("gd", "lcgd"), FEW, diverges=lambda s: s["seed"] == 1 and s["finetune.name"] == "gd",
                         finetune__lr=lrs)  # fmt: skip
    among, notes = rates.contenders(made)
    assert [one.variant for one in among] == ["lcgd"]
    assert notes == ["GD: no rate at which every draw is sane and has a value, so that none can be chosen"]
    neither = {"own": {"norm": {"function": "x", "better": "neither", "headline": True}}}
    _, notes = rates.contenders(cases.results(("gd",), ("norm",), **neither, finetune__lr=[0.1, 1.0]))
    assert notes == ["GD: 2 rates and no headline score of which more or less is better"]


def test_a_mechanism_that_does_not_depend_on_the_rate_has_none_to_choose():
    def the_same(run, scores):
        if run.settings["finetune.name"] == "mean_shift":
            scores["sim_aou"] |= {"mean": 0.1 * run.settings["seed"], "layers": []}

    made = cases.changed(cases.results(("gd", "mean_shift"), ("sim_aou",), finetune__lr=[0.1, 1.0]), the_same)
    ready, notes = rates.contenders(made)
    among = {one.variant: one for one in ready}
    assert notes == ["Mean shift: the same values at each of 2 rates, shown at the lowest (0.1)"]
    assert (among["mean_shift"].tried, among["gd"].tried) == ((0.1,), (0.1, 1.0))
    rows = rates.summary_at_chosen_rates(made).set_index("finetune.name")
    assert rows.index.tolist() == ["mean_shift", "gd"] and rows["rates"].isna().tolist() == [True, False]
    assert rows.loc["mean_shift", "finetune.lr"] == 0.1


@pytest.mark.parametrize(("constant", "undefined"), [(False, {1e-6}), (True, set()), (False, {1e-6, 0.2})])
def test_a_rate_without_values_is_not_like_one_that_has_them(constant, undefined):
    def accuracies(run, scores):
        scores["accuracy/icl"] |= {"mean": 0.5, "layers": []}
        gone = run.settings["finetune.lr"] in undefined or (undefined and run.settings["seed"] > 0)
        scores["sim_aou"] |= {"mean": None if gone else 1.0, "layers": []}

    made = cases.results(("gd",), ("sim_aou", "accuracy/icl"), finetune__lr=[1e-6, 0.2])
    ready, notes = rates.contenders(cases.changed(made, accuracies))
    assert bool(ready) is constant and len(notes) == 1
    assert notes[0].startswith("GD: the same values at each of 2" if constant else "GD: no rate at which every draw is")


def test_trained_weights_are_compared_with_untrained_ones_by_seed(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"trained{seed}", seed=seed, scores=FEW)
        for drawn in (0, 1):
            folder = write_run(tmp_path / f"{seed}{drawn}", seed=seed, weights="random", shift=0.1 * drawn, scores=FEW)
            change(folder, model__weights_seed=drawn)
    _, _, made = found(Results.read([tmp_path]))
    (one,) = made
    assert one.results["sim_aou"].draws == 3
    assert one.results["sim_aou"].mean == pytest.approx(-0.05 - 0.001)  # 0.1 + 0.010 s - (0.15 + 0.011 s)


def test_untrained_weights_without_a_value_are_left_out_of_their_seed(tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"trained{seed}", seed=seed, scores=FEW)
        for drawn in (0, 1):
            folder = write_run(tmp_path / f"{seed}{drawn}", seed=seed, weights="random", scores=FEW)
            change(folder, model__weights_seed=drawn)
            if drawn:
                change(folder, "scores.json", sim_aou__mean=None, sim_aou__layers=[])
    [one] = found(Results.read([tmp_path]))[2]
    assert one.results["sim_aou"].draws == 2 and one.names({}) == ("gd, pretrained", "gd, random")
