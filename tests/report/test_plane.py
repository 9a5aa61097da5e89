"""Maps of the plane and curves along shots, read off the figures' rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from figure_cases import changed, described, results
from iclgd.report.chart import DATA, Figure
from iclgd.report.figures import along_keys
from iclgd.report.plane import plane
from iclgd.results.frame import Results
from report_fixtures import write_run

ODDS = [f"log_odds/{setting}" for setting in ("zsl", "icl", "ft")]
SIDE = 4


def rows(figure: Figure) -> pd.DataFrame:
    return pd.DataFrame(figure.specification["datasets"][DATA])


def write_plane(folder: Path, text: str = "x: {} {} ->", **settings: Any) -> Path:
    """A run whose queries are points of a square; ICL's log-odds of the right label are 2, FT's -1, zero-shot's 0."""
    points = [(3 * x, 3 * y) for x in range(SIDE) for y in range(SIDE)]
    run = write_run(folder, examples=len(points), **settings)
    prompts = json.loads((run / "prompts.json").read_text())
    prompts["queries"] = [{"text": text.format(x, y), "token_ids": [1], "label": int(x > y)} for x, y in points]
    prompts["demonstrations"] = [{"text": "x: 1 4 -> Negative", "token_ids": [1, 2], "label": 0}]
    (run / "prompts.json").write_text(json.dumps(prompts))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["metric"]["scores"] |= {name: described("metric")[name] for name in ODDS}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    scores = json.loads((run / "scores.json").read_text())
    table = [pd.read_parquet(run / "scores.parquet")]
    for name, odds in zip(ODDS, (0.0, 2.0, -1.0), strict=True):
        scores[name] = {"mean": odds, "layers": [], "n": len(points), "undefined": 0, "ci": [odds, odds]}
        table.append(pd.DataFrame({"score": name, "example": range(len(points)), "layer": -1, "value": odds}))
    pd.concat(table).to_parquet(run / "scores.parquet")
    (run / "scores.json").write_text(json.dumps(scores))
    return run


def test_maps_show_the_probability_of_the_second_label_at_every_point(tmp_path):
    for variant in ("gd", "lcgd"):
        write_plane(tmp_path / variant, variant=variant, diverged=variant == "lcgd")
    [figure] = plane(Results.read([tmp_path]))
    shown = rows(figure)
    queries = shown[shown["about"] == "queries"]
    assert set(queries["panel"]) == {"The task", "Zero-shot", "ICL", "gd"}  # what diverged has no map
    assert len(queries) == 4 * SIDE**2 and "label Positive" in figure.caption
    by_panel = {panel: part.set_index(["x", "y"])["mean"] for panel, part in queries.groupby("panel")}
    right, wrong = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))
    for (x, y), truth in by_panel["The task"].items():
        assert truth == (x > y) and by_panel["Zero-shot"][x, y] == 0.5
        assert by_panel["ICL"][x, y] == pytest.approx(right if truth else 1 - right, abs=1e-4)
        assert by_panel["gd"][x, y] == pytest.approx(wrong if truth else 1 - wrong, abs=1e-4)
    circles = shown[shown["about"] == "demonstrations"]
    assert set(zip(circles["x"], circles["y"], circles["mean"], strict=True)) == {(1, 4, 0)}


def test_each_draw_has_maps_of_its_own_and_other_texts_have_none(tmp_path):
    for seed in range(2):
        write_plane(tmp_path / "points" / str(seed), seed=seed)
    [figure] = plane(Results.read([tmp_path / "points"]))
    assert set(rows(figure)["setting"]) == {"seed 0", "seed 1"}
    write_plane(tmp_path / "texts", text="{} of {} or both")
    write_plane(tmp_path / "numbers", text="{} -> {} ->")
    (tmp_path / "texts" / "prompts.json").write_text(
        (tmp_path / "texts" / "prompts.json").read_text().replace("0 of", "n")
    )
    assert not list(plane(Results.read([tmp_path / "texts"]))) and list(plane(Results.read([tmp_path / "numbers"])))


def test_icl_and_mechanisms_stand_in_one_figure_along_shots_with_the_line_of_icl():
    shots = [1, 2, 4, 8]
    made = results(("gd", "lcgd"), (*ODDS, "accuracy/icl", "accuracy/ft"), task__shots=shots)
    figures = {figure.name.removeprefix("along.task.shots/"): figure for figure in along_keys(made)}
    assert set(figures) == {*ODDS, "accuracy/icl", "accuracy/ft"}
    assert {name for name, figure in figures.items() if figure.headline} == {"log_odds/ft", "accuracy/ft"}
    shown = rows(figures["log_odds/ft"])
    assert set(shown["variant"]) == {"ICL", "Zero-shot", "GD", "LCGD"}
    icl = shown[shown["variant"] == "ICL"].sort_values("x")
    line = np.polyval(np.polyfit(icl["x"], icl["mean"], 1), icl["x"])
    assert icl["published"].tolist() == pytest.approx(line, rel=1e-3) and len(icl) == len(shots)
    assert "fitted to ICL's means by least squares" in figures["log_odds/ft"].caption
    assert "published" not in rows(figures["accuracy/ft"]) and figures["accuracy/ft"].choice == "Accuracy"


def test_icl_has_a_line_for_each_setting_and_none_of_its_spread_where_it_has_none():
    def linear(run, scores):
        slope = {"a": 1.0, "b": 0.0}[run.settings["task.separator"]]
        scores["log_odds/icl"] |= {"mean": slope * run.settings["task.shots"], "layers": []}

    made = results(("gd", "lcgd"), ODDS, task__shots=[1, 2, 4], task__separator=["a", "b"])
    figure = next(one for one in along_keys(changed(made, linear)) if one.name.endswith("/ft"))
    icl = rows(figure)[rows(figure)["variant"] == "ICL"]
    assert icl["published"].tolist() == pytest.approx(icl["mean"].tolist(), abs=1e-9)
    assert ": 1 a demonstration, R\N{SUPERSCRIPT TWO} 1.00; 0 a demonstration" in figure.caption
    assert figure.caption.endswith("R\N{SUPERSCRIPT TWO} undefined.")
