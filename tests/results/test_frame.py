"""The frame of results and its summary: what varied, what a draw is, and what is left out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import altair as alt
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import iclgd
from iclgd.report.tables import summary
from iclgd.results.frame import Results, overall
from iclgd.results.reading import ReportError, read_run
from report_fixtures import change, write_run


def row(results, score="sim_aou", **settings):
    found = overall(results.summary)
    for key, value in {"score": score, **{key.replace("__", "."): value for key, value in settings.items()}}.items():
        found = found[found[key] == value]
    assert len(found) == 1
    return found.iloc[0]


def test_the_frame_has_a_row_for_each_run_score_examples_and_layer(tmp_path):
    write_run(tmp_path / "a", seed=3)
    frame = Results.read([tmp_path]).frame
    keys = ["model.name", "model.weights", "task.name", "task.shots", "finetune.name", "finetune.lr", "seed"]
    assert list(frame)[:9] == ["run", *keys, "score"]
    aou = frame[(frame.score == "sim_aou") & (frame.examples == "all")]
    assert aou.layer.tolist()[1:] == list(range(6)) and aou.layer.isna().tolist() == [True] + [False] * 6
    scores = json.loads((tmp_path / "a" / "scores.json").read_text())
    assert aou["mean"].tolist() == pytest.approx([scores["sim_aou"]["mean"], *scores["sim_aou"]["layers"]])
    assert (aou["low"].iloc[0], aou["high"].iloc[0]) == pytest.approx(tuple(scores["sim_aou"]["ci"]))
    flipped = frame[(frame.score == "sim_aou") & (frame.examples == "flipped")]
    assert flipped["n"].tolist() == [10] * 7 and not len(frame[(frame.score == "accuracy/ft") & frame.layer.notna()])


def test_every_key_that_was_swept_is_a_column_and_settings_stand_in_order(tmp_path):
    for shots, k in ((16, 5), (4, 5), (16, 10)):
        folder = write_run(tmp_path / f"{shots}{k}", shots=shots)
        change(folder, metric__scores__sim_aou__params={"k": k})
    results = Results.read([tmp_path])
    assert results.varied == ("task.shots", "metric.scores.sim_aou.params.k")
    assert results.settings[list(results.varied)].to_numpy().tolist() == [[4, 5], [16, 5], [16, 10]]
    assert set(results.varied) < set(results.frame) and set(results.varied) < set(results.summary)


def test_checkpoints_of_one_name_stay_apart(tmp_path):
    for step in ("step1", "step2"):
        write_run(tmp_path / step, model=f"/models/{step}/hf")
    results = Results.read([tmp_path])
    assert [results.text("model.name", name) for name in results.settings["model.name"]] == ["step1/hf", "step2/hf"]
    write_run(tmp_path / "other", model="owner/pythia-70m")
    write_run(tmp_path / "whole", model="hf")
    names = Results.read([tmp_path]).model_names
    assert names["owner/pythia-70m"] == "pythia-70m" and len(set(names.values())) == 4


def test_a_summary_is_over_draws_by_hand(tmp_path):
    for seed in range(3):
        write_run(tmp_path / str(seed), seed=seed)  # means 0.10, 0.11, 0.12
    found = row(Results.read([tmp_path]))
    assert (found["mean"], found["std"]) == (pytest.approx(0.11), pytest.approx(0.01))
    half = 4.302652729911275 * 0.01 / 3**0.5  # Student's t with 2 degrees of freedom
    assert (found.low, found.high) == (pytest.approx(0.11 - half), pytest.approx(0.11 + half))
    assert (found.draws, found.unit, found.n) == (3, "draws", 60)
    layers = Results.read([tmp_path]).summary
    layers = layers[(layers.score == "sim_aou") & (layers.examples == "all") & layers.layer.notna()]
    runs = Results.read([tmp_path]).runs
    assert layers["std"].tolist() == pytest.approx(np.std([run.layers("sim_aou") for run in runs], axis=0, ddof=1))


def test_orders_of_one_draw_are_no_draws(tmp_path):
    for seed in range(2):
        for permutation in range(3):
            shift = 0.1 * permutation
            write_run(tmp_path / f"{seed}{permutation}", seed=seed, permutation=permutation, shift=shift)
    found = row(Results.read([tmp_path]))
    assert found.draws == 2 and found["mean"] == pytest.approx(0.205)  # 0.20 and 0.21
    assert found["std"] == pytest.approx(0.01 / 2**0.5)
    assert {"seed", "task.permutation"} < set(Results.read([tmp_path]).frame)


@pytest.mark.parametrize(("weights", "draws"), [("pretrained", 1), ("random", 3)])
def test_seeds_of_weights_count_only_where_weights_are_drawn(tmp_path, weights, draws):
    for seed in range(3):
        change(write_run(tmp_path / str(seed), weights=weights), model__weights_seed=seed)
    results = Results.read([tmp_path])
    assert row(results).draws == draws and results.varied == ()


def test_diverged_and_unstable_draws_are_counted_and_left_out(tmp_path):
    for seed in range(4):
        folder = write_run(tmp_path / str(seed), seed=seed, diverged=seed == 0, shift=5.0 * (seed == 1))
        change(folder, "status.json", unstable=seed == 1)
    results = Results.read([tmp_path])
    found = row(results)
    assert (found.draws, found.diverged, found.unstable) == (2, 1, 1) and found["mean"] == pytest.approx(0.125)
    assert sorted(results.frame.groupby("run")["state"].first()) == ["diverged", "sane", "sane", "unstable"]
    icl = row(results, "accuracy/icl")  # has no part in finetuning
    assert (icl.draws, icl.diverged, icl.unstable) == (4, 0, 0)


def test_scores_of_weights_depend_on_finetuning_and_every_score_on_a_planted_truth(tmp_path):
    for seed in range(3):
        folder = write_run(tmp_path / str(seed), seed=seed, scores=("sim_aou",))
        inputs = {"trained": "trained_changes", "context": "static_changes"}
        change(folder, metric__scores__sim_aou__inputs=inputs)
        change(folder, "status.json", unstable=seed == 1)
    results = Results.read([tmp_path])
    assert results.scores["sim_aou"].learned and row(results).unstable == 1 and row(results).draws == 2
    assert row(results, "accuracy/icl").draws == 3  # ICL's own accuracy does not depend on finetuning
    for seed in range(3):
        change(tmp_path / str(seed), reference__name="gd")
    assert row(Results.read([tmp_path]), "accuracy/icl").draws == 2  # a planted truth's does


def test_query_seeds_and_precision_are_settings(tmp_path):
    for name, dtype, query_seed in (("a", "float32", 1), ("b", "bfloat16", 1), ("c", "float32", 2)):
        change(change(write_run(tmp_path / name), task__query_seed=query_seed), "environment.json", dtype=dtype)
    results = Results.read([tmp_path])
    assert results.varied == ("task.query_seed", "runtime.dtype") and len(results.settings) == 3


def test_where_keeps_the_runs_that_fit(tmp_path):
    for lr in (1e-3, 1e-2):
        for variant in ("gd", "lcgd"):
            write_run(tmp_path / f"{lr}{variant}", lr=lr, variant=variant)
    results = Results.read([tmp_path])
    assert {run.settings["finetune.name"] for run in results.where({"lr": "0.01", "variant": "gd"})} == {"gd"}
    with pytest.raises(ReportError, match=r"no run has a setting 'rate': varied here are finetune.name, finetune.lr"):
        results.where({"rate": "1"})
    with pytest.raises(ReportError, match=r"no finished run has finetune\.lr=3"):
        results.where({"finetune.lr": "3"})


def test_results_are_shown_in_short(tmp_path):
    for seed in range(3):
        write_run(tmp_path / str(seed), seed=seed, variant="gd" if seed else "lcgd")
    results = Results.read([tmp_path])
    assert repr(results) == "Results(3 runs, 9 scores, 0 left out, varied: finetune.name)"
    assert len(repr(results[0])) < 200 and "seed=1" in repr(results[0])
    assert results.table()["sim_aou"].to_dict() == pytest.approx({"gd": 0.115, "lcgd": 0.2})
    assert "<table" in results._repr_html_() and len(results.runs[0].frame) < len(results.frame)


def test_a_run_is_shown_by_its_scores_and_has_its_own_figures(tmp_path):
    run = read_run(write_run(tmp_path / "<b>", variant="lcgd", seed=0))
    shown = run._repr_html_()
    cells = re.findall(r"<td>(.*?)</td>", shown)
    assert cells[::4] == list(run.scores) and "<b>" not in shown
    assert cells[1::4] == [f"{run.mean(name):.4g}" for name in run.scores]
    figures = iclgd.figures(run)
    assert isinstance(figures["layers/sim_aou"].chart, alt.TopLevelMixin)
    assert set(figures) == set(iclgd.figures(iclgd.load(run.folder)))


def test_a_score_that_a_run_does_not_have_is_refused_with_close_names(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    for ask in (run.mean, run.layers):
        with pytest.raises(ReportError, match="has no score 'sim_aouu': choose from sim_aou"):
            ask("sim_aouu")
        with pytest.raises(ReportError, match="choose from accuracy/ft, accuracy/icl"):
            ask("?")


def test_the_recordings_of_a_run_are_tensors_by_setting(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    with pytest.raises(ReportError, match=r"kept no recordings: .* runtime\.save_recordings=true"):
        _ = run.recordings
    shapes = {"attention_output": (2, 3, 4), "attention_scores": (2, 3, 1, 5), "label_scores": (2, 2)}
    stored = {
        f"{setting}.{name}": torch.full(shape, float(number))
        for number, setting in enumerate(("zsl", "icl"), 1)
        for name, shape in shapes.items()
    }
    save_file({**stored, "training_query_vectors": torch.zeros(1)}, run.folder / "recordings.safetensors")
    assert set(run.recordings) == {"zsl", "icl"}
    assert torch.equal(run.recordings["icl"].attention_scores, torch.full((2, 3, 1, 5), 2.0))
    assert run.recordings["zsl"].block_output is None


def test_the_guide_groups_sane_runs_over_all_examples(tmp_path):
    """Two variants and six layers are twelve rows, whatever is unstable or flipped."""
    for variant in ("gd", "lcgd"):
        for seed in range(2):
            write_run(tmp_path / f"{variant}{seed}", variant=variant, seed=seed)
    change(write_run(tmp_path / "unstable", variant="other", shift=9.0), "status.json", unstable=True)
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "notebook.md").read_text()
    (snippet,) = re.findall(r"```python\n(frame = results\.frame .*?)```", guide, flags=re.DOTALL)
    names = {"results": Results.read([tmp_path])}
    exec(snippet, names)
    assert len(names["by_layer"]) == 12
    assert names["by_layer"].groupby("finetune.name").mean().tolist() == pytest.approx([0.105, 0.206])


def test_shots_say_how_many_demonstrations_fitted_the_window(tmp_path):
    for shots, used in ((8, [8]), (32, [19]), (64, [18, 19])):
        for seed, number in enumerate(used):
            folder = write_run(tmp_path / f"{shots}{seed}", shots=number, seed=seed)
            change(folder, task__shots=shots, task__on_overflow="drop")
    results = Results.read([tmp_path])
    assert [results.text("task.shots", shots) for shots in (8, 32, 64)] == ["8", "32 (19 used)", "64 (18-19 used)"]
    assert [row[0] for row in summary(results).rows] == ["8", "32 (19 used)", "64 (18-19 used)"]
    change(tmp_path / "320", task__on_overflow="error")
    assert Results.read([tmp_path]).text("task.shots", 32) == "32"
