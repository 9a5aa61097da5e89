"""What figures show, read off their specifications; and that files are made of those."""

from __future__ import annotations

import itertools
import json

import altair as alt
import numpy as np
import pandas as pd
import pytest

from figure_cases import by_name, described, encoded, every, parts, results, rows
from iclgd.report import chart, figures, planted_truths
from iclgd.report.chart import DATA, Figure
from iclgd.results import published
from iclgd.results.frame import Results
from report_fixtures import write_run


def test_by_layer_is_the_mean_over_draws_with_its_interval():
    made = results(layers=4)
    figure = by_name(figures.by_layer(made))["layers/sim_aou"]
    curves = np.array([run.layers("sim_aou") for run in made.runs if run.settings["finetune.name"] == "gd"])
    shown = sorted((row["x"], row["mean"], row["low"]) for row in rows(figure) if row["variant"] == "GD")
    assert [mean for _, mean, _ in shown] == pytest.approx(curves.mean(0), rel=1e-4)
    half = 4.302653 * curves.std(0, ddof=1) / np.sqrt(3)  # Student's t, 2 degrees of freedom
    assert [low for _, _, low in shown] == pytest.approx(curves.mean(0) - half, rel=1e-3, abs=1e-4)
    assert "95 % intervals over 3 draws" in figure.caption


def test_labels_and_colours_come_from_the_files_of_the_variants():
    figure = next(figures.by_layer(results(("lcgd", "mine", "gd"), own={"mine": {"label": "My own", "order": 1}})))
    [scale] = [one["scale"] for one in encoded(figure, "color")][:1]
    assert scale["domain"] == ["My own", "GD", "LCGD"]
    assert scale["range"] == [chart.PALETTE[0], *(described("finetune")[name]["color"] for name in ("gd", "lcgd"))]
    same = next(figures.by_layer(results(("a", "b"), own={name: {"label": "same"} for name in "ab"})))
    assert {row["variant"] for row in rows(same)} == {"same", "same (b)"}


def test_scores_of_ones_own_appear_everywhere():
    made = results(scores=("sim_aou", "mine"), finetune__lr=[1e-3, 1e-2])
    assert {"layers/mine", "along.finetune.lr/mine", "ladder/mine"} <= every(made).keys()
    assert all(figure.headline == (not name.endswith("mine")) for name, figure in every(made).items())
    alone = every(results(scores=("mine",), finetune__lr=[1e-3, 1e-2]))
    assert all(figure.headline for figure in alone.values())


@pytest.mark.parametrize(
    ("key", "values", "log"),
    [
        ("finetune.lr", [1e-4, 2e-4], True),
        ("task.shots", [1, 4], True),
        ("task.shots", [0, 4], False),
        ("finetune.epochs", [1, 4], False),
        ("finetune.epochs", [1, 32], True),
    ],
)
def test_rates_and_shots_and_what_spans_much_have_logarithmic_axes_named_in_words(key, values, log):
    figure = by_name(figures.along_keys(results(**{key.replace(".", "__"): values})))[f"along.{key}/sim_aou"]
    axis = next(x for x in encoded(figure, "x") if x.get("field") == "x")
    assert axis["scale"].get("type") == ("log" if log else None) and axis["axis"]["values"] == values
    titles = {"finetune.lr": "learning rate", "task.shots": "demonstrations", "finetune.epochs": "epochs"}
    assert axis["title"] == titles[key]


def test_a_diverged_setting_is_a_cross_and_no_value():
    made = results(finetune__lr=[1e-3, 1e-1], diverges=lambda s: s["finetune.lr"] == 0.1)
    figure = by_name(figures.along_keys(made))["along.finetune.lr/sim_aou"]
    assert {row["mean"] is None for row in rows(figure) if row["x"] == 0.1} == {True}
    assert "Crosses" in figure.caption
    assert [part for part in parts(figure.specification) if part.get("filter") == "datum.mean === null"]


def test_where_everything_diverged_there_is_nothing_to_draw():
    assert figures.figures(results(diverges=lambda settings: True)) == []


def test_intervals_are_over_draws_or_absent_and_a_lone_draw_is_a_hollow_mark():
    """The interval over one draw's queries is narrower: it would make the least stable rate look the most precise."""
    made = results(finetune__lr=[1e-3, 1e-2], diverges=lambda s: s["finetune.lr"] == 0.01 and s["seed"] > 0)
    figure = by_name(figures.along_keys(made))["along.finetune.lr/sim_aou"]
    assert {(row["x"], row["low"] is None, row["lone"]) for row in rows(figure)} == {
        (0.001, False, False), (0.01, True, True)
    }  # fmt: skip
    assert figure.caption.endswith("over 3 draws of demonstrations. One draw alone has no interval.")
    for single in every(results(seeds=1, task__shots=[1, 2])).values():
        assert "No intervals" in single.caption and not any("low" in row for row in rows(single))


@pytest.mark.parametrize("kind", ["layers", "along.task.shots", "along.finetune.lr", "along.finetune.layers"])
def test_no_two_settings_share_a_line(kind):
    made = results(layers=3, finetune__lr=[1e-3, 1e-2], task__shots=[1, 2, 4, 8, 16, 32, 64],
                   finetune__layers=["0", "1", "2"], task__name=["a", "b", "c", "d", "e"])  # fmt: skip
    figure = every(made)[f"{kind}/sim_aou"]
    keys = [tuple(row.get(name) for name in ("variant", "panel", "setting", "x")) for row in rows(figure)]
    assert len(keys) == len(set(keys)) == 2 * 2 * 7 * 3 * 5 * (3 if kind == "layers" else 1)
    params = figure.specification["params"]
    assert [param["name"] for param in params] == ["setting"]
    assert set(params[0]["bind"]["options"]) == {row["setting"] for row in rows(figure)}


def test_settings_have_panels_while_there_is_room_and_a_file_names_the_one_it_shows():
    few = every(results(layers=3, finetune__lr=[1e-3, 1e-2], task__shots=[4, 8]))["layers/sim_aou"]
    assert {row["panel"] for row in rows(few)} == {f"shots {s} · lr {lr}" for s in (4, 8) for lr in (0.001, 0.01)}
    assert few.shown_setting == "" and few.file_name == "layers_sim_aou"
    many = every(results(layers=3, task__shots=[1, 2, 4, 8, 16, 32, 64]))["layers/sim_aou"]
    assert many.shown_setting == "shots 8" and many.file_name == "layers_sim_aou_shots_8"
    assert many.specification["title"]["text"] == {"expr": "setting + ' (one of 7 settings)'"}


def test_groups_of_layers_have_a_figure_along_them():
    made = results(layers=4, finetune__layers=["2,3", "all", "0,1", "0"])
    figure = by_name(figures.along_keys(made))["along.finetune.layers/sim_aou"]
    axis = next(x for x in encoded(figure, "x") if x.get("field") == "x")
    assert axis["type"] == "nominal" and axis["title"] == "trained layers"
    assert axis["sort"] == ["0", "0-1", "2-3", "all"] and {row["x"] for row in rows(figure)} == set(axis["sort"])


def test_maps_have_layers_across_and_rates_up():
    rates = [1e-3, 1e-1]
    made = results(layers=3, finetune__lr=rates)
    figure = by_name(figures.layer_maps(made))["rate_map/sim_aou"]
    cells = {(row["panel"], row["y"], row["x"]): row["mean"] for row in rows(figure)}
    assert set(cells) == set(itertools.product(("GD", "LCGD"), rates, range(3)))
    curves = [run.layers("sim_aou") for run in made.runs
              if (run.settings["finetune.name"], run.settings["finetune.lr"]) == ("gd", rates[0])]  # fmt: skip
    assert [cells["GD", rates[0], layer] for layer in range(3)] == pytest.approx(np.mean(curves, axis=0), rel=1e-4)
    domain = next(one["scale"]["domain"] for one in encoded(figure, "y"))
    assert domain == rates[::-1]  # the largest on top
    low, high = encoded(figure, "color")[0]["scale"]["domain"]
    assert low == -high
    assert not list(figures.layer_maps(results()))


def test_many_variants_by_layer_are_rows_of_a_map_in_their_order():
    among = ("none", "gd", "lcgd", "mean_shift", "task_vector", "priming", "exact_patch", "static_patch", "replay")
    made = results(among, layers=4)
    figure = by_name(figures.by_layer(made))["layers/sim_aou"]
    assert next(y["scale"]["domain"] for y in encoded(figure, "y")) == list(made.labels.values())
    lines = by_name(figures.by_layer(results(among[:8], layers=4)))["layers/sim_aou"]
    assert not [y for y in encoded(lines, "y") if y.get("field") == "y"]


def test_published_curves_stand_beside_what_they_match():
    made = results(layers=24, scores=("sim_am_delta",), task__name=["subj", "my_own"], task__shots=[32],
                   model__name=["x/fairseq-dense-1.3B"])  # fmt: skip
    [figure] = figures.by_layer(made)
    theirs = published.published()["layers"]["sim_am_delta"]["subj"]["gd"]
    shown = {row["x"]: row["published"] for row in rows(figure) if (row["panel"], row["variant"]) == ("subj", "GD")}
    assert [shown[layer] for layer in range(24)] == pytest.approx(theirs, rel=1e-4)
    assert {row["published"] for row in rows(figure) if row["panel"] == "my_own"} == {None}
    assert "published" in figure.caption


def test_losses_of_all_variants_are_per_predicted_token_and_layer(tmp_path):
    """LCGD's loss is the sum over the trained layers; on one axis with GD's it made GD a line at zero."""
    for variant, factor in (("gd", 1), ("lcgd", 6)):
        folder = write_run(tmp_path / variant, variant=variant)  # of six layers
        losses = pd.DataFrame({"step": range(4), "loss": [factor * 2.0 / (1 + step) for step in range(4)]})
        losses.to_parquet(folder / "losses.parquet")
    [figure] = figures.training(Results.read([tmp_path]))
    assert figure.title == "During finetuning (seed 0)"
    assert {(row["x"], round(row["mean"], 5)) for row in rows(figure)} == {(0, 2), (1, 1), (2, 0.66667), (3, 0.5)}
    losses.assign(loss=[400.0, 300, 200, 100]).to_parquet(tmp_path / "gd" / "losses.parquet")
    [apart] = figures.training(Results.read([tmp_path]))
    assert "log" in {y["scale"].get("type") for y in encoded(apart, "y") if "scale" in y}


def test_matrix_writes_values_and_intervals_and_outlines_what_is_planted():
    cells = [("a", "a", 0.5, 0.4, 0.6), ("a", "y", -0.25, -0.3, -0.2), ("b", "a", np.nan, np.nan, np.nan)]
    frame = pd.DataFrame(cells, columns=["truth", "candidate", "mean", "low", "high"])
    made = planted_truths.matrix(frame, "v", (-1, 1)).to_dict()
    assert [(row["y"], row["x"], row["value"], row["about"]) for row in made["datasets"][DATA]] == [
        ("a", "a", "0.50", "[0.40, 0.60]"), ("a", "y", "-0.25", "[-0.30, -0.20]"), ("b", "a", "\N{EN DASH}", ""),
    ]  # fmt: skip
    [scale] = [part["scale"] for part in parts(made) if "scheme" in part.get("scale", {})]
    assert scale["domain"] == [-1, 1] and scale["scheme"] == "blueorange"
    assert [part for part in parts(made) if part.get("filter") == "datum.x === datum.y"]


def test_texts_from_outside_lose_what_could_mislead():
    made = results(("gd", "<b>\u202e"), own={"<b>\u202e": {"label": "<b>\u202eevil"}}, task__name=["a\x00", "b"])
    written = json.dumps(every(made)["layers/sim_aou"].specification, ensure_ascii=False)
    assert "evil" in written and "\u202e" not in written and "\x00" not in written
    assert Figure("../../etc/passwd\x00", "", alt.Chart(alt.NamedData(name=DATA)), "").file_name == "etc_passwd"


def test_files_are_made_of_the_specification_and_the_same_each_time(tmp_path):
    figure = next(figures.by_layer(results(layers=3, scores=("sim_aou",))))
    for ending, start in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<svg"), (".html", b"<!DOCTYPE")):
        first, second = (figure.save(tmp_path / f"{name}{ending}").read_bytes() for name in "ab")
        assert first.startswith(start) and first == second, ending
    with pytest.raises(ValueError, match="end it in"):
        figure.save(tmp_path / "a.bmp")
    assert figure.chart.to_dict() == figure.specification
