"""The paragraph on a sweep of mechanisms, against means and tests that can be read off the made-up runs."""

from dataclasses import replace

import numpy as np
from scipy import stats

from figure_cases import changed, results
from iclgd.results import rates
from iclgd.results.findings import findings
from iclgd.statistics import compare, draws_interval

SCORES = ("sim_aou", "recovered")


def test_the_nearest_has_its_interval_what_it_sees_and_what_is_not_told_apart():
    among = ("none", "gd", "mean_shift", "task_vector", "exact_patch", "replay")  # each .04 above the one before
    made = results(among, SCORES, seeds=5)
    [paragraph] = findings(made)
    by_name = {one.variant: one.values["sim_aou"] for one in rates.contenders(made)[0]}
    mean = np.mean(list(by_name["task_vector"].values()))
    assert f"By SimAOU, Task vector is nearest to ICL: {mean:.3f} [" in paragraph  # anchors and floors are none
    p = {name: compare(by_name["task_vector"], by_name[name]).p for name in ("mean_shift", "gd")}
    possible = [made.labels[name] for name in p if p[name] * 2 >= 0.05]
    assert f"(sees calibration). May be nearer: {', '.join(possible) or 'none of the others'}." in paragraph
    assert paragraph.count("All differ from ICL itself.") == 2


def test_what_may_be_nearest_is_compared_with_the_nearest_alone():
    def spread_out(run, scores):  # differences of one mechanism from the nearest have p = .02, of the other p = .03
        seed, name = run.settings["seed"], run.settings["finetune.name"]
        shift = {"gd": 0.0, "mean_shift": -0.1 - 0.0377 * (seed - 2), "task_vector": -0.1 - 0.0429 * (seed - 2)}
        scores["sim_aou"]["mean"] = 0.8 + shift[name]

    [paragraph] = findings(changed(results(("gd", "mean_shift", "task_vector"), ("sim_aou",), seeds=5), spread_out))
    assert "By SimAOU, GD is nearest" in paragraph and "May be nearer: Task vector." in paragraph


def test_few_draws_test_nothing_each_task_has_its_own_and_planted_truths_do_not_count():
    made = results(("gd", "mean_shift"), SCORES, seeds=2, task__name=["a", "b"], reference__name=["icl", "gd"])
    first, second = findings(made)
    assert first.startswith("a: By SimAOU, Mean shift is nearest") and second.startswith("b: ")
    assert first.endswith("With fewer than 5 draws nothing is tested.")
    assert not findings(results(("gd", "mean_shift"), SCORES, seeds=2, reference__name=["gd"]))
    assert not findings(results(("gd", "lcgd"))) and not findings(results(("gd", "mean_shift", "none"), ("mine",)))[1:]


def test_the_last_words_say_in_short_what_context_does_and_who_does_it_too():
    scores = ("accuracy/zsl", "accuracy/icl", "recovered")
    made = results(("none", "gd", "lcgd"), scores, seeds=3)
    means = {run.config["finetune"]["name"]: [] for run in made}
    for run in made:
        means[run.config["finetune"]["name"]].append(run.mean("recovered"))
    shares = {}
    for name, values in means.items():
        mean, half = np.mean(values), stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
        shares[name] = f"{mean:.0%} [{100 * (mean - half):z.0f}, {100 * (mean + half):z.0f}]"
    [said] = findings(made)  # no mechanism has run, so that none is nearest
    assert said.startswith("In short: with 8 demonstrations in its prompt the model answers ")
    assert "(accuracy). Of the change" in said
    assert said.endswith(f"these reproduce: LCGD {shares['lcgd']}, GD {shares['gd']}.")
    two = findings(results(("gd",), scores, seeds=3, task__name=["a", "b"]))
    assert [text[:13] for text in two] == ["In short (a):", "In short (b):"]
    off = findings(results(("gd",), scores, seeds=3, task__evaluate=[None, "b"]))
    assert [text.partition(")")[0] for text in off] == ["In short (evaluate none", "In short (evaluate b"]
    lost = [run for run in made.runs if run.config["finetune"]["name"] == "lcgd"][:1]
    [said] = findings(replace(made, runs=tuple(run for run in made.runs if run not in lost)))
    assert said.endswith(f"these reproduce: GD {shares['gd']}, LCGD has no value in some draws.")
    assert not findings(results(("gd",), scores, seeds=2, task__shots=[1, 2, 4, 8]))  # too many to be short
    assert not findings(results(("gd",), scores[:2]))


def test_settings_of_finetuning_are_named_and_draws_must_be_the_same_ones():
    scores = ("accuracy/zsl", "accuracy/icl", "recovered")
    [said] = findings(results(("gd",), scores, seeds=2, finetune__layers=["all", "0"]))
    assert "GD (layers all) " in said and "GD (layers 0) " in said

    def lose(run, scores):
        if run.settings["seed"] == {"gd": 0, "mean_shift": 1}[run.settings["finetune.name"]]:
            scores["sim_aou"]["mean"] = None

    [paragraph] = findings(changed(results(("gd", "mean_shift"), ("sim_aou",), seeds=3), lose))
    assert paragraph.startswith("By SimAOU, none is named nearest, since none has a value in every draw.")


def test_shares_at_rates_that_were_chosen_have_wider_intervals_and_what_is_constant_is_not_tested():
    scores = ("accuracy/zsl", "accuracy/icl", "recovered")
    made = results(("gd",), scores, seeds=5, finetune__lr=[0.1, 0.2])
    [one] = rates.contenders(made)[0]
    interval = draws_interval(one.defined("recovered"), made.scores["recovered"].limits, chosen=True)
    assert findings(made)[-1].endswith(f"[{100 * interval.low:z.0f}, {100 * interval.high:z.0f}].")

    def constant(run, scores):
        scores["sim_aou"]["mean"] = {"gd": 0.1, "mean_shift": 0.2}[run.settings["finetune.name"]]

    [paragraph] = findings(changed(results(("gd", "mean_shift"), ("sim_aou",), seeds=5), constant))
    assert paragraph == "By SimAOU, Mean shift is nearest to ICL: 0.200 (sees calibration)."
