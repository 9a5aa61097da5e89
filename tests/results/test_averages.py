"""Means stand beside each other over the same layers, whatever was trained."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from figure_cases import changed, results
from iclgd.report import page
from iclgd.report.tables import summary, tables
from iclgd.results import rates, remarks
from iclgd.results.averages import Layers, mean_table
from iclgd.results.frame import Results, overall
from iclgd.statistics import mean_interval
from report_fixtures import _entry, change, write_run

LAYERS = 4


def run_of(folder, layers, undefined, diverged=False, **settings):
    """A run that trained some layers, whose SimAOU is undefined in others; returns its values."""
    write_run(folder, layers=LAYERS, finetune={"layers": layers}, scores=("sim_aou",), diverged=diverged, **settings)
    table = pd.read_parquet(folder / "scores.parquet")
    table.loc[(table["score"] == "sim_aou") & table["layer"].isin(undefined), "value"] = math.nan
    table.to_parquet(folder / "scores.parquet")
    part = table[table["score"] == "sim_aou"]
    values = part.pivot(index="example", columns="layer", values="value").to_numpy(copy=True)
    scores = json.loads((folder / "scores.json").read_text())
    scores["sim_aou"] = _entry(values)
    (folder / "scores.json").write_text(json.dumps(scores))
    return values


@pytest.fixture
def sweep(tmp_path):
    values = {
        "low": run_of(tmp_path / "low", [0, 1], ()),
        "high": run_of(tmp_path / "high", [2, 3], (0, 1), shift=0.1),
        "diverged": run_of(tmp_path / "diverged", [3], range(LAYERS), diverged=True),
    }
    return tmp_path, values


@pytest.mark.parametrize(
    ("rule", "low", "high"),
    [(Layers.common, [2, 3], [2, 3]), (Layers.trained, [0, 1], [2, 3]), (Layers.all, [0, 1, 2, 3], [2, 3])],
)
def test_means_are_over_the_layers_of_the_rule(sweep, rule, low, high):
    folder, values = sweep
    rows = overall(Results.read([folder], rule).summary)
    rows = rows[rows["score"] == "sim_aou"].set_index("finetune.layers")
    for trained, name, layers in (("0,1", "low", low), ("2,3", "high", high)):
        row = rows.loc[trained]
        assert row["layers"] == len(layers)
        assert row["mean"] == pytest.approx(np.nanmean(values[name][:, layers], axis=0).mean(), abs=1e-12)
    assert rows.loc["2,3", "undefined"] == 2 * 20
    assert rows.loc["3", ["draws", "diverged", "layers"]].tolist() == [0, 1, 0]


def of_low(folder):
    """Ends of the interval of SimAOU's mean in the run `low`, and the number of layers it is over."""
    rows = overall(Results.read([folder]).frame)
    row = rows[(rows["run"] == "low") & (rows["score"] == "sim_aou")].squeeze()
    return row["low"], row["high"], row["layers"]


def test_the_interval_over_queries_is_of_the_same_layers(sweep):
    folder, values = sweep
    expected = mean_interval(values["low"][:, [2, 3]])
    assert of_low(folder) == (expected.low, expected.high, 2)
    (folder / "low" / "scores.parquet").unlink()
    assert math.isnan(of_low(folder)[0])


def test_comparisons_and_curves_use_it_and_the_remarks_say_so(sweep):
    folder, values = sweep
    results = Results.read([folder])
    among, _ = rates.contenders(results)
    means = {one.others["finetune.layers"]: one.values.get("sim_aou", {}).get((0, None)) for one in among}
    assert means["0,1"] == pytest.approx(np.nanmean(values["low"][:, [2, 3]], axis=0).mean(), abs=1e-12)
    (note,) = remarks.layer_notes(results)
    rule = "those in which every setting of a model has a value."
    assert note == f"Means of SimAOU are over layers 2-3 (2 of 4): {rule}"
    shown = page.render(results, [], tables(results), "title")
    assert note in shown and "SimAOU: 40 undefined values, left out of the mean" in shown
    every = Results.read([folder], Layers.all)
    assert "over layers 2-3 (2 of 4), layers 0-3 (4 of 4): " in remarks.layer_notes(every)[0]
    cells = " ".join(text for row in summary(every).rows for text in row)
    assert "(4 layers)" in cells and "(2 layers)" in cells
    curve = results.frame.query("run == 'low' and score == 'sim_aou' and examples == 'all' and layer == 0")
    assert curve["mean"].item() == pytest.approx(values["low"][:, 0].mean())  # curves show every layer


def test_where_no_layer_is_common_each_setting_has_its_own_and_they_are_named():
    def one_layer(run, scores):
        trained = int(run.settings["finetune.layers"])
        layers = [0.4 if layer == trained else None for layer in range(LAYERS)]
        for name in scores:
            scores[name] |= {"mean": 0.4, "layers": layers}

    both = ("sim_aou", "sim_am_delta")
    made = changed(results(("gd",), both, seeds=2, layers=LAYERS, finetune__layers=["0", "1"]), one_layer)
    assert overall(made.summary)["mean"].tolist() == pytest.approx([0.4] * 4)
    own = "layer 0 (1 of 4), layer 1 (1 of 4): each run's own, since no layer has a value in every setting."
    assert remarks.layer_notes(made) == [f"Means of SimAOU and SimAM_Δ are over {own}"]


def test_planted_truths_do_not_narrow_the_layers_of_icl():
    def narrow(run, scores):
        if run.planted:
            scores["sim_aou"]["layers"][:2] = [None, None]

    made = changed(results(scores=("sim_aou",), layers=LAYERS, reference__name=["icl", "gd"]), narrow)
    assert overall(made.summary).groupby("reference.name")["layers"].unique().to_dict() == {"icl": [4], "gd": [2]}


def test_draws_without_a_value_take_neither_the_interval_of_a_share_nor_the_number_of_layers():
    def undefined(run, scores):
        if run.settings["seed"]:
            scores["rec2ftp"] |= {"mean": None, "ci": None, "undefined": 100}
            scores["sim_aou"] |= {"mean": None, "layers": [None] * LAYERS}

    made = changed(results(("gd",), ("sim_aou", "rec2ftp"), seeds=2, layers=LAYERS), undefined)
    rows = overall(made.summary).set_index("score")
    interval = made[0].scores["rec2ftp"]["ci"]
    assert rows.loc["rec2ftp", ["low", "high", "unit"]].tolist() == [*interval, "queries"]
    assert rows.loc["sim_aou", ["draws", "layers"]].tolist() == [1, LAYERS]


def test_tables_of_runs_are_means_over_sane_draws(tmp_path):
    for seed, loss in enumerate((1.0, 3.0, 50.0)):
        folder = write_run(tmp_path / str(seed), seed=seed)
        pd.DataFrame({"step": [0], "loss": [loss]}).to_parquet(folder / "losses.parquet")
    change(folder, "status.json", unstable=True)
    table = mean_table(Results.read([tmp_path]), lambda run: run.table("losses"), ["step"], "loss")
    assert (table["mean"].tolist(), table["draws"].tolist()) == ([2.0], [2])
